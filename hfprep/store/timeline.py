"""What each batch of an output's builds took, as JSON lines; only the report reads them.

Provides `Timeline` to append to and `read_timeline`. A line: `time` (seconds since 1970), `rows`, `rejected`,
`num_frames`, `padded_frames`, `audio_seconds`, `out_of_memory_events`. A build starts with {"time": ..., "start":
true}.
"""

import json
import time
from pathlib import Path
from typing import Any

from hfprep.io import atomic

TIMELINE = "batches.jsonl"
MAX_BYTES = 8 << 20  # about 60,000 batches; a larger file loses every second line at the next start


class Timeline:
    """Appends one line per batch; a context manager. A kill can only lose lines of this file."""

    def __init__(self, private: Path) -> None:
        self.path = private / TIMELINE

    def __enter__(self) -> "Timeline":
        with atomic.explained(self.path):
            if self.path.is_file() and self.path.stat().st_size > MAX_BYTES:
                lines = self.path.read_bytes().splitlines(keepends=True)
                atomic.write_lines(self.path, (line for n, line in enumerate(lines) if n % 2 or b'"start"' in line))
            self._stream = open(self.path, "a", encoding="utf-8")
        self.add(start=True)
        return self

    def __exit__(self, *_: object) -> None:
        with atomic.explained(self.path):
            self._stream.close()

    def add(self, **values: Any) -> None:
        with atomic.explained(self.path):
            self._stream.write(json.dumps({"time": round(time.time(), 3), **values}) + "\n")
            self._stream.flush()


def read_timeline(private: Path) -> list[dict[str, Any]]:
    """All valid lines; an empty list if there is no file."""
    try:
        lines = (private / TIMELINE).read_bytes().splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and "time" in row and all(isinstance(value, int | float) for value in row.values()):
            found.append(row)
    return found
