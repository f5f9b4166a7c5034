"""Converts Arrow tables of any file to rows: finds the audio column, and makes values JSON-compatible.

The tables are untrusted: every column is validated before it is read. An unreadable cell rejects its row if hfprep
needs the column, otherwise the cell is left out. Binary columns (images, other audio) are left out. Numeric class
labels are replaced by their names.
"""

import datetime
import json
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa

from hfprep.errors import ConfigError, Reason, RejectedSample
from hfprep.inputs.manifest.field_map import FIELDS, FieldMap
from hfprep.io.arrow_types import holds_audio, holds_clips, holds_text
from hfprep.io.words import first_line

PATH, BYTES = "path", "bytes"  # the fields of an Audio column
# Errors of Arrow and Python while reading a value: Arrow's (also ValueError, KeyError, ...), and dates after 9999.
UNREADABLE = (pa.ArrowException, ValueError, ArithmeticError, LookupError, TypeError, NotImplementedError, MemoryError)


@dataclass(frozen=True, slots=True)
class Unreadable:
    """Replaces a value that could not be read."""

    problem: str

    def rejection(self, column: str) -> RejectedSample:
        """The rejection of a row that needs this value."""
        encoding = "utf8" in self.problem.lower().replace("-", "")
        reason = Reason.INVALID_ENCODING if encoding else Reason.INVALID_FIELD
        return RejectedSample(reason, f"the column {column!r} cannot be read in this row: {self.problem}")


@dataclass(frozen=True)
class Columns:
    """The columns of a table that are read, the audio column, and the names of class labels.

    `ours` are the columns that hfprep's own fields come from. Of other columns with the same name, the first is used.
    """

    audio: str
    read: tuple[str, ...]
    ours: frozenset[str]
    in_bytes: bool
    names: Mapping[str, Sequence[str]]

    @classmethod
    def choose(cls, schema: Any, fields: FieldMap, where: str) -> "Columns":
        """Choose the columns by a schema and the field map. Raises ConfigError."""
        names = schema.names
        fields.check(names, where)
        ours = frozenset(fields.source(name) for name in FIELDS).intersection(names)
        doubled = sorted(name for name in ours if names.count(name) > 1)
        if doubled:
            raise ConfigError(f"{where} has a column twice: {', '.join(map(repr, doubled))}; rename one of them")
        audio = fields.source("audio")
        kind = schema.field(audio).type
        if not holds_audio(kind) and not holds_text(kind):
            raise ConfigError(
                f"{where}: the column {audio!r} has the type {kind}, which is neither paths nor encoded audio; choose "
                "another one: --map audio=COLUMN (an Audio column, bytes of audio files, or paths)"
            )
        read = tuple(dict.fromkeys(item.name for item in schema if item.name != audio and not _any_bytes(item.type)))
        return cls(audio, read, ours, holds_audio(kind), _label_names(schema))

    def rows(self, batch: Any, clips: Sequence[Any]) -> Iterator[dict[str, Any] | RejectedSample]:
        """The rows of a record batch; `clips` are the audio values, which may be `Unreadable`."""
        present = batch.schema.names
        read = [(name, cell_values(batch.column(present.index(name)))) for name in self.read if name in present]
        for index, clip in enumerate(clips):
            row: dict[str, Any] = {}
            rejection = clip.rejection(self.audio) if isinstance(clip, Unreadable) else None
            for name, values in read:
                value = values[index]
                if not isinstance(value, Unreadable):
                    row[name] = self._value(name, value)
                elif name in self.ours:
                    rejection = rejection or value.rejection(name)
            row[self.audio] = clip
            yield rejection or row

    def _value(self, name: str, value: Any) -> Any:
        names = self.names.get(name)
        if names and isinstance(value, int):
            return names[value] if 0 <= value < len(names) else None
        return value


def cell_values(column: Any) -> list[Any]:
    """The values of an array, JSON-compatible; `Unreadable` for damaged ones."""
    try:
        column.validate(full=True)
        return [plain(value) for value in column.to_pylist()]
    except UNREADABLE:
        return [_cell_value(column, index) for index in range(len(column))]


def clip_paths(column: Any) -> list[Any]:
    """The paths in an audio column; a row with a clip does not need a readable one."""
    if not pa.types.is_struct(column.type):
        return cell_values(column)
    return cell_values(column.field(PATH)) if column.type.get_field_index(PATH) >= 0 else [None] * len(column)


def _cell_value(column: Any, index: int) -> Any:
    try:
        cell = column.slice(index, 1)
        cell.validate(full=True)  # before it is read: invalid offsets would be followed
        return plain(cell[0].as_py())
    except UNREADABLE as error:
        return Unreadable(first_line(error))


def plain(value: Any) -> Any:
    """A JSON-compatible value: NaN as None, dates and times in ISO format, unknown types as text."""
    match value:
        case float():
            return value if math.isfinite(value) else None
        case None | bool() | int() | str():
            return value
        case dict():
            return {str(name): plain(item) for name, item in value.items()}
        case list() | tuple():
            return [plain(item) for item in value]
        case datetime.date() | datetime.time():
            return value.isoformat()
    return str(value)


def clip_name(path: Any) -> str:
    """The name of a clip inside a file: that of its original file, without folders."""
    return PurePosixPath(path.replace("\\", "/")).name if isinstance(path, str) else ""


def _any_bytes(kind: Any) -> bool:
    if pa.types.is_dictionary(kind):
        return _any_bytes(kind.value_type)
    if isinstance(kind, pa.BaseExtensionType):
        return _any_bytes(kind.storage_type)
    inner = any(_any_bytes(kind.field(index).type) for index in range(kind.num_fields))
    return inner or holds_clips(kind) or bool(pa.types.is_fixed_size_binary(kind))


def _label_names(schema: Any) -> dict[str, Sequence[str]]:
    """Names of class labels, from the metadata that `datasets` stores in a schema; empty if that is invalid."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, ValueError, TypeError, RecursionError):
        return {}
    labels: dict[str, Sequence[str]] = {}
    for name, feature in features.items() if isinstance(features, Mapping) else ():
        names = feature.get("names") if isinstance(feature, Mapping) else None
        if isinstance(names, Collection) and not isinstance(names, str) and feature.get("_type") == "ClassLabel":
            labels[name] = [str(item) for item in names]
    return labels
