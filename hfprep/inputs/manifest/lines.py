"""Formats with one row per line: JSONL, CSV, TSV, and the metadata.csv of an LJSpeech folder.

Rows are numbered by the file's lines, from 1; a CSV row of several lines has the number of its first. An unreadable row
is returned as a RejectedSample that says why, and the rows after it are read.
"""

import contextlib
import csv
from collections import deque
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from hfprep.errors import ConfigError, Reason, RejectedSample
from hfprep.inputs.manifest.field_map import FIELDS, NUMBERS, FieldMap
from hfprep.inputs.manifest.rows import (
    MAX_LINE_BYTES,
    NumberedRow,
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

_Values = list[str] | RejectedSample  # the fields of a row, or why it could not be read


def json_lines(path: Path, fields: FieldMap) -> Iterator[NumberedRow]:
    """Number and row of each line that is not blank: one JSON object per line."""
    lines = numbered_lines(path)
    return fields.applied_to(lines, parse_object) if fields.sources else lines


def ljspeech(path: Path, fields: FieldMap) -> Iterator[NumberedRow]:
    """The rows of metadata.csv with lines `id|text|normalized text`, and the clips in wavs/<id>.wav.

    `text` is the normalized one, with numbers and abbreviations spelled out; the other one is in `raw_text`. A line
    with two fields has only one text.
    """
    return fields.applied_to(numbered_lines(path), _ljspeech_row)


def _ljspeech_row(raw: bytes | RejectedSample) -> dict[str, Any]:
    values = decoded(raw).rstrip("\r\n").split(LJSPEECH_DELIMITER)
    if not 2 <= len(values) <= 3:
        message = f"the line has {len(values)} fields; an LJSpeech line is id|text|normalized text"
        raise RejectedSample(Reason.INVALID_FIELD, message)
    sample_id, raw_text, *normalized = (value.strip() for value in values)
    text = (normalized and normalized[0]) or raw_text
    return {"id": sample_id, "text": text, "raw_text": raw_text, "audio": f"wavs/{sample_id}.wav"}


def table_rows(path: Path, fields: FieldMap, *, tabs: bool = False, clips: str | None = None) -> Iterator[NumberedRow]:
    """The rows of CSV, quoted as spreadsheets do (fields may contain line breaks), or TSV, where each line is a row.

    Of several columns with the same name the first is used, those without a name are left out. With `clips`, the audio
    of a table without an audio column is {clips}/{id}.wav. Raises ConfigError if the header is invalid.
    """
    rows = _tab_rows(path) if tabs else _comma_rows(path)
    first = next(rows, None)
    if first is None:
        return
    number, header = first
    where = f"--manifest {str(path)!r}"
    if isinstance(header, RejectedSample):
        raise ConfigError(f"{where}: line {number} should name the columns: {header.message}")
    columns = [name.strip() for name in header]
    used = {fields.source(name) for name in FIELDS}
    doubled = sorted({name for name in columns if name in used and columns.count(name) > 1})
    if doubled:
        raise ConfigError(f"{where}: line {number} names a column twice: {', '.join(map(repr, doubled))}")
    audio, sample_id = fields.source("audio"), fields.source("id")
    derived = clips is not None and audio not in columns and sample_id in columns
    fields.check([*columns, *([audio] if derived else [])], where)
    numbers = tuple(map(fields.source, NUMBERS))
    read = partial(_table_row, columns, numbers, (audio, sample_id, clips or "") if derived else None)
    yield from fields.applied_to(rows, read)


def _table_row(
    columns: list[str], numbers: tuple[str, ...], clips: tuple[str, str, str] | None, values: _Values
) -> dict[str, Any]:
    """The row as a JSON object would have it, not yet checked. Raises RejectedSample.

    `numbers` are the columns with numbers; `clips` says how to derive missing audio paths: field, id, folder.
    """
    if isinstance(values, RejectedSample):
        raise values
    given, named = len(values), len(columns)
    if any(value.strip() for value in values[named:]) or any(columns[given:]):  # unnamed columns may be missing
        raise RejectedSample(Reason.INVALID_FIELD, f"the row has {given} fields, the header has {named}")
    row: dict[str, Any] = {}
    for name, value in zip(columns, values, strict=False):
        if name:
            row.setdefault(name, value)
    for name in numbers:
        if name in row:
            with contextlib.suppress(ValueError):  # the row is rejected later, with the value
                row[name] = float(row[name]) if row[name].strip() else None
    if clips is not None and row.get(clips[1]):
        audio, sample_id, folder = clips
        row[audio] = f"{folder}/{row[sample_id]}.wav"
    return row


def _tab_rows(path: Path) -> Iterator[tuple[int, _Values]]:
    for number, raw in numbered_lines(path):
        try:
            yield number, [_unquoted(value) for value in decoded(raw).rstrip("\r\n").split("\t")]
        except RejectedSample as error:
            yield number, error


def _unquoted(value: str) -> str:
    """A field without its surrounding quotes, and with doubled quotes inside reduced to one; any other unchanged."""
    if len(value) < 2 or not value.startswith('"') or not value.endswith('"'):
        return value
    inner = value[1:-1]
    return value if '"' in inner.replace('""', "") else inner.replace('""', '"')


def _comma_rows(path: Path) -> Iterator[tuple[int, _Values]]:
    """Number and fields of each row; after a row that is not CSV, reading goes on with its second line."""
    delimiter, number = None, 0
    with open_manifest(path) as stream:
        lines = _Lines(stream)
        for first in lines:
            number += 1
            if not first.strip():
                continue
            delimiter = delimiter or max(DELIMITERS, key=first.count)  # the candidate that occurs most often
            more: list[str] = []
            try:
                values = next(csv.reader(_lines_of_row(first, lines, more), delimiter=delimiter, strict=True))
            except (csv.Error, StopIteration) as error:
                lines.again.extendleft(reversed(more))
                message = f"the row is not CSV: {error}; write quotes inside a field twice"
                yield number, RejectedSample(Reason.INVALID_FIELD, message)
                continue
            if values and not is_encodable("".join(values)):
                message = f"the row is not UTF-8, or longer than {MAX_LINE_BYTES >> 20} MiB; save the file as UTF-8"
                yield number, RejectedSample(Reason.INVALID_ENCODING, message)
            elif values:
                yield number, values
            number += len(more)


def _lines_of_row(first: str, lines: Iterator[str], more: list[str]) -> Iterator[str]:
    """The first line and those after it, which are added to `more`, until the row is complete."""
    yield first
    for _ in range(1, MAX_LINES_PER_ROW):
        line = next(lines, None)
        if line is None:
            return
        more.append(line)
        yield line
    raise csv.Error(f"its quotes are still open after {MAX_LINES_PER_ROW} lines")


class _Lines(Iterator[str]):
    """Decoded lines of a file; those in `again` are returned again first."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self.again: deque[str] = deque()

    def __next__(self) -> str:
        if self.again:
            return self.again.popleft()
        raw = self._stream.readline(MAX_LINE_BYTES)
        if not raw:
            raise StopIteration
        if len(raw) == MAX_LINE_BYTES and not raw.endswith(b"\n"):
            skip_line(self._stream)
            raw = TOO_LONG
        return raw.decode("utf-8", "surrogateescape")
