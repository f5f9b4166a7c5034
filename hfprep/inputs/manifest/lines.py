"""Formats with one row per line: JSONL, CSV, TSV, and the metadata.csv of an LJSpeech folder.

Rows are numbered by the file's lines, from 1; a CSV row of several lines has the number of its first. An unreadable row
is returned as a RejectedSample that says why, and the rows after it are read.
"""

import contextlib
import csv
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from hfprep.errors import ConfigError, Reason, RejectedSample
from hfprep.inputs.manifest.field_map import FIELDS, NUMBERS, FieldMap
from hfprep.inputs.manifest.rows import (
    MAX_LINE_BYTES,
    RawRow,
    decoded,
    numbered_lines,
    open_manifest,
    parse_object,
    skip_line,
)
from hfprep.io.json_text import is_encodable

DELIMITERS = ",;\t|"
MAX_LINES_PER_ROW = 200
TOO_LONG = b"\xff\n"  # replaces a line that is too long; not valid UTF-8, so the row is rejected
LJSPEECH_DELIMITER = "|"


def delimiter_of(header: str) -> str:
    """The delimiter of a header: the candidate that occurs most often."""
    return max(DELIMITERS, key=header.count)


@dataclass(frozen=True, slots=True)
class JsonLines:
    """One JSON object per line."""

    path: Path
    fields: FieldMap

    def lines(self) -> Iterator[tuple[int, RawRow]]:
        """Number and row of each line that is not blank."""
        for number, raw in numbered_lines(self.path):
            yield number, self.fields.applied(number, parse_object, raw) if self.fields.sources else raw


@dataclass(frozen=True, slots=True)
class Delimited:
    """CSV with a header, quoted as spreadsheets do (fields may contain line breaks), or TSV, where each line is a row.

    Columns without a name are left out. With `clips`, the audio of a table without an audio column is {clips}/{id}.wav.
    """

    path: Path
    fields: FieldMap
    tabs: bool = False
    clips: str | None = None

    def lines(self) -> Iterator[tuple[int, RawRow]]:
        """Number and content of each row after the header. Raises ConfigError if the header is invalid."""
        header: _Header | None = None
        for number, values in self._tab_rows() if self.tabs else self._comma_rows():
            if header is None:
                header = self._header(number, values)
                continue
            yield number, self.fields.applied(number, header.row, values)

    def _header(self, number: int, values: "list[str] | RejectedSample") -> "_Header":
        where = f"--manifest {str(self.path)!r}"
        if isinstance(values, RejectedSample):
            raise ConfigError(f"{where}: line {number} should name the columns: {values.message}")
        columns = [name.strip() for name in values]
        used = {self.fields.source(name) for name in FIELDS}
        doubled = sorted({name for name in columns if name in used and columns.count(name) > 1})
        if doubled:
            raise ConfigError(f"{where}: line {number} names a column twice: {', '.join(map(repr, doubled))}")
        audio = self.fields.source("audio")
        derived = self.clips is not None and audio not in columns and self.fields.source("id") in columns
        self.fields.check([*columns, *([audio] if derived else [])], where)
        clips = (audio, self.fields.source("id"), self.clips or "") if derived else None
        return _Header(tuple(columns), tuple(map(self.fields.source, NUMBERS)), clips)

    def _tab_rows(self) -> Iterator[tuple[int, "list[str] | RejectedSample"]]:
        for number, raw in numbered_lines(self.path):
            try:
                yield number, [_unquoted(value) for value in decoded(raw).rstrip("\r\n").split("\t")]
            except RejectedSample as error:
                yield number, error

    def _comma_rows(self) -> Iterator[tuple[int, "list[str] | RejectedSample"]]:
        with open_manifest(self.path) as stream:
            lines = _Lines(stream)
            delimiter = None
            while (number := lines.start_row()) is not None:
                delimiter = delimiter or delimiter_of(lines.first())
                try:
                    values = next(csv.reader(lines, delimiter=delimiter, strict=True))
                except (csv.Error, StopIteration) as error:
                    lines.retry_after_first()
                    message = f"the row is not CSV: {error}; write quotes inside a field twice"
                    yield number, RejectedSample(Reason.INVALID_FIELD, message)
                    continue
                if values:
                    yield number, _encodable(values)


@dataclass
class _Lines:
    """Decoded lines; those of the current row are kept until it is complete."""

    stream: BinaryIO
    number: int = 0  # of the last line returned
    taken: list[str] = field(default_factory=list)
    waiting: deque[str] = field(default_factory=deque)

    def start_row(self) -> int | None:
        """Start a row at the next line that is not blank; returns its number, None at the end."""
        self.taken.clear()
        while (line := self._next()) is not None:
            if line.strip():
                self.waiting.appendleft(line)
                self.number -= 1
                return self.number + 1
        return None

    def first(self) -> str:
        """The first line of the row."""
        return self.waiting[0]

    def retry_after_first(self) -> None:
        """Push back all lines of the row except the first."""
        again = self.taken[1:]
        self.waiting.extendleft(reversed(again))
        self.number -= len(again)

    def _next(self) -> str | None:
        if self.waiting:
            line = self.waiting.popleft()
        else:
            raw = self.stream.readline(MAX_LINE_BYTES)
            if not raw:
                return None
            if len(raw) == MAX_LINE_BYTES and not raw.endswith(b"\n"):
                skip_line(self.stream)
                raw = TOO_LONG
            line = raw.decode("utf-8", "surrogateescape")
            if self.number == 0:
                line = line.removeprefix("\ufeff")
        self.number += 1
        return line

    def __iter__(self) -> "_Lines":
        return self

    def __next__(self) -> str:
        if len(self.taken) == MAX_LINES_PER_ROW:
            raise csv.Error(f"its quotes are still open after {MAX_LINES_PER_ROW} lines")
        line = self._next()
        if line is None:
            raise StopIteration
        self.taken.append(line)
        return line


def _encodable(values: list[str]) -> "list[str] | RejectedSample":
    if is_encodable("".join(values)):
        return values
    message = f"the row is not UTF-8, or longer than {MAX_LINE_BYTES >> 20} MiB; save the file as UTF-8"
    return RejectedSample(Reason.INVALID_ENCODING, message)


def _unquoted(value: str) -> str:
    """A field without its surrounding quotes, and with doubled quotes inside reduced to one; any other unchanged."""
    if len(value) < 2 or not value.startswith('"') or not value.endswith('"'):
        return value
    inner = value[1:-1]
    return value if '"' in inner.replace('""', "") else inner.replace('""', '"')


@dataclass(frozen=True, slots=True)
class _Header:
    """The columns of a table, which of them are numbers, and how to derive missing audio paths (field, id, folder).

    Of several columns with the same name, the first is used.
    """

    columns: tuple[str, ...]
    numbers: tuple[str, ...]
    clips: tuple[str, str, str] | None

    def row(self, values: "list[str] | RejectedSample") -> dict[str, Any]:
        """The row as a JSON object would have it, not yet checked. Raises RejectedSample."""
        if isinstance(values, RejectedSample):
            raise values
        given, named = len(values), len(self.columns)
        beyond, short = values[named:], self.columns[given:]
        if any(value.strip() for value in beyond) or any(short):  # unnamed columns may be missing
            raise RejectedSample(Reason.INVALID_FIELD, f"the row has {given} fields, the header has {named}")
        row: dict[str, Any] = {}
        for name, value in zip(self.columns, values, strict=False):
            if name:
                row.setdefault(name, value)
        for name in self.numbers:
            if name in row:
                with contextlib.suppress(ValueError):  # the row is rejected later, with the value
                    row[name] = float(row[name]) if row[name].strip() else None
        if self.clips is not None and row.get(self.clips[1]):
            audio, sample_id, folder = self.clips
            row[audio] = f"{folder}/{row[sample_id]}.wav"
        return row


@dataclass(frozen=True, slots=True)
class LJSpeech:
    """metadata.csv of lines `id|text|normalized text`, with the clips in wavs/<id>.wav.

    `text` is the normalized one, with numbers and abbreviations spelled out; the other one is in `raw_text`. A line
    with two fields has only one text.
    """

    path: Path
    fields: FieldMap

    def lines(self) -> Iterator[tuple[int, RawRow]]:
        """Number and row of each line."""
        for number, raw in numbered_lines(self.path):
            yield number, self.fields.applied(number, _ljspeech_row, raw)


def _ljspeech_row(raw: bytes | RejectedSample) -> dict[str, Any]:
    values = decoded(raw).rstrip("\r\n").split(LJSPEECH_DELIMITER)
    if not 2 <= len(values) <= 3:
        message = f"the line has {len(values)} fields; an LJSpeech line is id|text|normalized text"
        raise RejectedSample(Reason.INVALID_FIELD, message)
    sample_id, raw_text, *normalized = (value.strip() for value in values)
    text = (normalized and normalized[0]) or raw_text
    return {"id": sample_id, "text": text, "raw_text": raw_text, "audio": f"wavs/{sample_id}.wav"}
