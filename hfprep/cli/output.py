"""Printing of the commands: data is never interpreted as markup or control codes, and closed streams are harmless."""

import os
import sys
from collections.abc import Collection
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from hfprep.io.printable import printable, printable_lines
from hfprep.io.streams import lenient

DETACHED_WIDTH = 80  # of tables without a terminal


def say(message: object, *, error: bool = False) -> None:
    """Print a message, to stderr if it is an error."""
    print(printable_lines(message), file=sys.stderr if error else sys.stdout)


def show(table: Table) -> None:
    """Print a table, at most as wide as the terminal, or 80 columns; the title is not wrapped."""
    width = None if sys.stdout.isatty() else DETACHED_WIDTH
    console = Console(width=width, highlight=False, markup=False, emoji=False, file=sys.stdout)
    if table.title is not None:
        console.print(table.title, style=table.title_style, soft_wrap=True)
        table.title = None
    console.print(table)


class PlainTable(Table):
    """A table whose title and cells are plain text; a `Text` is used unchanged.

    Long cells are wrapped, except in the columns `numbers`, which are right-justified: nothing is cut at 80 columns.
    """

    def __init__(self, title: str | None = None, *columns: str, numbers: Collection[str] = (), **options: Any) -> None:
        super().__init__(title=None if title is None else cell(title), title_justify="left", **options)
        for column in columns:
            self.add_column(column, justify="right" if column in numbers else "left")

    def add_column(self, header: Any = "", *arguments: Any, **options: Any) -> None:
        """Add a column with its header."""
        usual: dict[str, Any] = {"overflow": "fold", "no_wrap": options.get("justify") == "right"}
        super().add_column(_as_cell(header), *arguments, **usual | options)

    def add_row(self, *cells: Any, **options: Any) -> None:
        """Add a row of values."""
        super().add_row(*map(_as_cell, cells), **options)


def cell(*lines: object) -> Text:
    """Values as the lines of a table's cell."""
    return Text("\n".join(map(printable, lines)))


def _as_cell(value: Any) -> Any:
    return cell(value) if isinstance(value, str) else value


def keep_streams() -> None:
    """Make sure that stdin, stdout and stderr are open, and that writing to them cannot fail.

    Otherwise the next opened file would get the closed descriptor, and the output of libraries would go to that file.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free descriptor, which is this one
    if sys.stdout is sys.__stdout__:  # otherwise output is captured
        sys.stdout = lenient(sys.stdout, 1)
    if sys.stderr is sys.__stderr__:
        sys.stderr = lenient(sys.stderr, 2)
