"""The console that progress and log lines share, so that they do not overwrite each other.

Provides `console`, `TerminalHandler` for log lines, `above_the_bar` for other handlers, and `in_notebook`.
"""

import contextlib
import functools
import logging
import os
import sys
import time
from collections.abc import Iterator

from rich.console import Console
from rich.text import Text

from hfprep.io.streams import lenient

STYLES = {logging.WARNING: "yellow", logging.ERROR: "red", logging.CRITICAL: "red"}


@functools.cache
def console() -> Console:
    """The process's console on the current stderr.

    For a terminal it has a separate descriptor, so that the bar is not captured when stderr is redirected.
    """
    file = None
    if sys.stderr is not None and sys.stderr.isatty():
        with contextlib.suppress(OSError, ValueError):
            descriptor = os.dup(sys.stderr.fileno())
            file = lenient(open(descriptor, "w", encoding=sys.stderr.encoding), descriptor)  # noqa: SIM115 - stays open
    return Console(file=file, stderr=True, highlight=False, markup=False, emoji=False)


def in_notebook() -> bool:
    """Whether this runs in a notebook's kernel."""
    ipython = sys.modules.get("IPython")
    return ipython is not None and hasattr(ipython.get_ipython(), "kernel")


class TerminalHandler(logging.Handler):
    """Shows log lines above the bar: time, level (of warnings and errors), and the formatted message."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            when = time.strftime("%H:%M:%S", time.localtime(record.created))
            line = Text.assemble((when, "dim"), " ", overflow="fold")
            if record.levelno >= logging.WARNING:
                line.append(f"{record.levelname.lower()}: ", STYLES.get(record.levelno, "red"))
            line.append(self.format(record))
            console().print(line)
        except Exception:  # noqa: BLE001 - as all handlers of logging do
            self.handleError(record)


@contextlib.contextmanager
def above_the_bar(stderr: object) -> Iterator[None]:
    """Make handlers that write to `stderr`, the stream before a bar was shown, write above the bar."""
    loggers = [logging.getLogger("hfprep"), logging.getLogger()]
    handlers = [handler for logger in loggers for handler in logger.handlers]
    moved = [item for item in handlers if isinstance(item, logging.StreamHandler) and item.stream is stderr]
    for handler in moved:
        handler.setStream(sys.stderr)
    try:
        yield
    finally:
        for handler in moved:
            handler.setStream(stderr)
