"""Finished sample sets in any format: splits of samples in source order, and their origin.

Provides `Entry` (a sample's record), `Sample` (an entry with its arrays), and the base classes of the formats: `Split`,
with access by position, and `SampleSet`, whose `schema` describes the samples.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from hfprep.errors import RejectedSample, StoreError
from hfprep.inputs.manifest.rows import check_id
from hfprep.io.json_file import DAMAGED
from hfprep.schema import MAX_LENGTH, Column, Schema, manifest_record
from hfprep.store.fingerprints import parse_settings
from hfprep.store.first_version import first_schema, width_column
from hfprep.store.layout import json_line
from hfprep.store.statistics import parse_stats

SPLITS = ("train", "validation")
DTYPES = ("float32", "float16")
NO_EXTRA = "{}"
LABELS = ("id", "language")


def lengths_of(schema: Schema, record: Mapping[str, Any]) -> dict[str, int]:
    """The lengths in a record; raises KeyError, TypeError or ValueError if one is missing."""
    return {name: length_in(record, name) for name in schema.lengths}


def length_in(record: Mapping[str, Any], name: str) -> int:
    """A length in a record; raises KeyError, TypeError or ValueError for anything else."""
    length = record[name]
    if type(length) is not int or not 0 <= length <= MAX_LENGTH:
        raise ValueError(f"{name} is {str(length)[:80]}; it must be a whole number")
    return length


@dataclass(frozen=True, slots=True)
class Entry:
    """A sample's manifest record, its manifest line if hfprep did not write it, and other fields as JSON."""

    record: dict[str, Any]
    written: bytes | None = None
    extra: str = NO_EXTRA

    @property
    def line(self) -> bytes:
        """The exact manifest line."""
        return json_line(self.record) if self.written is None else self.written

    @property
    def id(self) -> str:
        return str(self.record["id"])

    def metadata(self, schema: Schema) -> dict[str, Any]:
        """The record's fields in the types of the schema's `fields`; None if a value is missing or of another type."""
        return {name: _as(kind, self.record.get(name)) for name, kind in schema.fields.items()}

    def exact_line(self, schema: Schema) -> str | None:
        """The manifest line if it cannot be restored byte for byte from `metadata`, else None."""
        line = self.line
        return None if json_line(record_of(schema, self.metadata(schema))) == line else line.decode("utf-8")


@dataclass(frozen=True, slots=True)
class Sample:
    """An entry with its arrays, by column."""

    entry: Entry
    arrays: dict[str, np.ndarray]


@dataclass(frozen=True)
class Origin:
    """The origin of a sample set: its stats.json, its fingerprints, how its vectors are stored.

    `schema` is None for sets of hfprep 0.1.0, which did not store one.
    """

    stats: dict[str, Any] | None = None
    fingerprints: dict[str, Any] = field(default_factory=dict)
    latents_dtype: str = "float32"
    schema: Schema | None = None

    def record(self) -> dict[str, Any]:
        """The JSON object that is stored with the data."""
        return {
            "schema": None if self.schema is None else self.schema.record(),
            "latents_dtype": self.latents_dtype,
            "fingerprints": self.fingerprints,
            "stats": self.stats,
        }

    @classmethod
    def parse(cls, record: Mapping[str, Any]) -> "Origin":
        """The inverse of `record`; raises StoreError if the schema cannot be read."""
        stats, fingerprints = record.get("stats"), record.get("fingerprints")
        try:
            return cls(
                None if stats is None else parse_stats(stats),
                parse_settings(fingerprints or {}),
                str(record.get("latents_dtype", "float32")),
                parse_schema(record.get("schema") or (stats or {}).get("schema")),
            )
        except DAMAGED as error:
            raise StoreError(f"the set's description cannot be read ({error!r}); make or fetch it again") from error


def parse_schema(record: Any) -> Schema | None:
    """The schema in an output's description, None if it has none; raises StoreError if it cannot be read."""
    if record is None:
        return None
    try:
        return Schema.parse(record)
    except DAMAGED as error:
        message = f"the set's description of its columns cannot be read ({error!r}); perhaps hfprep is too old"
        raise StoreError(message) from error


class Split(ABC):
    """The samples of a split by position, in source order. Safe to read from several processes and threads."""

    schema: Schema

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def entry(self, index: int) -> Entry:
        """The entry of the sample at a position."""

    @abstractmethod
    def sample(self, index: int) -> Sample:
        """The sample at a position, as stored; raises StoreError if it is damaged."""

    def read(self, index: int, columns: Sequence[Column] | None = None) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """A sample's record fields for training, and the arrays of `columns` (None: all), as stored.

        The record has at least the `LABELS`, the lengths and the schema's `record_fields`. The arrays are read-only,
        and valid until the thread reads its next sample. Raises StoreError if the sample is damaged.
        """
        sample = self.sample(index)
        wanted = self.schema.columns if columns is None else columns
        return sample.entry.record, {column.name: sample.arrays[column.name] for column in wanted}

    def ids(self) -> Iterator[str]:
        """The id of every sample in order."""
        return (entry.id for entry in self.entries())

    def entries(self) -> Iterator[Entry]:
        """All records in order."""
        return (self.entry(index) for index in range(len(self)))

    def samples(self) -> Iterator[Sample]:
        """All samples in order."""
        return (self.sample(index) for index in range(len(self)))

    def lengths(self, name: str) -> np.ndarray:
        """A length in the records, such as code_len, of every sample: int64 (samples,)."""
        return np.fromiter((length_in(entry.record, name) for entry in self.entries()), np.int64, len(self))


class SampleSet(ABC):
    """A finished sample set on disk."""

    format: str

    def __init__(self, root: Path) -> None:
        self.root = root

    @cached_property
    @abstractmethod
    def origin(self) -> Origin:
        """Provenance."""

    @abstractmethod
    def split(self, name: str) -> Split:
        """The split of that name; an empty one if there is none."""

    @cached_property
    def schema(self) -> Schema:
        """The schema of the samples; that of hfprep 0.1.0 if none is stored."""
        return self.origin.schema or first_schema(self._width(width_column()))

    @abstractmethod
    def _width(self, column: str) -> int:
        """The length of the vectors in a one-dimensional column; 0 for a set without samples."""


def record_of(schema: Schema, metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest record with these values of the schema's `fields`."""
    record = manifest_record(schema, metadata, metadata)
    for item in schema.record_fields:
        record[item.name] = metadata.get(item.name, record[item.name])
    return record


def entry_from(schema: Schema, metadata: Mapping[str, Any], exact_line: str | None, extra: str) -> Entry:
    """An entry as stored by Arrow and WebDataset: the inverse of `metadata` and `exact_line`."""
    return parse_exact(exact_line, extra) if exact_line else Entry(record_of(schema, metadata), None, extra)


def parse_exact(exact_line: str, extra: str = NO_EXTRA) -> Entry:
    """An entry from a stored manifest line; raises StoreError if it is damaged."""
    try:
        return parse_entry(exact_line.encode("utf-8"), extra)
    except ValueError as error:
        raise StoreError(f"the record of a sample is damaged: {error}") from None


def parse_entry(line: bytes, extra: str = NO_EXTRA) -> Entry:
    """An entry from its manifest line; raises ValueError if that is not a JSON object."""
    try:
        record = json.loads(line)
    except RecursionError:
        raise ValueError("the line is nested too deeply") from None
    if not isinstance(record, dict):
        raise ValueError(f"the line is a JSON {type(record).__name__}, not an object")
    return Entry(record, line, extra)


def checked(schema: Schema, sample: Sample, where: str) -> Sample:
    """The sample; raises StoreError unless its arrays match the schema and its record."""
    check_arrays(schema, sample.entry.record, sample.arrays, where)
    return sample


def check_arrays(schema: Schema, record: Mapping[str, Any], arrays: Mapping[str, np.ndarray], where: str) -> None:
    """Raise StoreError unless a sample's arrays match the schema and its record."""
    try:
        lengths = lengths_of(schema, record)
    except (KeyError, TypeError, ValueError) as error:
        raise StoreError(f"{where}: sample {record.get('id')!r}: its record lacks a length ({error!r})") from error
    for name, array in arrays.items():
        problem = schema.problem(name, array, lengths, half=True)
        if problem:
            advice = "make the set again from its source"
            raise StoreError(f"{where}: sample {record['id']!r}: {name} is {problem}; {advice}")


def stored_vectors(schema: Schema, sample: Sample, column: str, dtype: np.dtype[Any]) -> np.ndarray:
    """An array for storage, vectors in `dtype`; raises StoreError if they overflow float16."""
    values = sample.arrays[column]
    if schema.by_name[column].kind != "vector" or values.dtype == dtype:
        return values
    with np.errstate(over="ignore"):
        stored = values.astype(dtype)
    if not np.array_equal(np.isfinite(stored), np.isfinite(values)):
        raise StoreError(f"sample {sample.entry.id!r}: {column} is too large for {dtype}; export it as float32")
    return stored


def safe_id(sample_id: str, where: str | Path) -> str:
    """The id; raises StoreError if it is not a safe file name (the data set may come from others)."""
    try:
        check_id(sample_id)
        return sample_id
    except RejectedSample as error:
        raise StoreError(f"{where}: {error.message}") from None


def _as(kind: type, value: Any) -> Any:
    if value is None:
        return None
    if kind is str:
        return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return kind(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
