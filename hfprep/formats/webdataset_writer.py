"""Writes tar shards in the WebDataset convention, and the index beside them.

A sample's bytes depend only on the sample and the options: members have no times and no owners. The key is a hash of
the id, so any id is safe; the id is in the .json.
"""

import hashlib
import json
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hfprep.errors import ConfigError
from hfprep.formats.exporting import export, stored_dtype
from hfprep.formats.index import INDEX, write_index
from hfprep.formats.positioned import PositionedFile
from hfprep.formats.samples import Origin, Sample, SampleSet, stored_vectors
from hfprep.formats.shards import Block, ReadSample, ShardFormat, ShardOptions
from hfprep.formats.webdataset import (
    FORMAT_NAME,
    SHARD,
    SIZE,
    START,
    is_webdataset,
    metadata_json,
    padded,
    parse_sample,
    scan,
)
from hfprep.io.npy_format import npy_bytes
from hfprep.schema import Schema
from hfprep.store.shard_index import Shard

MAX_SHARD_SAMPLES = 10_000
KEY_BYTES = 12


@dataclass(frozen=True, kw_only=True)
class WebDatasetOptions(ShardOptions):
    """How shards are written: each stays within both limits."""

    max_shard_samples: int = MAX_SHARD_SAMPLES

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_shard_samples < 1:
            raise ConfigError(f"--max-shard-samples is {self.max_shard_samples}; it must be a positive number")


def export_webdataset(source: SampleSet, target: Path, options: WebDatasetOptions | None = None) -> dict[str, int]:
    """Write a sample set as `train-000000.tar` ..., `validation-000000.tar` ... and index.json; returns the counts.

    Atomically replaces an earlier export. Vectors are float32 or, if requested, float16.
    """
    options = stored_dtype(options or WebDatasetOptions(), source)
    return export(source, target, WebDatasetShards(source.schema, options))


class WebDatasetShards(ShardFormat):
    name = "webdataset"
    marker = INDEX
    tail = bytes(2 * tarfile.BLOCKSIZE)

    def __init__(self, schema: Schema, options: WebDatasetOptions) -> None:
        super().__init__(schema, options)
        self._most = options.max_shard_samples
        self._dtype = np.dtype(options.dtype)

    @property
    def max_samples(self) -> int:
        return self._most

    def layout(self) -> str:
        columns = [f"{column.name} {column.dtype} {column.ndim}" for column in self.schema.columns]
        return json.dumps([*columns, self.options.dtype])

    def shard_name(self, split: str, number: int) -> str:
        return f"{split}-{number:06d}.tar"

    def encode(self, samples: Sequence[Sample]) -> list[Block]:
        return [Block(b"".join(self._members(sample)), 1) for sample in samples]

    def _members(self, sample: Sample) -> Iterator[bytes]:
        key = hashlib.blake2b(sample.entry.id.encode(), digest_size=KEY_BYTES).hexdigest()
        metadata = json.dumps(metadata_json(self.schema, sample.entry), ensure_ascii=False).encode()
        yield from _member(f"{key}.json", metadata)
        for column in self.schema.columns:
            values = stored_vectors(self.schema, sample, column.name, self._dtype)
            yield from _member(f"{key}.{column.name}.npy", npy_bytes(values))

    def reader(self, path: Path) -> ReadSample:
        file = PositionedFile(path)
        return lambda _, start, size: parse_sample(self.schema, memoryview(file.read(start, size)), path)

    def earlier_places(self, path: Path) -> list[tuple[int, int]] | None:
        found = list(scan(PositionedFile(path)))
        if found:
            self.reader(path)(0, *found[0])
        return found

    @property
    def place_columns(self) -> tuple[str, ...]:
        return (SHARD, START, SIZE, *self.schema.lengths)

    def place_of(
        self, place: tuple[int, int, int], shard: int, first_row: int, lengths: Mapping[str, int]
    ) -> tuple[int, ...]:
        del first_row
        return (shard, *place[1:], *(lengths[name] for name in self.schema.lengths))

    def describe(
        self, folder: Path, splits: Mapping[str, Sequence[Shard]], places: Mapping[str, np.ndarray], origin: Origin
    ) -> dict[str, int]:
        return write_index(folder, FORMAT_NAME, splits, places, self.place_columns, origin.record())

    def replaceable(self, folder: Path) -> bool:
        return is_webdataset(folder)


def _member(name: str, data: bytes) -> Iterator[bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    yield info.tobuf(tarfile.USTAR_FORMAT)
    yield data
    yield bytes(padded(len(data)) - len(data))
