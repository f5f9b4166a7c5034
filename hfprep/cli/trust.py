"""The commands that look before and after a build, gathered for the program."""

import typer

from hfprep.cli.check import check
from hfprep.cli.doctor import doctor, download
from hfprep.cli.report import report
from hfprep.cli.verify import verify


def register(app: typer.Typer) -> None:
    """Give the program these commands."""
    app.command("check")(check)
    app.command("verify")(verify)
    app.command("report")(report)
    app.command("doctor")(doctor)
    app.command("download")(download)
