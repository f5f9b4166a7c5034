"""The additional formats of a build, exported again only if the features have changed."""

import hashlib
import json
import logging
from collections.abc import Iterable
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from hfprep.formats.arrow_writer import ArrowOptions, export_arrow
from hfprep.formats.extra_fields import extra_path, write_extra_fields
from hfprep.formats.formats import SHARD_FORMATS, open_set
from hfprep.formats.samples import NO_EXTRA, SampleSet
from hfprep.formats.shards import ShardOptions
from hfprep.formats.webdataset_writer import WebDatasetOptions, export_webdataset
from hfprep.io.file_hashes import sha256_file
from hfprep.store.layout import TRAIN, VAL
from hfprep.store.state import State
from hfprep.store.statistics import read_stats

log = logging.getLogger(__name__)

EXPORTED = "exports"
CHUNK_ROWS = 4096


def export_shards(source: SampleSet, target: Path, name: str, options: ShardOptions) -> dict[str, int]:
    """Write a sample set in the format `name`, as `export_arrow` or `export_webdataset` does."""
    size, dtype = options.max_shard_bytes, options.dtype
    if name == "arrow":
        return export_arrow(source, target, ArrowOptions(max_shard_bytes=size, dtype=dtype))
    return export_webdataset(source, target, WebDatasetOptions(max_shard_bytes=size, dtype=dtype))


def keep_extra_fields(root: Path, rows: pa.Table) -> None:
    """Store the source manifest's other fields of all planned rows (columns id and extra) for later exports."""
    if pc.all(pc.equal(rows.column("extra"), NO_EXTRA)).as_py() is not False:
        extra_path(root).unlink(missing_ok=True)
        return
    batches = rows.select(["id", "extra"]).to_batches(max_chunksize=CHUNK_ROWS)
    columns = (zip(*(column.to_pylist() for column in batch.columns), strict=True) for batch in batches)
    write_extra_fields(root, chain.from_iterable(columns))


def forget_exports(state: State) -> None:
    """Mark all exports as out of date, because features are about to change."""
    if state.get(EXPORTED):
        state.put(EXPORTED, {})


def export_formats(root: Path, state: State, formats: Iterable[str], max_shard_bytes: int, source: str = "") -> None:
    """Update root/arrow and root/webdataset, if requested, from the finished features in `root`.

    The features are in the npy layout, or in shards if `source`, a digest of the shards, is given.
    """
    present = f"{source or _digest(root)}:{max_shard_bytes}"
    for name in formats:
        done: dict[str, Any] = state.get(EXPORTED, dict) or {}
        if name not in SHARD_FORMATS or (done.get(name) == present and (root / name).is_dir()):
            continue
        log.info("writing %s", root / name)
        export_shards(open_set(root), root / name, name, ShardOptions(max_shard_bytes=max_shard_bytes))
        state.put(EXPORTED, done | {name: present})


def _digest(root: Path) -> str:
    """A digest of what an export contains besides the arrays."""
    stats = read_stats(root) or {}
    files = [root / TRAIN, root / VAL, extra_path(root)]
    parts = [sha256_file(path) if path.is_file() else "" for path in files]
    parts.append(json.dumps([stats.get(name) for name in ("sha256", "versions")], sort_keys=True))
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()
