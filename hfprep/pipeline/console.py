"""The one console that progress and log lines share, so that neither is written over the other.

Gives `console`, `TerminalHandler` for log lines, `above_the_bar` for handlers of others, and `in_notebook`.
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
    """The process's console on stderr, whatever stderr is at the time.

    A terminal gets a separate descriptor, so that the bar is not caught with what others write to stderr.
    """
    file = None
    if sys.stderr is not None and sys.stderr.isatty():
        with contextlib.suppress(OSError, ValueError):
            descriptor = os.dup(sys.stderr.fileno())
            file = lenient(open(descriptor, "w", encoding=sys.stderr.encoding), descriptor)  # noqa: SIM115 - stays open
    return Console(file=file, stderr=True, highlight=False, markup=False, emoji=False)


def in_notebook() -> bool:
    """Whether a notebook's kernel runs this."""
    ipython = sys.modules.get("IPython")
    return ipython is not None and hasattr(ipython.get_ipython(), "kernel")


class TerminalHandler(logging.Handler):
    """Shows log lines above the bar: the time, the level of warnings and errors, and what its formatter gives."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            when = time.strftime("%H:%M:%S", time.localtime(record.created))
            line = Text.assemble((when, "dim"), " ", overflow="fold")
            if record.levelno >= logging.WARNING:
                line.append(f"{record.levelname.lower()}: ", STYLES.get(record.levelno, "red"))
            line.append(self.format(record))
            console().print(line)
        except Exception:  # noqa: BLE001 - as every handler of logging does
            self.handleError(record)


@contextlib.contextmanager
def above_the_bar(stderr: object) -> Iterator[None]:
    """While inside, handlers that write to `stderr`, as it was before a bar was shown, write above the bar."""
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
