"""Sample sets written as tar shards in the WebDataset convention, with an index beside them.

The bytes depend on the samples and the options alone: members have no times and no owners. A sample's key is its
position in the split, so any id is safe; the id is in its .json.
"""

import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hfprep.errors import ConfigError
from hfprep.exporters.arrow_writer import MAX_SHARD_BYTES, stored_latents
from hfprep.exporters.folders import appearing_folder
from hfprep.exporters.index import Shard, shard_of, write_index
from hfprep.exporters.samples import DTYPES, LATENTS, SPLITS, Origin, Sample, SampleSet
from hfprep.exporters.webdataset import FORMAT_NAME, is_webdataset, metadata_json
from hfprep.records import COLUMNS
from hfprep.store import atomic
from hfprep.store.layout import npy_bytes

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
    dtype = stored if stored == "float16" else options.dtype
    origin = Origin(source.origin.stats, source.origin.fingerprints, dtype)
    with appearing_folder(target, is_webdataset) as folder:
        splits = {
            name: list(_write_split(folder, name, source.split(name).samples(), options, np.dtype(dtype)))
            for name in SPLITS
        }
        return write_index(folder, FORMAT_NAME, splits, origin.record())


def _write_split(
    folder: Path, name: str, samples: Iterator[Sample], options: WebDatasetOptions, dtype: np.dtype[Any]
) -> Iterator[Shard]:
    """Write the shards of a split; gives an index item for each."""
    position = number = 0
    pending = next(samples, None)
    while pending is not None:
        path = folder / f"{name}-{number:06d}.tar"
        with atomic.replacing(path) as stream:
            count = 0
            while pending is not None and count < options.max_shard_samples:
                data = b"".join(_members(f"{position:09d}", pending, dtype))
                if count and stream.tell() + len(data) + len(END_OF_TAR) > options.max_shard_bytes:
                    break
                stream.write(data)
                count, position = count + 1, position + 1
                pending = next(samples, None)
            stream.write(END_OF_TAR)
        yield shard_of(folder, path.name, count)
        number += 1


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
