"""index.json beside the shards of a set: every shard's samples, bytes and SHA-256; and each sample's place.

It is written last, so a folder with an index is complete. The places of the samples are in a separate file, in source
order, train before validation.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from hfprep.errors import StoreError
from hfprep.io import atomic
from hfprep.io.json_file import read_json
from hfprep.store import shard_index

INDEX = "index.json"
INDEX_VERSION = 1
PLACES = "places.npy"
ADVICE = "make or fetch the set again"  # about damaged files

Shard = dict[str, Any]  # as in the index: name, samples, bytes, sha256


def read_index(root: Path, format_name: str) -> dict[str, Any] | None:
    """The index of a folder of shards; None if there is none of that format."""
    try:
        return read_json(root / INDEX, lambda index: _parse(index, format_name), ADVICE)
    except (OSError, StoreError):
        return None


def _parse(index: Any, format_name: str) -> dict[str, Any]:
    """The index, if it has the form that `write_index` gives it. Raises an error if not."""
    found = dict(index)
    if found["format"] != format_name:
        raise ValueError(f"its format is {found['format']!r}")
    for described in found["splits"].values():
        _check_types(described, samples=int, shards=list)
        for shard in described["shards"]:
            _check_types(shard, name=str, samples=int, bytes=int, sha256=str)
    if "places" in found:
        _check_types(found["places"], file=str, columns=list)
        if not all(isinstance(column, str) for column in found["places"]["columns"]):
            raise TypeError("the columns of its places are not text")
    return found


def _check_types(record: Mapping[str, Any], **types: type) -> None:
    for name, kind in types.items():
        if type(record[name]) is not kind or (kind is int and record[name] < 0):
            raise TypeError(f"{name} is {str(record[name])[:80]}")


def shards_in(index: Mapping[str, Any], split: str) -> list[Shard]:
    """The shards of a split, in the order that its places refer to."""
    return list(index["splits"].get(split, {}).get("shards", ()))


def write_index(
    root: Path,
    format_name: str,
    splits: Mapping[str, Sequence[shard_index.Shard]],
    places: Mapping[str, np.ndarray],
    columns: Sequence[str],
    more: Mapping[str, Any] | None = None,
) -> dict[str, int]:
    """Write and sync the places, then the index of all splits; returns the number of samples per split.

    places: int64 (samples, columns) per split. `more` is added to the index.
    """
    table = np.concatenate([places[name].reshape(-1, len(columns)) for name in splits]).astype(np.int64)
    with atomic.replacing(root / PLACES) as stream:
        np.lib.format.write_array(stream, table, version=(1, 0), allow_pickle=False)
    counts = {name: sum(shard.samples for shard in shards) for name, shards in splits.items()}
    described = {
        name: {
            "samples": counts[name],
            "shards": [
                {"name": shard.name, "samples": shard.samples, "bytes": shard.num_bytes, "sha256": shard.sha256}
                for shard in shards
            ],
        }
        for name, shards in splits.items()
    }
    index = {"format": format_name, "version": INDEX_VERSION, "splits": described}
    index |= {"places": {"file": PLACES, "columns": list(columns)}} | dict(more or {})
    atomic.write_json(root / INDEX, index)
    return counts


@dataclass
class Places:
    """Where the samples of a split are. Each process reads them on first use."""

    path: Path
    columns: tuple[str, ...]
    start: int
    samples: int

    @classmethod
    def of(cls, root: Path, index: Mapping[str, Any], split: str) -> "Places | None":
        """The places in an index; None if it has none (hfprep 0.1.0)."""
        if "places" not in index:
            return None
        start = 0
        for name, described in index["splits"].items():
            if name == split:
                break
            start += described["samples"]
        described = index["splits"].get(split, {"samples": 0})
        return cls(root / index["places"]["file"], tuple(index["places"]["columns"]), start, described["samples"])

    def __len__(self) -> int:
        return self.samples

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "table"}

    @cached_property
    def table(self) -> np.ndarray:
        """int64 (samples, columns), memory-mapped; raises StoreError if the file has another content."""
        try:
            table = np.load(self.path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise StoreError(f"{self.path} cannot be read: {error}; {ADVICE}") from error
        rows = np.asarray(table)[self.start : self.start + self.samples]  # np.memmap is slow for single rows
        if table.dtype != np.int64 or rows.shape != (self.samples, len(self.columns)):
            raise StoreError(
                f"{self.path} does not contain the places of {self.samples} samples; make or fetch it again"
            )
        return rows

    def column(self, name: str) -> np.ndarray:
        """A column of the table, int64 (samples,); raises KeyError if there is no such column."""
        try:
            return np.asarray(self.table[:, self.columns.index(name)])
        except ValueError:
            raise KeyError(name) from None
