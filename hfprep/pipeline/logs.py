"""Where log lines go: stderr for people, a file beside the output for later."""

import contextlib
import json
import logging
import time
from collections.abc import Iterator
from pathlib import Path

LINE = "%(asctime)s %(levelname)s %(message)s"


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, logger, message."""

    def format(self, record: logging.LogRecord) -> str:
        when = time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(record.created))
        fields = {"time": when, "level": record.levelname, "logger": record.name, "message": record.getMessage()}
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        return json.dumps(fields, ensure_ascii=False)


def formatter(as_json: bool) -> logging.Formatter:
    """Plain lines or JSON objects."""
    return JsonFormatter() if as_json else logging.Formatter(LINE)


@contextlib.contextmanager
def log_to_file(path: Path, *, as_json: bool) -> Iterator[None]:
    """Append hfprep's log lines to a file while inside."""
    handler = logging.FileHandler(path, encoding="utf-8", delay=True)
    handler.setFormatter(formatter(as_json))
    logger = logging.getLogger("hfprep")
    if logger.getEffectiveLevel() > logging.INFO:
        logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        handler.close()
