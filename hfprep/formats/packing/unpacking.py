"""Shards back into artifacts of the npy layout, where a build is asked for it now and was not before.

Shard by shard: artifacts under temporary names, synced, renamed; then the state knows no more of the shard. Killed
anywhere, every sample lies complete in at least one place that the state knows.
"""

import itertools
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from hfprep.formats.packing.reading import SampleReader
from hfprep.io import atomic
from hfprep.io.chunks import chunks_of
from hfprep.schema import COLUMNS
from hfprep.store.layout import IO_THREADS, NpyOutput, put_in_place, write_array
from hfprep.store.shard_index import Shard, ShardIndex
from hfprep.store.state import State

SAMPLES_TOGETHER = 64


def unpack(output: NpyOutput, state: State, index: ShardIndex, reader: SampleReader) -> int:
    """Make artifacts of everything that lies in shards; gives the number of samples.

    Shards that are part of a complete set stay there, as an export; others are deleted.
    """
    count = 0
    with ThreadPoolExecutor(IO_THREADS) as pool:
        for shard in index.shards():
            count += _unpack_shard(output, state, index, reader, shard, pool)
            path = index.path(shard)
            index.forget([shard.serial])
            if path == index.own_path(shard.serial):
                with atomic.explained(path):
                    path.unlink(missing_ok=True)
    return count


def _unpack_shard(
    output: NpyOutput, state: State, index: ShardIndex, reader: SampleReader, shard: Shard, pool: ThreadPoolExecutor
) -> int:
    count = 0
    numbers = itertools.count()
    for block in chunks_of(index.members(shard.serial), SAMPLES_TOGETHER):
        jobs: list[tuple[Path, Path, np.ndarray]] = []
        for (sample_id, packed), sample in zip(block, state.samples(item[0] for item in block), strict=True):
            if sample is None:
                continue
            need = packed.holds(sample) & output.incomplete(sample_id, sample)
            for name, array in reader.arrays(sample_id, sample, packed, need).items() if need else ():
                jobs.append((output.work / f"{next(numbers)}-{name}", output.artifact(name, sample_id), array))
            count += bool(need)
        list(pool.map(lambda job: write_array(job[0], job[2]), jobs))
        put_in_place(output.root, [(temporary, final) for temporary, final, _ in jobs], set())
    return count


def remove_empty_folders(output: NpyOutput) -> None:
    """Remove the npy layout's folders, as far as nothing lies in them."""
    for column in COLUMNS:
        root = output.root / column
        for folder in sorted((path for path in root.rglob("*") if path.is_dir()), reverse=True):
            _remove_if_empty(folder)
        _remove_if_empty(root)


def _remove_if_empty(folder: Path) -> None:
    if folder.is_dir() and not folder.is_symlink() and not any(folder.iterdir()):
        folder.rmdir()
