"""`python -m hfprep doctor` and `download`: what this machine lacks for a build, and the models."""

import sys
from pathlib import Path
from typing import Annotated

import typer


def doctor(
    output_dir: Annotated[Path, typer.Option(help="Where features will go: its disk is measured.")] = Path(),
    models: Annotated[Path | None, typer.Option(help="Folder with model files; default: the hub's cache.")] = None,
) -> None:
    """Look at Python, packages, devices, ffmpeg, disk and models; problems first, each with its remedy."""
    from rich.console import Console
    from rich.table import Table

    from hfprep.tools.doctor import Level, examine

    words = {
        Level.PROBLEM: "[red]problem[/red]",
        Level.WARNING: "[yellow]note[/yellow]",
        Level.FINE: "[green]ok[/green]",
    }
    findings = examine(folder=output_dir, models=models)
    table = Table(show_header=False)
    table.add_column("level")
    table.add_column("topic")
    table.add_column("found", overflow="fold")
    for finding in findings:
        table.add_row(words[finding.level], finding.topic, finding.found)
        if finding.remedy:
            table.add_row("", "", f"-> {finding.remedy}")
    Console(width=None if sys.stdout.isatty() else 120, highlight=False).print(table)
    problems = sum(finding.level == Level.PROBLEM for finding in findings)
    typer.echo(f"{problems} problems" if problems else "Nothing stands in the way of a build.")
    raise typer.Exit(1 if problems else 0)


def download(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Where the model files go.")] = Path("checkpoints"),
) -> None:
    """Fetch the published models into DIR (6 GB); run again to go on after a break. Then build with --models DIR."""
    from hfprep.tools.download import download as fetch

    fetch(folder, report=typer.echo)
    typer.echo(f"Everything is there: python -m hfprep build --models {folder} ...")
