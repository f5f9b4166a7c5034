"""The commands for many machines, gathered for the program."""

import typer

from hfprep.cli.merge import merge


def register(app: typer.Typer) -> None:
    """Give the program these commands."""
    app.command("merge")(merge)
