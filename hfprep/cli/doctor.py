"""`python -m hfprep doctor` and `download`: what this machine lacks for a build, and the models."""

from pathlib import Path
from typing import Annotated

import typer

from hfprep.cli.output import PlainTable, say, show


def doctor(
    output_dir: Annotated[Path, typer.Option(help="Where features will go: its disk is measured.")] = Path(),
    models: Annotated[Path | None, typer.Option(help="Folder with model files; default: the hub's cache.")] = None,
) -> None:
    """Look at Python, packages, devices, ffmpeg, disk and models; problems first, each with its remedy."""
    from rich.text import Text

    from hfprep.tools.doctor import Level, examine

    words = {
        Level.PROBLEM: Text("problem", "red"),
        Level.WARNING: Text("note", "yellow"),
        Level.FINE: Text("ok", "green"),
    }
    findings = examine(folder=output_dir, models=models)
    table = PlainTable(show_header=False)
    table.add_column("level")
    table.add_column("topic")
    table.add_column("found", overflow="fold")
    for finding in findings:
        table.add_row(words[finding.level], finding.topic, finding.found)
        if finding.remedy:
            table.add_row("", "", f"-> {finding.remedy}")
    show(table)
    problems = sum(finding.level == Level.PROBLEM for finding in findings)
    say(f"{problems} problems" if problems else "Nothing stands in the way of a build.")
    raise typer.Exit(1 if problems else 0)


def download(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Where the model files go.")] = Path("checkpoints"),
) -> None:
    """Fetch the published models into DIR (6 GB); run again to go on after a break. Then build with --models DIR."""
    from hfprep.tools.download import download as fetch

    fetch(folder, report=say)
    say(f"Everything is there: python -m hfprep build --models {folder} ...")
