"""`python -m hfprep doctor` and `download`: what this machine lacks for a build, and the models."""

from pathlib import Path
from typing import Annotated

import typer

from hfprep.cli.output import PlainTable, say, show
from hfprep.io.words import count
from hfprep.recipes.registry import NAMES

PLAIN_WIDTH = 80  # where the output is no terminal
RECIPE_HELP = f"Model family: {', '.join(NAMES)}; default: told from the files in DIR, else {NAMES[0]}."


def doctor(
    output_dir: Annotated[
        Path, typer.Option(help="Output folder of the later build, whose disk is measured.")
    ] = Path(),
    models: Annotated[Path | None, typer.Option(help="Folder with model files; default: the hub's cache.")] = None,
    recipe: Annotated[str | None, typer.Option(help=RECIPE_HELP)] = None,
) -> None:
    """Check Python, packages, devices, disk and models; says what to do about each problem."""
    from rich.text import Text

    from hfprep.tools.doctor import Level, examine

    words = {
        Level.PROBLEM: Text("problem", "red"),
        Level.WARNING: Text("note", "yellow"),
        Level.FINE: Text("ok", "green"),
    }
    findings = examine(folder=output_dir, models=models, recipe_name=recipe)
    table = PlainTable(show_header=False)
    table.add_column("level")
    table.add_column("topic")
    table.add_column("found", overflow="fold")
    for finding in findings:
        table.add_row(words[finding.level], finding.topic, finding.found)
        if finding.remedy:
            table.add_row("", "", f"-> {finding.remedy}")
    show(table, PLAIN_WIDTH)
    problems = sum(finding.level == Level.PROBLEM for finding in findings)
    notes = sum(finding.level == Level.WARNING for finding in findings)
    if problems:
        say(f"{count(problems, 'problem')} to solve before a build.")
    else:
        say(f"No problems, {count(notes, 'note')}." if notes else "No problems.")
    raise typer.Exit(1 if problems else 0)


def download(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder for the model files.")] = Path("checkpoints"),
    recipe: Annotated[str | None, typer.Option(help=RECIPE_HELP)] = None,
) -> None:
    """Download the published models into DIR; run again to resume. Then build with --models DIR."""
    from hfprep.tools.download import download as fetch

    fetch(folder, name=recipe, report=say)
    say(f"Everything is there: python -m hfprep build --models {folder} ...")
