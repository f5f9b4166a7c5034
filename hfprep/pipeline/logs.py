"""Logging to stderr and to the build's log file."""

import contextlib
import json
import logging
import os
import sys
import time
from collections.abc import Iterator
from io import TextIOWrapper
from pathlib import Path

from hfprep.io.atomic import NO_LINK, explained
from hfprep.io.printable import printable, printable_json, printable_lines
from hfprep.io.record import record
from hfprep.pipeline.console import TerminalHandler, console, in_notebook

LINE = "%(asctime)s %(levelname)s %(message)s"


class PlainFormatter(logging.Formatter):
    """Lines for people. Text from data cannot add lines or control the terminal."""

    def format(self, record: logging.LogRecord) -> str:
        return printable_lines(super().format(_without_line_ends(record)))


class JsonFormatter(logging.Formatter):
    """One JSON object per line: time, level, logger, message."""

    def format(self, record: logging.LogRecord) -> str:
        when = time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(record.created))
        message = _without_line_ends(record).getMessage()
        fields = {"time": when, "level": record.levelname, "logger": record.name, "message": message}
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        return printable_json(json.dumps(fields, ensure_ascii=False))


def formatter(as_json: bool) -> logging.Formatter:
    """Plain lines or JSON objects."""
    return JsonFormatter() if as_json else PlainFormatter(LINE)


def _without_line_ends(record: logging.LogRecord) -> logging.LogRecord:
    """The record with strings, paths and exceptions among its arguments on one line each."""
    if not isinstance(record.args, tuple):
        return record
    copy = logging.makeLogRecord(record.__dict__)
    kinds = str | os.PathLike | Exception
    copy.args = tuple(printable(value) if isinstance(value, kinds) else value for value in record.args)
    return copy


class _LogFile(logging.FileHandler):
    """Appends to a file; refuses a symbolic link in its place."""

    def _open(self) -> TextIOWrapper:
        with explained(self.baseFilename):
            descriptor = os.open(self.baseFilename, os.O_WRONLY | os.O_CREAT | os.O_APPEND | NO_LINK, 0o666)
        return open(descriptor, "a", encoding=self.encoding)


class _AsConfigured(logging.Handler):
    """Passes records on as the program configured a logger: from its level, to its handlers and to those above it."""

    def __init__(self, logger: logging.Logger) -> None:
        super().__init__(logger.level)
        self._configured = logging.Logger(logger.name)
        self._configured.handlers = logger.handlers[:]
        self._configured.parent, self._configured.propagate = logger.parent, logger.propagate

    def emit(self, record: logging.LogRecord) -> None:
        self._configured.callHandlers(record)


@contextlib.contextmanager
def log_to_file(path: Path, *, as_json: bool) -> Iterator[None]:
    """Append hfprep's log lines to a file, whatever level the program has set; those of `record` only go there."""
    handler = _LogFile(path, encoding="utf-8")
    handler.setFormatter(formatter(as_json))
    logger = logging.getLogger("hfprep")
    with contextlib.ExitStack() as stack:
        stack.callback(handler.close)
        for one in (logger, record):
            stack.enter_context(_restored(one))
        if logger.level > logging.INFO:
            logger.handlers[:] = [_AsConfigured(logger)]
            logger.propagate = False
        record.propagate = False
        for one in (logger, record):
            one.addHandler(handler)
        if logger.getEffectiveLevel() > logging.INFO:
            logger.setLevel(logging.INFO)
        yield


def log_handler(*, as_json: bool) -> logging.Handler:
    """The handler that shows log lines; in a terminal, above the bar."""
    if console().is_terminal and not as_json:
        handler: logging.Handler = TerminalHandler()
        handler.setFormatter(PlainFormatter("%(message)s"))
    else:
        handler = logging.StreamHandler(sys.stdout if in_notebook() else sys.stderr)
        handler.setFormatter(formatter(as_json))
    return handler


@contextlib.contextmanager
def log_shown(*, shown: bool) -> Iterator[None]:
    """Show hfprep's log lines, if the program has not configured logging."""
    logger = logging.getLogger("hfprep")
    if not shown or logger.hasHandlers():
        yield
        return
    with _restored(logger):
        logger.addHandler(log_handler(as_json=False))
        if logger.level == logging.NOTSET:
            logger.setLevel(logging.INFO)
        yield


@contextlib.contextmanager
def _restored(logger: logging.Logger) -> Iterator[None]:
    handlers, level, propagate = logger.handlers[:], logger.level, logger.propagate
    try:
        yield
    finally:
        logger.handlers[:] = handlers
        logger.setLevel(level)
        logger.propagate = propagate
