"""What the commands print: text of data is shown, and never acts; a stream that is closed changes nothing else."""

import contextlib
import io
import os
import sys
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from hfprep.io.printable import printable, printable_lines

DETACHED_WIDTH = 120  # of tables that go to no terminal


def say(message: object, *, error: bool = False) -> None:
    """Print a message, to stderr if it is an error."""
    print(printable_lines(message), file=sys.stderr if error else sys.stdout)


def show(table: Table, width: int = DETACHED_WIDTH) -> None:
    """Print a table, as wide as the terminal or `width`."""
    console = Console(
        width=None if sys.stdout.isatty() else width, highlight=False, markup=False, emoji=False, file=sys.stdout
    )
    console.print(table)


class PlainTable(Table):
    """A table whose title and cells are text, whatever is in them; a `Text` is taken as it is."""

    def __init__(self, title: str | None = None, **options: Any) -> None:
        super().__init__(title=None if title is None else cell(title), title_justify="left", **options)

    def add_column(self, header: Any = "", *arguments: Any, **options: Any) -> None:
        """A column with its header."""
        super().add_column(_as_cell(header), *arguments, **options)

    def add_row(self, *cells: Any, **options: Any) -> None:
        """A row of values."""
        super().add_row(*map(_as_cell, cells), **options)


def cell(*lines: object) -> Text:
    """Values as the lines of a table's cell."""
    return Text("\n".join(map(printable, lines)))


def _as_cell(value: Any) -> Any:
    return cell(value) if isinstance(value, str) else value


class _Lenient(io.TextIOWrapper):
    """A stream to which writing never fails: from the first failure on nothing is written."""

    def write(self, text: str) -> int:
        with self._forgiving():
            super().write(text)
        return len(text)

    def flush(self) -> None:
        with self._forgiving():
            super().flush()

    @contextlib.contextmanager
    def _forgiving(self) -> Any:
        try:
            yield
        except (OSError, ValueError):  # a pipe whose reader is gone, a full disk, a closed file
            with contextlib.suppress(OSError, ValueError):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, self.fileno())  # what is in the buffer goes there, too
                os.close(nowhere)


def keep_streams() -> None:
    """See that stdin, stdout and stderr are open, and that writing to them cannot fail.

    A descriptor that is closed would be given to the next file that is opened, and whatever a library prints would go
    into that file.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest that is free: this one
    if sys.stdout is sys.__stdout__:  # else somebody collects what is printed
        sys.stdout = _lenient(sys.stdout, 1)
    if sys.stderr is sys.__stderr__:
        sys.stderr = _lenient(sys.stderr, 2)


def _lenient(stream: Any, descriptor: int) -> _Lenient:
    buffer = io.BufferedWriter(io.FileIO(descriptor, "wb", closefd=False)) if stream is None else stream.detach()
    terminal = os.isatty(descriptor)
    encoding = getattr(stream, "encoding", None) or "utf-8"
    return _Lenient(buffer, encoding, "backslashreplace", line_buffering=terminal or descriptor == 2)
