"""Unpacks shards into artifacts of the npy layout, when npy is requested for an output with shards.

Shard by shard: artifacts are written under temporary names, synced and renamed; then the state forgets the shard. After
a kill at any point, every sample is complete in at least one place that the state lists.
"""

import itertools
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from hfprep.formats.shard_output import ShardOutput
from hfprep.io import atomic
from hfprep.io.chunks import chunks_of
from hfprep.store.layout import IO_THREADS, NpyOutput, put_in_place, write_arrays
from hfprep.store.shard_index import UNLISTED, Shard, held

SAMPLES_TOGETHER = 64


def unpack(store: ShardOutput) -> int:
    """Write all samples in shards as artifacts; returns the number of samples.

    Shards of a complete set are kept, as an export; others are deleted.
    """
    store.recognise()
    complete, count = (store.folder / store.shards.marker).is_file(), 0
    with ThreadPoolExecutor(IO_THREADS) as pool:
        for shard in store.index.shards():
            count += _unpack_shard(store, shard, pool)
            store.index.forget([shard.serial])
            if not complete or shard.split == UNLISTED:
                store.removed(shard)
    if not complete and store.folder.is_dir():
        remove_empty(store.folder)
    remove_empty(store.private)
    return count


def _unpack_shard(store: ShardOutput, shard: Shard, pool: ThreadPoolExecutor) -> int:
    count, output = 0, store.output
    numbers = itertools.count()
    for block in chunks_of(store.index.members(shard.serial), SAMPLES_TOGETHER):
        jobs: list[list[tuple[Path, np.ndarray]]] = []
        moves: list[tuple[Path, Path]] = []
        for (sample_id, place), sample in zip(block, store.state.samples(item[0] for item in block), strict=True):
            if sample is None or not (need := held(place, sample) & output.incomplete(sample_id, sample)):
                continue
            arrays = store.arrays(sample_id, sample, place, need)
            files = {name: output.work / f"{next(numbers)}-{name}" for name in arrays}
            jobs.append([(files[name], array) for name, array in arrays.items()])
            moves += [(path, output.artifact(name, sample_id)) for name, path in files.items()]
            count += 1
        list(pool.map(write_arrays, jobs))
        put_in_place(output.root, moves, set())
    return count


def remove_empty_folders(output: NpyOutput) -> None:
    for column in output.schema.columns:
        remove_empty(output.root / column.name)


def remove_empty(root: Path) -> None:
    """Remove empty folders in a folder, and the folder if it is empty."""
    with atomic.explained(root):
        folders = [path for path in root.rglob("*") if path.is_dir()] if root.is_dir() else []
        for folder in [*sorted(folders, reverse=True), root]:
            if folder.is_dir() and not folder.is_symlink() and not any(folder.iterdir()):
                folder.rmdir()
