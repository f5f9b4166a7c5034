"""A finished sample set, whatever its format: splits of samples in source order, and where they come from.

Provides `Entry` (a sample's record), `Sample` (with its arrays), and the two bases that each format fills in: `Split`,
readable by position, and `SampleSet`. What a sample consists of is the set's own `schema`.
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
from hfprep.schema import Column, Schema, manifest_record
from hfprep.store.first_version import first_schema, width_column
from hfprep.store.layout import json_line

SPLITS = ("train", "validation")
DTYPES = ("float32", "float16")
NO_EXTRA = "{}"
LABELS = ("id", "language")


def lengths_of(schema: Schema, record: Mapping[str, Any]) -> dict[str, int]:
    """The lengths that a record gives; KeyError, TypeError or ValueError if it lacks one."""
    return {name: int(record[name]) for name in schema.lengths}


@dataclass(frozen=True, slots=True)
class Entry:
    """A sample's manifest record, its line where that is not how hfprep writes it, and other fields as JSON."""

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
        """The record's fields in the types of the schema's `fields`, None if there is no value of that kind."""
        return {name: _as(kind, self.record.get(name)) for name, kind in schema.fields.items()}

    def exact_line(self, schema: Schema) -> str | None:
        """The manifest line, where `metadata` alone would not give it back byte for byte; else None."""
        line = self.line
        return None if json_line(record_of(schema, self.metadata(schema))) == line else line.decode("utf-8")


@dataclass(frozen=True, slots=True)
class Sample:
    """An entry with its arrays, by column."""

    entry: Entry
    arrays: dict[str, np.ndarray]


@dataclass(frozen=True)
class Origin:
    """Where a sample set comes from: its stats.json, what its numbers depend on, how its vectors are stored.

    `schema` is None if the set does not name one: hfprep 0.1.0 made it.
    """

    stats: dict[str, Any] | None = None
    fingerprints: dict[str, Any] = field(default_factory=dict)
    latents_dtype: str = "float32"
    schema: Schema | None = None

    def record(self) -> dict[str, Any]:
        """The JSON object that travels with the data."""
        return {
            "schema": None if self.schema is None else self.schema.record(),
            "latents_dtype": self.latents_dtype,
            "fingerprints": self.fingerprints,
            "stats": self.stats,
        }

    @classmethod
    def parse(cls, record: Mapping[str, Any]) -> "Origin":
        """The opposite of `record`; raises StoreError if the schema cannot be read."""
        stats = record.get("stats")
        return cls(
            stats,
            record.get("fingerprints") or {},
            record.get("latents_dtype", "float32"),
            parse_schema(record.get("schema") or (stats or {}).get("schema")),
        )


def parse_schema(record: Any) -> Schema | None:
    """The schema that an output describes itself by, None if it has none; raises StoreError if it cannot be read."""
    if record is None:
        return None
    try:
        return Schema.parse(record)
    except (KeyError, TypeError, ValueError) as error:
        message = f"the set's description of its columns cannot be read ({error!r}); perhaps hfprep is too old"
        raise StoreError(message) from error


class Split(ABC):
    """The samples of one split by position, in source order. Safe to read from several processes and threads."""

    schema: Schema

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def entry(self, index: int) -> Entry:
        """Record of the sample at a position."""

    @abstractmethod
    def sample(self, index: int) -> Sample:
        """Record and arrays of the sample at a position, as they are stored; raises StoreError if it is damaged."""

    def read(self, index: int, columns: Sequence[Column] | None = None) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """What a trainer takes of a sample, and the arrays of these columns (None: all), as they are stored.

        The first has at least the `LABELS`, the lengths and the schema's `record_fields`. The arrays are read-only, and
        there until the thread reads its next sample. Raises StoreError if the sample is damaged.
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
        """A length that the records give, such as code_len, of every sample: int64 (samples,)."""
        return np.fromiter((int(entry.record[name]) for entry in self.entries()), np.int64, len(self))


class SampleSet(ABC):
    """A finished set of samples on disk."""

    format: str

    def __init__(self, root: Path) -> None:
        self.root = root

    @cached_property
    @abstractmethod
    def origin(self) -> Origin:
        """Provenance."""

    @abstractmethod
    def split(self, name: str) -> Split:
        """The split of that name; an empty one where there is none."""

    @cached_property
    def schema(self) -> Schema:
        """What a sample consists of: as the set says, or as hfprep 0.1.0 wrote it."""
        return self.origin.schema or first_schema(self._width(width_column()))

    @abstractmethod
    def _width(self, column: str) -> int:
        """Length of the vectors in a column with one dimension; 0 in a set without samples."""


def record_of(schema: Schema, metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest record that these values, of the schema's `fields`, stand for."""
    record = manifest_record(schema, metadata, metadata)
    for item in schema.record_fields:
        record[item.name] = metadata.get(item.name, record[item.name])
    return record


def entry_from(schema: Schema, metadata: Mapping[str, Any], exact_line: str | None, extra: str) -> Entry:
    """An entry from what Arrow and WebDataset keep of it: the opposite of `metadata` and `exact_line`."""
    return parse_exact(exact_line, extra) if exact_line else Entry(record_of(schema, metadata), None, extra)


def parse_exact(exact_line: str, extra: str = NO_EXTRA) -> Entry:
    """An entry from the manifest line that a set keeps of it; raises StoreError if that is none."""
    try:
        return parse_entry(exact_line.encode("utf-8"), extra)
    except ValueError as error:
        raise StoreError(f"the record of a sample is damaged: {error}") from None


def parse_entry(line: bytes, extra: str = NO_EXTRA) -> Entry:
    """An entry from its manifest line; raises ValueError if that is no JSON object."""
    try:
        record = json.loads(line)
    except RecursionError:
        raise ValueError("the line is nested too deeply") from None
    if not isinstance(record, dict):
        raise ValueError(f"the line is a JSON {type(record).__name__}, not an object")
    return Entry(record, line, extra)


def checked(schema: Schema, sample: Sample, where: str) -> Sample:
    """The sample itself, when its arrays are as the schema and its record say; else StoreError."""
    check_arrays(schema, sample.entry.record, sample.arrays, where)
    return sample


def check_arrays(schema: Schema, record: Mapping[str, Any], arrays: Mapping[str, np.ndarray], where: str) -> None:
    """Raise StoreError unless arrays of a sample are as the schema and its record say."""
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
    """An array as it is stored, vectors in `dtype`; raises StoreError if float16 cannot hold them."""
    values = sample.arrays[column]
    if schema.by_name[column].kind != "vector" or values.dtype == dtype:
        return values
    with np.errstate(over="ignore"):
        stored = values.astype(dtype)
    if not np.array_equal(np.isfinite(stored), np.isfinite(values)):
        raise StoreError(f"sample {sample.entry.id!r}: {column} is too large for {dtype}; export it as float32")
    return stored


def safe_id(sample_id: str, where: str | Path) -> str:
    """The id itself when it may name a file; StoreError otherwise (it came from a data set that others made)."""
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
