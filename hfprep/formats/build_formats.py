"""The other formats of a build: kept beside its features, exported again when, and only when, these have changed."""

import hashlib
import json
import logging
from collections.abc import Callable, Iterable
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from hfprep.formats.arrow_writer import ArrowOptions, export_arrow
from hfprep.formats.extra_fields import extra_path, write_extra_fields
from hfprep.formats.formats import open_set
from hfprep.formats.samples import NO_EXTRA, SampleSet
from hfprep.formats.webdataset_writer import WebDatasetOptions, export_webdataset
from hfprep.io.file_hashes import sha256_file
from hfprep.store.layout import STATS, TRAIN, VAL
from hfprep.store.state import State

log = logging.getLogger(__name__)

EXPORTED = "exports"
CHUNK_ROWS = 4096
_EXPORTS: dict[str, Callable[[SampleSet, Path, int], dict[str, int]]] = {
    "arrow": lambda source, target, size: export_arrow(source, target, ArrowOptions(max_shard_bytes=size)),
    "webdataset": lambda source, target, size: export_webdataset(
        source, target, WebDatasetOptions(max_shard_bytes=size)
    ),
}


def keep_extra_fields(root: Path, rows: pa.Table) -> None:
    """Keep the source manifest's other fields of all planned rows (columns id and extra) for exports to come."""
    if pc.all(pc.equal(rows.column("extra"), NO_EXTRA)).as_py() is not False:
        extra_path(root).unlink(missing_ok=True)
        return
    batches = rows.select(["id", "extra"]).to_batches(max_chunksize=CHUNK_ROWS)
    columns = (zip(*(column.to_pylist() for column in batch.columns), strict=True) for batch in batches)
    write_extra_fields(root, chain.from_iterable(columns))


def forget_exports(state: State) -> None:
    """Say that features are about to change, so that no export of them counts as up to date."""
    if state.get(EXPORTED):
        state.put(EXPORTED, {})


def export_formats(root: Path, state: State, formats: Iterable[str], max_shard_bytes: int, source: str = "") -> None:
    """Bring root/arrow and root/webdataset, where asked for, up to date with the finished features in `root`.

    These are the npy layout, unless `source` is given: a digest of the shards that the features are kept in.
    """
    present = f"{source or _digest(root)}:{max_shard_bytes}"
    for name in formats:
        export = _EXPORTS.get(name)
        done: dict[str, Any] = state.get(EXPORTED) or {}
        if export is None or (done.get(name) == present and (root / name).is_dir()):
            continue
        log.info("writing %s", root / name)
        export(open_set(root), root / name, max_shard_bytes)
        state.put(EXPORTED, done | {name: present})


def _digest(root: Path) -> str:
    """What an export shows of an output, besides the arrays themselves."""
    stats = json.loads((root / STATS).read_bytes())
    files = [root / TRAIN, root / VAL, extra_path(root)]
    parts = [sha256_file(path) if path.is_file() else "" for path in files]
    parts.append(json.dumps([stats.get(name) for name in ("sha256", "versions")], sort_keys=True))
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()
