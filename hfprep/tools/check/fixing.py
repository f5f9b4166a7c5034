"""Writes the manifest of `check --fix`: the lines that a build would accept, in the format of its suffix.

A build reads it with the same --map. JSON lines are copied unchanged if possible.
"""

import csv
import io
import json
import os
import tempfile
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from hfprep.errors import ConfigError
from hfprep.inputs.manifest.field_map import AUDIO, LINE, FieldMap
from hfprep.inputs.manifest.rows import AudioFinder, RawRow, parse_object
from hfprep.io import atomic
from hfprep.io.json_text import json_text
from hfprep.io.object_storage import is_url
from hfprep.schema import Utterance

TABLES = {".csv": ",", ".tsv": "\t", ".tab": "\t"}
LINES = (".jsonl", ".json", ".txt", "")


class FixedManifest:
    """Writes a manifest atomically at the end of the `with` block; raises ConfigError for unsupported formats."""

    def __init__(self, path: Path, fields: FieldMap, audio_root: Path | None = None) -> None:
        suffix = path.suffix.lower()
        if suffix not in TABLES and suffix not in LINES:
            raise ConfigError(f"--fix is {str(path)!r}; it must end in .jsonl, .csv or .tsv")
        if fields.source("id") == LINE:
            raise ConfigError(
                f"--fix cannot be used with --map id={LINE}: without the omitted lines, other lines would get new ids"
            )
        self.path = path
        self.fields = fields
        self.delimiter = TABLES.get(suffix)
        self._finder = AudioFinder(path, audio_root)
        self._columns: dict[str, None] = {}
        self._stack = ExitStack()

    def __enter__(self) -> "FixedManifest":
        self._stream: BinaryIO = self._stack.enter_context(atomic.replacing(self.path))
        # The columns of a table are known only after all rows.
        self._rows = self._stack.enter_context(tempfile.TemporaryFile()) if self.delimiter else self._stream
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with self._stack as stack:
            if self.delimiter is not None and kind is None:
                self._write_table(self.delimiter)
            elif kind is not None:
                stack.__exit__(kind, error, traceback)

    def add(self, raw: RawRow, utterance: Utterance) -> None:
        """Write a row; the audio path becomes absolute if it would not be found from the new manifest's folder."""
        found = self._finder.find(utterance.audio)
        stands = found == utterance.path or _same_file(found, utterance.path)
        if stands and isinstance(raw, bytes) and self.delimiter is None:
            self._rows.write(raw.rstrip(b"\r\n") + b"\n")
            return
        values = dict(parse_object(raw))
        if not stands:
            values["audio"] = utterance.path if is_url(utterance.path) else os.path.abspath(utterance.path)
        # Under the field names of the input, for the same --map.
        named = {self.fields.source(name): value for name, value in values.items()}
        row = {str(name): value for name, value in named.items() if name != AUDIO}
        self._columns |= dict.fromkeys(row)
        self._rows.write(json_text(row).encode() + b"\n")

    def _write_table(self, delimiter: str) -> None:
        columns = list(self._columns)
        self._stream.write(self._table_line(columns, delimiter))
        self._rows.seek(0)
        for row in map(json.loads, self._rows):
            self._stream.write(self._table_line([_cell(row.get(name)) for name in columns], delimiter))

    def _table_line(self, values: list[str], delimiter: str) -> bytes:
        if delimiter == "\t":
            if any(letter in value for value in values for letter in "\t\r\n"):
                raise ConfigError(
                    f"--fix is {str(self.path)!r}, but a field contains a tab or a line break; write .csv"
                )
            return "\t".join(map(_quoted, values)).encode("utf-8", "replace") + b"\n"
        line = io.StringIO()
        csv.writer(line, delimiter=delimiter, lineterminator="\n").writerow(values)
        return line.getvalue().encode("utf-8", "replace")


def _quoted(value: str) -> str:
    """A field of a TSV. A field that is already quoted is quoted again, or it would lose its quotes when read."""
    quoted = len(value) > 1 and value.startswith('"') and value.endswith('"')
    return '"' + value.replace('"', '""') + '"' if quoted else value


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _same_file(one: str, other: str) -> bool:
    try:
        return os.path.samefile(one, other)
    except OSError:
        return False
