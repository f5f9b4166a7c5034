"""Where log lines go: stderr for people, a file beside the output for later."""

import contextlib
import json
import logging
import os
import time
from collections.abc import Iterator
from io import TextIOWrapper
from pathlib import Path

import datasets

from hfprep.io.atomic import NO_LINK, explained
from hfprep.io.printable import printable, printable_json, printable_lines

LINE = "%(asctime)s %(levelname)s %(message)s"


class PlainFormatter(logging.Formatter):
    """Lines for people. What came from data stays on its line and is never a terminal's command."""

    def format(self, record: logging.LogRecord) -> str:
        return printable_lines(super().format(_without_line_ends(record)))


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, logger, message."""

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
    """The record with values that are text, or a path, on one line each."""
    if not isinstance(record.args, tuple):
        return record
    copy = logging.makeLogRecord(record.__dict__)
    kinds = str | os.PathLike | Exception
    copy.args = tuple(printable(value) if isinstance(value, kinds) else value for value in record.args)
    return copy


class _LogFile(logging.FileHandler):
    """Appends to a file; a symbolic link in its place is not followed."""

    def _open(self) -> TextIOWrapper:
        with explained(self.baseFilename):
            descriptor = os.open(self.baseFilename, os.O_WRONLY | os.O_CREAT | os.O_APPEND | NO_LINK, 0o666)
        return open(descriptor, "a", encoding=self.encoding)


@contextlib.contextmanager
def log_to_file(path: Path, *, as_json: bool) -> Iterator[None]:
    """Append hfprep's log lines to a file while inside."""
    handler = _LogFile(path, encoding="utf-8")
    handler.setFormatter(formatter(as_json))
    logger = logging.getLogger("hfprep")
    level = logger.level
    if logger.getEffectiveLevel() > logging.INFO:
        logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        handler.close()


@contextlib.contextmanager
def no_progress_bars() -> Iterator[None]:
    """Keep `datasets` from drawing bars while inside."""
    shown = datasets.are_progress_bars_disabled() is False
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()
