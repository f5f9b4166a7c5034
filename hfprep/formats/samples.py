"""A finished sample set, whatever format it lies in: splits of samples in source order, and where they come from.

Gives `Entry` (a sample's record), `Sample` (with its arrays), and the two bases that each format fills in: `Split`,
readable by position, and `SampleSet`. The one description of a record's fields that Arrow and WebDataset share is
here too. Knows nothing of how any format stores them.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from hfprep.errors import RejectedSample, StoreError
from hfprep.inputs.manifest.rows import check_id
from hfprep.schema import COLUMNS, artifact_path
from hfprep.store.layout import json_line

SPLITS = ("train", "validation")
DTYPES = ("float32", "float16")
LATENTS = ("condition", "emo_vec")
NO_EXTRA = "{}"
LENGTHS = {"text_ids": "text_len", "codes": "code_len", "condition": "condition_len"}
METADATA: dict[str, type] = {
    "id": str,
    "audio_path": str,
    "text": str,
    "speaker": str,
    "language": str,
    "duration": float,
    "text_len": int,
    "code_len": int,
    "condition_len": int,
}


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

    def metadata(self) -> dict[str, Any]:
        """The record's fields in the types of `METADATA`, None where there is no value of that kind."""
        return {name: _as(kind, self.record.get(name)) for name, kind in METADATA.items()}

    def exact_line(self) -> str | None:
        """The manifest line, where `metadata` alone would not give it back byte for byte; else None."""
        return None if json_line(record_of(self.metadata())) == self.line else self.line.decode("utf-8")


@dataclass(frozen=True, slots=True)
class Sample:
    """An entry with its arrays, by the names of `COLUMNS`: int32 (length,), float32 (rows, dim), float32 (dim,)."""

    entry: Entry
    arrays: dict[str, np.ndarray]


@dataclass(frozen=True)
class Origin:
    """Where a sample set comes from: its stats.json, what its numbers depend on, and how its latents are stored."""

    stats: dict[str, Any] | None = None
    fingerprints: dict[str, Any] = field(default_factory=dict)
    latents_dtype: str = "float32"

    def record(self) -> dict[str, Any]:
        """The JSON object that travels with the data."""
        return {"latents_dtype": self.latents_dtype, "fingerprints": self.fingerprints, "stats": self.stats}

    @classmethod
    def parse(cls, record: Mapping[str, Any]) -> "Origin":
        """The opposite of `record`."""
        return cls(record.get("stats"), record.get("fingerprints") or {}, record.get("latents_dtype", "float32"))


class Split(ABC):
    """The samples of one split by position, in source order. Safe to read from several processes and threads."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def entry(self, index: int) -> Entry:
        """Record of the sample at a position."""

    @abstractmethod
    def sample(self, index: int) -> Sample:
        """Record and arrays of the sample at a position, as they are stored; raises StoreError where it is damaged."""

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


def record_of(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest record, in its own order of fields, that these values stand for."""
    sample_id = metadata["id"]
    record: dict[str, Any] = {
        name: metadata[name] for name in METADATA if not name.endswith("_len")
    }  # fmt: skip
    for column in COLUMNS:
        record[f"{column}_path"] = artifact_path(column, sample_id)
        if column in LENGTHS:
            record[LENGTHS[column]] = metadata[LENGTHS[column]]
    return record


def entry_from(metadata: Mapping[str, Any], exact_line: str | None, extra: str) -> Entry:
    """An entry from what Arrow and WebDataset keep of it: the opposite of `metadata` and `exact_line`."""
    if exact_line:
        return parse_entry(exact_line.encode("utf-8"), extra)
    return Entry(record_of(metadata), None, extra)


def parse_entry(line: bytes, extra: str = NO_EXTRA) -> Entry:
    """An entry from its manifest line."""
    return Entry(json.loads(line), line, extra)


def checked(sample: Sample, where: str) -> Sample:
    """The sample itself, when its arrays have the lengths, ranks and dtypes that its record says; else StoreError."""
    record = sample.entry.record
    for name, column in COLUMNS.items():
        array = sample.arrays[name]
        kinds = {column.dtype} | ({np.dtype(np.float16)} if name in LATENTS else set())
        problem = None
        if array.dtype not in kinds or array.ndim != column.ndim:
            problem = f"{array.dtype} of shape {array.shape} instead of {column.dtype} with {column.ndim} dimension(s)"
        elif name in LENGTHS and len(array) != record[LENGTHS[name]]:
            problem = f"of length {len(array)}, but the record's {LENGTHS[name]} is {record[LENGTHS[name]]}"
        if problem:
            advice = "make the set again from its source"
            raise StoreError(f"{where}: sample {record['id']!r}: {name} is {problem}; {advice}")
    return sample


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
