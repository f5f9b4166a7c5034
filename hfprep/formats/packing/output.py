"""How a build keeps its features: as npy artifacts, or, where npy is not asked for, in the shards of another format.

Gives `keep_features` and `ShardOutput`, which is all that a build has to know of packing.
"""

import logging
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol

import datasets
import numpy as np
import pyarrow.compute as pc

from hfprep.errors import StoreError
from hfprep.formats.packing.formats import shard_format
from hfprep.formats.packing.packer import Packer
from hfprep.formats.packing.reading import SampleReader
from hfprep.formats.packing.shard_set import ShardSet
from hfprep.formats.packing.unpacking import remove_empty_folders, unpack
from hfprep.formats.samples import NO_EXTRA, Origin
from hfprep.io import atomic
from hfprep.io.chunks import chunks_of
from hfprep.schema import COLUMNS, Need
from hfprep.store.layout import TRAIN, VAL, NpyOutput, PlannedRow
from hfprep.store.shard_index import ShardIndex
from hfprep.store.state import State
from hfprep.store.statistics import codebook_summary

log = logging.getLogger(__name__)

FORMAT = "packed_format"
FILES_TOGETHER = 256


class PlannedRows(Protocol):
    """The rows of a plan: as objects, and as columns (line, need)."""

    dataset: datasets.Dataset

    def chunks(self) -> Iterator[list[PlannedRow]]: ...


def keep_features(
    output: NpyOutput, state: State, formats: Sequence[str], max_shard_bytes: int
) -> "ShardOutput | None":
    """The shards that an output keeps its features in; None where it keeps them as npy.

    What an earlier build was asked for stays: an output in the npy layout stays one, and shards stay in their format,
    whichever else is asked for. Shards are unpacked where npy is asked for. Raises StoreError where something else lies
    in the shards' place.
    """
    known = state.get(FORMAT)
    if "npy" not in formats and any((output.root / name).exists() for name in (TRAIN, VAL)):
        log.warning(
            "%s was built as npy before: that is kept, as with --format npy,%s. To give the npy layout up, remove %s "
            "and %s and run the same command again", output.root, ",".join(formats), TRAIN, VAL,
        )  # fmt: skip
        formats = ["npy", *formats]
    if "npy" in formats:
        if known is not None:
            _unpack(ShardOutput(output, state, known, max_shard_bytes))
            state.put(FORMAT, None)
        return None
    if known is not None and known not in formats:
        log.warning("%s keeps its features as %s, as it was asked before; %s is written beside that",
                    output.root, known, ", ".join(formats))  # fmt: skip
    kept = ShardOutput(output, state, known or formats[0], max_shard_bytes)
    kept.set.check_place()
    state.put(FORMAT, kept.name)
    kept.mend()
    return kept


def _unpack(kept: "ShardOutput") -> None:
    kept.mend()
    log.info("unpacking %s into the npy layout", kept.set.folder)
    count = unpack(kept.output, kept.index.state, kept.index, SampleReader(kept.output, kept.index, kept.shards))
    folder = kept.set.folder
    if folder.is_dir() and not (folder / kept.shards.marker).is_file():
        shutil.rmtree(folder)  # it was on its way to be a set; its samples are artifacts now
    log.info("%d samples unpacked", count)


class ShardOutput:
    """The features of an output in shards of the format `name`."""

    def __init__(self, output: NpyOutput, state: State, name: str, max_shard_bytes: int) -> None:
        self.output = output
        self.name = name
        self.shards = shard_format(name, max_shard_bytes)
        self.index = ShardIndex(output.root, state, self.shards.suffix)
        self.set = ShardSet(self.index, self.shards)
        self.finished = False
        self._packer: Packer | None = None

    def mend(self) -> None:
        """Hold what is known against the disk: what a killed run left goes, shards that are gone are forgotten."""
        broken = self.index.mend()
        if broken:
            names = ", ".join(shard.name or self.index.own_path(shard.serial).name for shard in broken[:5])
            log.warning("%d shards are missing or not whole (%s); their samples count as not computed",
                        len(broken), names)  # fmt: skip
        for block in chunks_of(self.output.all_artifacts(), FILES_TOGETHER):
            ids = [sample_id for sample_id, _ in block]
            known = zip(block, self.index.state.samples(ids), list(self.index.packed(ids)), strict=True)
            for (sample_id, column), sample, packed in known:
                if sample is not None and packed is not None and packed.holds(sample) & COLUMNS[column].need:
                    with atomic.explained(self.output.root):
                        self.output.artifact(column, sample_id).unlink()

    def begin(self, plan: PlannedRows, *, val_ratio: float, codebook_size: int, stop: Callable[[], bool]) -> None:
        """Pack the rows of a plan as they are settled, until `close`; once `stop()` is true, no more of them."""
        columns = plan.dataset.data
        self._stop = stop
        self._packer = Packer(
            self.output,
            self.index,
            self.shards,
            chunks=plan.chunks,
            lines=columns.column("line").to_numpy(),
            settled=columns.column("need").to_numpy() == 0,
            any_extra=pc.all(pc.equal(columns.column("extra"), NO_EXTRA)).as_py() is False,
            val_ratio=val_ratio,
            codebook_size=codebook_size,
        )

    def settle(self, lines: Iterable[int]) -> None:
        """Pack what can be packed now that these manifest lines are finished or rejected."""
        assert self._packer is not None
        self._packer.settle(lines)
        self._packer.advance(self._stop)

    def finish(self) -> None:
        """Pack what is left once every row is finished or rejected; `finished` unless it was stopped."""
        assert self._packer is not None
        self.finished = self._packer.finish(self._stop)

    def close(self) -> None:
        """Drop what is half-written."""
        if self._packer is not None:
            self._packer.abandon()

    def codebook_use(self, ids: Iterable[str], size: int) -> dict[str, Any]:
        """How the codes of the finished samples with these ids spread over the codebook."""
        assert self._packer is not None
        whole = self._packer.listed_shards()
        counts = self.index.code_counts(whole, size)
        reader, state = self._packer.reader, self.index.state
        for block in chunks_of(ids, FILES_TOGETHER):
            known = zip(block, state.samples(block), list(self.index.packed(block)), strict=True)
            for sample_id, sample, packed in known:
                if packed is not None and packed.shard in whole:
                    continue
                if sample is None:
                    raise StoreError(f"sample {sample_id!r} is listed and not known; run the same command again")
                codes = reader.arrays(sample_id, sample, packed, Need.CODES)["codes"]
                counts += np.bincount(codes, minlength=size)[:size]
        return codebook_summary(counts)

    def publish(self, origin: Origin) -> str:
        """Put the complete set in its place; gives a digest of what it shows."""
        shown = self.set.publish(origin)
        remove_empty_folders(self.output)
        return shown
