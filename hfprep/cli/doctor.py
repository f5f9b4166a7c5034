"""`python -m hfprep doctor` and `download`: check the machine, and download the models."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated

import typer

from hfprep.cli.output import PlainTable, say, show
from hfprep.io.words import count
from hfprep.recipes.registry import NAMES

RECIPE_HELP = f"Model family: {', '.join(NAMES)}; default: recognised from the files in DIR, else {NAMES[0]}."


def doctor(
    output_dir: Annotated[
        Path, typer.Option(help="Output folder of the later build, whose disk is measured.")
    ] = Path(),
    models: Annotated[Path | None, typer.Option(help="Folder with model files; default: the hub's cache.")] = None,
    recipe: Annotated[str | None, typer.Option(help=RECIPE_HELP)] = None,
) -> None:
    """Check Python, packages, devices, disk and models; shows what to do about each problem."""
    from rich.text import Text

    from hfprep.tools.doctor import Level, examine

    words = {
        Level.PROBLEM: Text("problem", "red"),
        Level.WARNING: Text("note", "yellow"),
        Level.FINE: Text("ok", "green"),
    }
    findings = examine(folder=output_dir, models=models, recipe_name=recipe)
    table = PlainTable(None, "level", "topic", "found", show_header=False)
    for finding, following in zip(findings, [*findings[1:], None], strict=True):
        table.add_row(words[finding.level], finding.topic, finding.found)
        if finding.remedy and (following is None or finding.remedy != following.remedy):
            table.add_row("", "", f"-> {finding.remedy}")
    show(table)
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

    fetch(folder, name=recipe, report=say, showing=_bytes_arriving)
    say(f"Ready: python -m hfprep build --models {folder} ...")


@contextlib.contextmanager
def _bytes_arriving(num_bytes: int, arrived: Callable[[], int]) -> Iterator[None]:
    """Show the progress of a download in a terminal."""
    from rich.progress import BarColumn, DownloadColumn, Progress, Task, TextColumn, TimeRemainingColumn
    from rich.text import Text

    from hfprep.pipeline.console import console

    class Arrived(DownloadColumn):
        max_refresh = 0.5

        def render(self, task: Task) -> Text:
            bar.update(task.id, completed=min(num_bytes, arrived()))
            return super().render(task)

    columns = (BarColumn(), Arrived(), TextColumn("left"), TimeRemainingColumn())
    with Progress(*columns, console=console(), transient=True, disable=not console().is_terminal) as bar:
        bar.add_task("", total=num_bytes)
        yield
