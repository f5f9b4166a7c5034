"""Shards back into artifacts of the npy layout, where a build is asked for it now and was not before.

Shard by shard: artifacts under temporary names, synced, renamed; then the state knows no more of the shard. Killed
anywhere, every sample is complete in at least one place that the state knows.
"""

import itertools
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from hfprep.formats.shard_output import ShardOutput
from hfprep.io import atomic
from hfprep.io.chunks import chunks_of
from hfprep.store.layout import IO_THREADS, NpyOutput, put_in_place, write_array
from hfprep.store.shard_index import UNLISTED, Shard

SAMPLES_TOGETHER = 64


def unpack(kept: ShardOutput) -> int:
    """Make artifacts of everything that is in shards; gives the number of samples.

    Shards that are part of a complete set stay there, as an export; others are deleted.
    """
    kept.recognise()
    complete, count = (kept.folder / kept.shards.marker).is_file(), 0
    with ThreadPoolExecutor(IO_THREADS) as pool:
        for shard in kept.index.shards():
            count += _unpack_shard(kept, shard, pool)
            kept.index.forget([shard.serial])
            if not complete or shard.split == UNLISTED:
                kept.removed(shard)
    if not complete and kept.folder.is_dir():
        remove_empty(kept.folder)
    remove_empty(kept.private)
    return count


def _unpack_shard(kept: ShardOutput, shard: Shard, pool: ThreadPoolExecutor) -> int:
    count, output = 0, kept.output
    numbers = itertools.count()
    for block in chunks_of(kept.index.members(shard.serial), SAMPLES_TOGETHER):
        jobs: list[tuple[Path, Path, np.ndarray]] = []
        for (sample_id, place), sample in zip(block, kept.state.samples(item[0] for item in block), strict=True):
            if sample is None:
                continue
            need = place.holds(sample) & output.incomplete(sample_id, sample)
            for name, array in kept.stored.arrays(sample_id, sample, place, need).items() if need else ():
                jobs.append((output.work / f"{next(numbers)}-{name}", output.artifact(name, sample_id), array))
            count += bool(need)
        list(pool.map(lambda job: write_array(job[0], job[2]), jobs))
        put_in_place(output.root, [(temporary, final) for temporary, final, _ in jobs], set())
    return count


def remove_empty_folders(output: NpyOutput) -> None:
    """Remove the npy layout's folders, as far as nothing is in them."""
    for column in output.schema.columns:
        remove_empty(output.root / column.name)


def remove_empty(root: Path) -> None:
    """Remove a folder and those in it, as far as nothing is in them."""
    with atomic.explained(root):
        folders = [path for path in root.rglob("*") if path.is_dir()] if root.is_dir() else []
        for folder in [*sorted(folders, reverse=True), root]:
            if folder.is_dir() and not folder.is_symlink() and not any(folder.iterdir()):
                folder.rmdir()
