"""Rows of Arrow tables, whatever file they come from: which column is the audio, and values as JSON knows them.

Columns of bytes (pictures, other audio) are left out. Labels that are numbers with names get their names.
"""

import datetime
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import datasets
import pyarrow as pa

from hfprep.errors import ConfigError
from hfprep.inputs.audio.containers import holds_clips
from hfprep.inputs.manifest.field_map import FieldMap

PATH, BYTES = "path", "bytes"  # the fields of an Audio column


@dataclass(frozen=True)
class Columns:
    """The columns of a table that are read, the one that is the audio, and the names of numbered labels."""

    audio: str
    read: tuple[str, ...]
    in_bytes: bool
    names: Mapping[str, Sequence[str]]

    @classmethod
    def choose(cls, schema: Any, fields: FieldMap, where: str) -> "Columns":
        """Hold a schema against the field map. Raises ConfigError."""
        fields.check(schema.names, where)
        audio = fields.source("audio")
        kind = schema.field(audio).type
        children = {item.name: item.type for item in kind} if pa.types.is_struct(kind) else {}
        as_struct = holds_clips(children.get(BYTES, pa.null()))
        if not as_struct and not holds_clips(kind) and not _is_text(kind):
            raise ConfigError(
                f"{where}: the column {audio!r} holds {kind}, which is neither paths nor encoded audio; say which one "
                "is: --map audio=COLUMN (an Audio column, bytes of audio files, or paths)"
            )
        read = tuple(item.name for item in schema if item.name != audio and not _any_bytes(item.type))
        return cls(audio, read, as_struct or holds_clips(kind), _label_names(schema))

    def rows(self, batch: Any) -> Iterator[dict[str, Any]]:
        """The rows of a record batch without the audio."""
        for row in batch.select([name for name in self.read if name in batch.schema.names]).to_pylist():
            yield {name: self._value(name, value) for name, value in row.items()}

    def _value(self, name: str, value: Any) -> Any:
        names = self.names.get(name)
        if names and isinstance(value, int):
            return names[value] if 0 <= value < len(names) else None
        return plain(value)


def plain(value: Any) -> Any:
    """A value as JSON can hold it: NaN as None, times in ISO form, what it does not know as text."""
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


def clip_name(path: str | None) -> str:
    """The name by which a clip inside a file goes: that of the file it was made from, without folders."""
    return "" if path is None else PurePosixPath(path.replace("\\", "/")).name


def _is_text(kind: Any) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _any_bytes(kind: Any) -> bool:
    if pa.types.is_struct(kind):
        return any(_any_bytes(item.type) for item in kind)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return _any_bytes(kind.value_type)
    return holds_clips(kind) or bool(pa.types.is_fixed_size_binary(kind))


def _label_names(schema: Any) -> dict[str, Sequence[str]]:
    """Names of numbered labels, from what `datasets` notes in a schema."""
    if b"huggingface" not in (schema.metadata or {}):
        return {}
    features = datasets.Features.from_arrow_schema(schema)
    return {name: feature.names for name, feature in features.items() if isinstance(feature, datasets.ClassLabel)}
