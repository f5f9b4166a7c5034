"""What a sample is: its columns, the groups they are computed in, and their limits. Plain data, no torch.

`Schema` describes the samples of one output and is stored in it. Store, formats, verification, report and loader need
nothing else, so they work without the recipe that made the output.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, NamedTuple, get_args

import numpy as np

from hfprep.errors import Reason

MAX_LENGTH = 2**31 - 1  # of an array's dimension: more than any sample has, and an index in every format
MAX_SECONDS = 1e8  # three years: longer than any recording, and sums stay finite
Kind = Literal["tokens", "codes", "vector"]
Source = Literal["text", "audio"]


@dataclass(frozen=True)
class Column:
    """One array of a sample; `name` is also its folder in the npy layout.

    `dims` are numbers, or names of lengths: ("text_len",), ("codebooks", "code_len"), ("condition_len", 1280). Tokens
    and codes are in [0, size); `pad` is their padding value in a trainer's batch. `about` is a short description.
    """

    name: str
    dtype: str
    dims: tuple[int | str, ...]
    group: str
    kind: Kind
    size: int | None = None
    pad: int = 0
    about: str = ""

    @property
    def numpy_dtype(self) -> np.dtype[Any]:
        return np.dtype(self.dtype)

    @property
    def ndim(self) -> int:
        return len(self.dims)

    @functools.cached_property
    def lengths(self) -> tuple[str, ...]:
        """Names of the lengths among its dims."""
        return tuple(dim for dim in self.dims if isinstance(dim, str))


@dataclass(frozen=True, slots=True)
class Group:
    """Columns that are computed, reused and fingerprinted together. Increment `numerics` when results change."""

    name: str
    source: Source
    numerics: int = 1


@dataclass(frozen=True, slots=True)
class RecordField:
    """A field of a manifest record derived from the field `source`: `values` maps its value, in lower case."""

    name: str
    source: str
    values: Mapping[str, Any]
    default: Any


@dataclass(frozen=True)
class Schema:
    """The samples of one output.

    `limits` are the model's maximum lengths (positions), by length name. `fixed` are lengths that are the same for
    every sample. `code_rate` is in codes per second, None without codes. `frame_rate` is in audio frames per second.
    """

    recipe: str
    columns: tuple[Column, ...]
    groups: tuple[Group, ...]
    frame_rate: float = 50.0
    code_rate: float | None = None
    limits: Mapping[str, int] = field(default_factory=dict)
    fixed: Mapping[str, int] = field(default_factory=dict)
    record_fields: tuple[RecordField, ...] = ()

    @functools.cached_property
    def by_name(self) -> dict[str, Column]:
        """The columns by name."""
        return {column.name: column for column in self.columns}

    @functools.cached_property
    def group_names(self) -> tuple[str, ...]:
        """Names of the groups, in order."""
        return tuple(group.name for group in self.groups)

    @functools.cached_property
    def all_groups(self) -> frozenset[str]:
        """Every group."""
        return frozenset(self.group_names)

    @functools.cached_property
    def audio_groups(self) -> frozenset[str]:
        """The groups that are computed from audio."""
        return frozenset(group.name for group in self.groups if group.source == "audio")

    @functools.cached_property
    def text_groups(self) -> frozenset[str]:
        """The groups that are computed from text."""
        return self.all_groups - self.audio_groups

    @functools.cached_property
    def fields(self) -> dict[str, type]:
        """The fields of a manifest record, except the paths of its arrays, and their types."""
        others = {x.name: str if x.default is None else type(x.default) for x in self.record_fields}
        return {**METADATA, **dict.fromkeys(self.lengths, int), **others}

    @functools.cached_property
    def lengths(self) -> tuple[str, ...]:
        """Names of all lengths, in the order of the columns."""
        return tuple(dict.fromkeys(name for column in self.columns for name in column.lengths))

    @functools.cached_property
    def group_lengths(self) -> dict[str, frozenset[str]]:
        """Names of the lengths of each group's columns."""
        return {
            group: frozenset(name for column in self.columns_of([group]) for name in column.lengths)
            for group in self.group_names
        }

    def columns_of(self, groups: Iterable[str]) -> tuple[Column, ...]:
        """The columns of these groups, in order."""
        wanted = frozenset(groups)
        return tuple(column for column in self.columns if column.group in wanted)

    def of_kind(self, kind: Kind) -> tuple[Column, ...]:
        """The columns of a kind, in order."""
        return tuple(column for column in self.columns if column.kind == kind)

    def max_length(self, kind: Kind) -> int | None:
        """The maximum number of tokens or codes that the model has positions for; None if unlimited."""
        names = [column.lengths[-1] for column in self.of_kind(kind) if column.lengths]
        return next((self.limits[name] for name in names if name in self.limits), None)

    def lengths_of(self, arrays: Mapping[str, np.ndarray]) -> dict[str, int]:
        """The lengths of these arrays, by name."""
        return {
            dim: size
            for name, array in arrays.items()
            for dim, size in zip(self.by_name[name].dims, array.shape, strict=True)
            if isinstance(dim, str)
        }

    def shape(self, column: Column, lengths: Mapping[str, int]) -> tuple[int, ...]:
        """The shape of a column of a sample with these lengths."""
        if not column.lengths:
            return column.dims  # type: ignore[return-value]  # numbers only
        return tuple([dim if isinstance(dim, int) else lengths[dim] for dim in column.dims])  # faster than a generator

    def problem(self, name: str, array: np.ndarray, lengths: Mapping[str, int], *, half: bool = False) -> str | None:
        """What is wrong with an array of a sample with these lengths; None if it is correct.

        With `half`, vectors may be float16.
        """
        column, dtype = self.by_name[name], array.dtype
        right = dtype == column.dtype or (half and column.kind == "vector" and dtype == np.float16)
        if not right or array.ndim != column.ndim:
            return f"{array.dtype} of shape {array.shape} instead of {column.dtype} with {column.ndim} dimension(s)"
        for dim, size in zip(column.dims, array.shape, strict=True):
            expected = dim if isinstance(dim, int) else lengths.get(dim)
            if expected is not None and size != expected:
                what = f"the record's {dim}" if isinstance(dim, str) else "the schema's size"
                return f"of shape {array.shape}, but {what} is {expected}"
        return None

    def record(self) -> dict[str, Any]:
        """The schema as a JSON object, as it is stored in an output; `parse` reads it."""
        return {
            "recipe": self.recipe,
            "columns": [
                {"name": x.name, "dtype": x.dtype, "dims": list(x.dims), "group": x.group, "kind": x.kind,
                 "size": x.size, "pad": x.pad, "about": x.about}
                for x in self.columns
            ],
            "groups": [{"name": x.name, "source": x.source, "numerics": x.numerics} for x in self.groups],
            "frame_rate": self.frame_rate,
            "code_rate": self.code_rate,
            "limits": dict(self.limits),
            "fixed": dict(self.fixed),
            "record_fields": [
                {"name": x.name, "source": x.source, "values": dict(x.values), "default": x.default}
                for x in self.record_fields
            ],
        }  # fmt: skip

    @classmethod
    def parse(cls, record: Mapping[str, Any]) -> Schema:
        """The schema from a JSON object made by `record`. Raises KeyError, TypeError or ValueError if it is invalid."""
        schema = cls(
            recipe=str(record["recipe"]),
            columns=tuple(Column(**{**item, "dims": tuple(item["dims"])}) for item in record["columns"]),
            groups=tuple(Group(**item) for item in record["groups"]),
            frame_rate=float(record["frame_rate"]),
            code_rate=None if record["code_rate"] is None else float(record["code_rate"]),
            limits={str(name): int(limit) for name, limit in dict(record["limits"]).items()},
            fixed={str(name): int(length) for name, length in dict(record["fixed"]).items()},
            record_fields=tuple(RecordField(**item) for item in record["record_fields"]),
        )
        for column in schema.columns:
            texts = (column.name, column.dtype, column.about)
            numbers = (column.pad, column.size or 0, *(dim for dim in column.dims if not isinstance(dim, str)))
            if not all(isinstance(text, str) for text in texts) or not all(type(number) is int for number in numbers):
                raise TypeError(f"the column {column.name!r} is not described by text and numbers")
            if column.numpy_dtype.kind not in "biuf" or column.kind not in get_args(Kind):
                raise ValueError(f"the column {column.name!r} has the unknown dtype {column.dtype!r} or kind")
            if column.group not in schema.group_names:
                raise ValueError(f"the column {column.name!r} is of the unknown group {column.group!r}")
        for group in schema.groups:
            if not isinstance(group.name, str) or group.source not in get_args(Source):
                raise ValueError(f"the group {group.name!r} is computed from {group.source!r}")
        for item in schema.record_fields:
            if not isinstance(item.name, str) or item.source not in METADATA or not isinstance(item.values, Mapping):
                raise ValueError(f"the field {item.name!r} of records is derived from {item.source!r}")
        return schema


class PickledAsTuple:
    """Base of a frozen dataclass with slots that processes exchange for every sample.

    It is pickled as its class and the values that its constructor takes. By default, such a dataclass looks up its
    fields each time it is pickled or read, which takes longer than all the rest.
    """

    __slots__ = ()
    __match_args__: ClassVar[tuple[str, ...]]

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), tuple([getattr(self, name) for name in self.__match_args__])


@dataclass(frozen=True, slots=True)
class Segment(PickledAsTuple):
    """A part of a recording: `seconds` long (None: to the end), starting at `offset` seconds."""

    offset: float
    seconds: float | None = None


class Utterance(NamedTuple):
    """One valid manifest row.

    `audio` is the manifest's value, `path` the file that was found for it. `language` is the hint that applies (the
    run's, else the row's). With `offset` (seconds) the row is a segment of `duration` seconds; without it the row is
    the whole recording, and `duration` is what the manifest claims. `extra` is a JSON object with the manifest's other
    fields and `offset`.
    """

    line: int
    id: str
    text: str
    audio: str
    path: str
    speaker: str | None = None
    language: str | None = None
    duration: float | None = None
    extra: str = "{}"
    offset: float | None = None

    @property
    def segment(self) -> Segment | None:
        """The part of the recording that the row covers; None for all of it."""
        return None if self.offset is None else Segment(self.offset, self.duration)


@dataclass(frozen=True, slots=True)
class Features(PickledAsTuple):
    """Computed arrays of one utterance, by column. `seconds` is the audio's actual length, None if it was not read."""

    arrays: Mapping[str, np.ndarray]
    seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Rejection(PickledAsTuple):
    """Why a manifest line is not in the output. `line` counts from 1; `id` is None if it could not be read."""

    line: int
    id: str | None
    reason: Reason
    message: str

    def record(self) -> dict[str, Any]:
        """The object that is written to rejected.jsonl."""
        return {"line": self.line, "id": self.id, "reason": self.reason.value, "message": self.message}


def artifact_path(column: str, sample_id: str) -> str:
    """Path of a sample's array in the npy layout, relative to the output directory, with forward slashes."""
    return f"{column}/{sample_id}.npy"


METADATA: Mapping[str, type] = {
    "id": str, "audio_path": str, "text": str, "speaker": str, "language": str, "duration": float,
}  # fmt: skip


def metadata_of(utterance: Utterance, seconds: float | None) -> dict[str, Any]:
    """The fields of a manifest record that come from its row; `seconds` is the audio's actual length."""
    duration = utterance.duration
    if duration is None and seconds is not None:
        duration = round(seconds, 6)
    return {
        "id": utterance.id,
        "audio_path": utterance.audio.removeprefix("./"),
        "text": utterance.text,
        "speaker": utterance.speaker,
        "language": utterance.language,
        "duration": duration,
    }


def manifest_record(schema: Schema, metadata: Mapping[str, Any], lengths: Mapping[str, int]) -> dict[str, Any]:
    """A sample's record in train_manifest.jsonl or val_manifest.jsonl.

    `metadata` has the fields of `METADATA`; each column adds its path and its lengths.
    """
    record = {name: metadata[name] for name in METADATA}
    for column in schema.columns:
        record[f"{column.name}_path"] = artifact_path(column.name, metadata["id"])
        for name in column.lengths:
            record.setdefault(name, lengths[name])
    return record | record_fields(schema, metadata)


def record_fields(schema: Schema, metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a record that are derived from others."""
    found = {}
    for item in schema.record_fields:
        value = metadata[item.source]
        found[item.name] = item.default if value is None else item.values.get(str(value).lower(), item.default)
    return found
