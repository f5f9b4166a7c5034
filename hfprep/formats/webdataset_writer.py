"""Sample sets written as tar shards in the WebDataset convention, with an index beside them.

The bytes depend on the samples and the options alone: members have no times and no owners. A sample's key is its
position in the split, so any id is safe; the id is in its .json.
"""

import dataclasses
import json
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from hfprep.errors import ConfigError
from hfprep.formats.arrow_writer import MAX_SHARD_BYTES, stored_latents
from hfprep.formats.folders import appearing_folder
from hfprep.formats.index import listed, write_index
from hfprep.formats.samples import DTYPES, LATENTS, SPLITS, Origin, Sample, SampleSet
from hfprep.formats.shard_files import ShardStream, Start, WrittenShard, closing_stream
from hfprep.formats.webdataset import FORMAT_NAME, is_webdataset, metadata_json
from hfprep.io import atomic
from hfprep.io.npy_format import npy_bytes
from hfprep.schema import COLUMNS

MAX_SHARD_SAMPLES = 10_000
END_OF_TAR = bytes(2 * tarfile.BLOCKSIZE)


@dataclass(frozen=True, kw_only=True)
class WebDatasetOptions:
    """How shards are written: a shard ends before it would pass either bound."""

    max_shard_bytes: int = MAX_SHARD_BYTES
    max_shard_samples: int = MAX_SHARD_SAMPLES
    dtype: str = "float32"

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ConfigError(f"--dtype is {self.dtype!r}; it must be {' or '.join(DTYPES)}")
        if self.max_shard_samples < 1:
            raise ConfigError(f"--max-shard-samples is {self.max_shard_samples}; it must be a positive number")


def export_webdataset(source: SampleSet, target: Path, options: WebDatasetOptions | None = None) -> dict[str, int]:
    """Write a sample set as `train-000000.tar` ..., `validation-000000.tar` ... and index.json; gives the counts.

    Replaces an earlier export as a whole. Latents are float32, or float16 where asked.
    """
    options = options or WebDatasetOptions()
    stored = source.origin.latents_dtype
    options = dataclasses.replace(options, dtype=stored if stored == "float16" else options.dtype)
    origin = Origin(source.origin.stats, source.origin.fingerprints, options.dtype)
    splits: dict[str, list[WrittenShard]] = {}
    with appearing_folder(target, is_webdataset) as folder:
        for name in SPLITS:
            stream = WebDatasetStream(partial(shard_path, folder, name), options)
            shards = splits[name] = []
            with closing_stream(stream):
                for sample in source.split(name).samples():
                    shards += stream.add(sample)
                shards += stream.finish()
        return describe_set(folder, splits, origin)


def shard_path(folder: Path, split: str, number: int) -> Path:
    """Where a split's shard of that number lies."""
    return folder / f"{split}-{number:06d}.tar"


def describe_set(folder: Path, splits: Mapping[str, Sequence[WrittenShard]], origin: Origin) -> dict[str, int]:
    """Write the index, which makes the shards in `folder` a set; gives the samples of each split."""
    items = {name: listed(shards, (shard.path.name for shard in shards)) for name, shards in splits.items()}
    return write_index(folder, FORMAT_NAME, items, origin.record())


class WebDatasetStream(ShardStream):
    """Samples as members of tar files."""

    def __init__(
        self, shard_path: Callable[[int], Path], options: WebDatasetOptions, start: Start | None = None
    ) -> None:
        super().__init__(shard_path, start or Start())
        self.options = options
        self.dtype = np.dtype(options.dtype)
        self.position = self.start.position

    def add(self, sample: Sample) -> list[WrittenShard]:
        data = b"".join(_members(f"{self.position:09d}", sample, self.dtype))
        most, most_bytes = self.options.max_shard_samples, self.options.max_shard_bytes - len(END_OF_TAR) - len(data)
        ended = self._make_room(lambda samples, used: samples < most and used <= most_bytes)
        assert self.file is not None
        with atomic.explained(self.file.path):
            self.file.stream.write(data)
        self.samples, self.used, self.position = self.samples + 1, self.used + len(data), self.position + 1
        return ended

    def finish(self) -> list[WrittenShard]:
        return [] if self.file is None else [self._end()]

    def _end(self) -> WrittenShard:
        assert self.file is not None
        with atomic.explained(self.file.path):
            self.file.stream.write(END_OF_TAR)
        return super()._end()


def _members(key: str, sample: Sample, dtype: np.dtype[Any]) -> Iterator[bytes]:
    """A sample as tar members: its .json first."""
    yield from _member(f"{key}.json", json.dumps(metadata_json(sample.entry), ensure_ascii=False).encode())
    for column in COLUMNS:
        values = stored_latents(sample, column, dtype) if column in LATENTS else sample.arrays[column]
        yield from _member(f"{key}.{column}.npy", npy_bytes(values))


def _member(name: str, data: bytes) -> Iterator[bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    yield info.tobuf(tarfile.USTAR_FORMAT)
    yield data
    yield bytes(-len(data) % tarfile.BLOCKSIZE)
