"""Where a build stores its features: as npy artifacts, or, without npy, in the shards of another format.

`open_store` returns a store for either; both have the interface below. After that the state matches the shards: every
sample that it lists as finished is complete.

    store = open_store(output, state, formats, max_shard_bytes)
    store.manifests                   whether manifests list the samples (npy), or only the progress file
    store.name                        npy, arrow or webdataset
    store.begin(plan, val_ratio)      call with the plan, before anything is computed
    store.staging                     for the workers, small: `staging.open(folder)` returns a stage, and
                                      `stage.write([(PlannedRow, Features)])` a list of staged samples, each with `.row`
    store.publisher()                 for the driver: `publish(staged, rejections)`, `close()`
    store.finish(plan, stop)          call when nothing is left to compute; False if `stop()` ended it early
    store.publish(origin)             publish the complete set; returns a digest of its content, for exports
    store.end()                       call at the end of a run, complete or not
    store.read(column, ids)           a column of these samples, one array each
    store.close()                     close all files
"""

import contextlib
import dataclasses
import hashlib
import itertools
import logging
import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hfprep.errors import StoreError
from hfprep.formats.appending import (
    Encoded,
    ShardStaging,
    StagedRow,
    StoredRow,
    bare_entry,
    entry_digest,
    entry_for,
    split_of,
)
from hfprep.formats.compaction import Compaction, encoded
from hfprep.formats.formats import KEPT_FORMAT, SHARD_FORMATS
from hfprep.formats.samples import SPLITS, Origin, Sample
from hfprep.formats.shard_output import DESCRIBED, PlannedRows, ShardOutput
from hfprep.formats.unpacking import remove_empty, remove_empty_folders, unpack
from hfprep.io import atomic
from hfprep.io.chunks import chunks_of
from hfprep.io.digest import digest
from hfprep.io.file_hashes import sha256_file
from hfprep.schema import Rejection
from hfprep.store.layout import (
    PROGRESS,
    READING_THREADS,
    REJECTED,
    TRAIN,
    VAL,
    NpyOutput,
    PlannedRow,
    Publisher,
    Stage,
    json_line,
)
from hfprep.store.shard_index import UNLISTED, held
from hfprep.store.state import SampleState, State

log = logging.getLogger(__name__)

ROWS_TOGETHER = 64
SETTLED = "settled"  # state key: what the shards were last compacted for, and the resulting order


@dataclass(frozen=True)
class NpyStaging:
    def open(self, folder: Path) -> Stage:
        return Stage(folder)


class NpyStore:
    """Stores features as artifacts of the npy layout, listed in manifests."""

    name = "npy"
    manifests = True
    staging = NpyStaging()

    def __init__(self, output: NpyOutput, state: State) -> None:
        self.output = output
        self.state = state
        self.val_ratio = 0.0

    def begin(self, plan: PlannedRows, val_ratio: float) -> None:
        """Nothing to do before rows are computed."""
        del plan
        self.val_ratio = val_ratio

    def publisher(self) -> Publisher:
        return Publisher(self.output, self.state, self.val_ratio)

    def finish(self, plan: PlannedRows, stop: Callable[[], bool]) -> bool:
        """Nothing to do: artifacts are already final."""
        del plan, stop
        return True

    def read(self, column: str, ids: Sequence[str]) -> list[np.ndarray]:
        with ThreadPoolExecutor(READING_THREADS) as pool:
            return list(pool.map(lambda sample_id: self.output.read(column, sample_id), ids))

    def publish(self, origin: Origin) -> str:
        """Nothing to do: manifests and artifacts are the set."""
        del origin
        return ""

    def end(self) -> None:
        """Called at the end of a run, complete or not."""

    def close(self) -> None:
        """Nothing to close."""


class ShardStore(ShardOutput):
    """Stores features in shards of one format, appended batch by batch."""

    manifests = False

    def __init__(self, output: NpyOutput, state: State, name: str, max_shard_bytes: int) -> None:
        super().__init__(output, state, name, max_shard_bytes)
        self.val_ratio = 0.0
        self._plan: PlannedRows | None = None
        self._compaction: Compaction | None = None

    def take_place(self, known: str | None) -> None:
        """Use the output's folder, and bring the state in line with it; `known` is the format of an earlier build."""
        if known is None:
            self.check_place()  # only now: later, the folder may have leftovers of a killed run
        self.state.put(KEPT_FORMAT, self.name)
        self.recover()

    def begin(self, plan: PlannedRows, val_ratio: float) -> None:
        """Choose the columns, and move samples from artifacts of the npy layout into shards."""
        self.val_ratio, self._plan = val_ratio, plan
        self.survey(plan)
        if self.output.occupied():
            log.info("moving the npy files in %s to %s", self.output.root, self.folder)
            for rows in plan.chunks():
                for block in chunks_of(rows, ROWS_TOGETHER):
                    self._move_to_shards({row.utterance.id: row for row in block})
            for ids in chunks_of({sample_id for sample_id, _ in self.output.all_artifacts()}, ROWS_TOGETHER):
                self._move_to_shards(dict.fromkeys(ids))
            remove_empty_folders(self.output)

    @property
    def staging(self) -> ShardStaging:
        return ShardStaging(self.shards, self.val_ratio)

    def publisher(self) -> "ShardPublisher":
        return ShardPublisher(self)

    def finish(self, plan: PlannedRows, stop: Callable[[], bool]) -> bool:
        """Compact the shards once every row is finished or rejected; False if it was stopped before the end."""
        self._plan = plan
        if self._order() is not None:
            return True
        return self._listed().compact(stop)

    def _order(self) -> str | None:
        """A digest of the places of all samples if the set is already compacted for this plan, else None."""
        known = self.state.get(SETTLED, lambda value: (str(value["mark"]), str(value["order"])))
        complete = (self.folder / self.shards.marker).is_file()
        return known[1] if known is not None and complete and known[0] == self._mark() else None

    def _listed(self) -> Compaction:
        if self._compaction is None:
            assert self._plan is not None
            self._compaction = Compaction(self, self.val_ratio)
            self._compaction.list_plan(self._plan)
        return self._compaction

    def _mark(self) -> str:
        assert self._plan is not None
        return digest([sha256_file(self._plan.path), self.val_ratio, self.shards.layout(), self._sums()]).hex()

    def _sums(self) -> list[str]:
        return [shard.sha256 for shard in self.index.shards()]

    def publish(self, origin: Origin) -> str:
        """Write the files beside the shards unless they are up to date; returns a digest of the set's content."""
        schema, stats = self.output.schema, origin.stats or {}
        order, places = self._order(), None
        if order is None:
            places = self._listed().places()
            order = digest([hashlib.sha256(places[name].tobytes()).hexdigest() for name in SPLITS]).hex()
        shown = [self._sums(), order, [stats.get(name) for name in ("sha256", "versions")], schema.record()]
        content = digest(shown).hex()
        if not (self.folder / self.shards.marker).is_file() or self.state.get(DESCRIBED) != content:
            places = places or self._listed().places()
            self.withdraw()
            splits = {name: self.index.shards(name) for name in SPLITS}
            described = dataclasses.replace(origin, latents_dtype=self.shards.options.dtype, schema=schema)
            self.shards.describe(self.folder, splits, places, described)
            with atomic.explained(self.folder):
                atomic.sync_folder(self.output.root)
            self.state.put(DESCRIBED, content)
        shutil.rmtree(self.former, ignore_errors=True)
        self.state.put(SETTLED, {"mark": self._mark(), "order": order})
        remove_empty_folders(self.output)
        remove_empty(self.private)
        return content

    def read(self, column: str, ids: Sequence[str]) -> list[np.ndarray]:
        group = [self.shards.schema.by_name[column].group]
        known = zip(ids, self.state.samples(ids), list(self.index.places(ids)), strict=True)
        return [self.arrays(x, sample or SampleState({}), place, group)[column] for x, sample, place in known]

    def published(self) -> None:
        """Called after each batch."""

    def end(self) -> None:
        """Called at the end of a run, complete or not."""

    def close(self) -> None:
        """Close all files. Open shards stay open shards."""
        self.appender.close()
        if self._compaction is not None:
            self._compaction.close()
            self._compaction = None

    def complete(self, rows: Sequence[StagedRow]) -> list[Encoded]:
        """Encode rows with only some columns computed, adding the columns that the output has."""
        ids, schema = [item.row.utterance.id for item in rows], self.shards.schema
        found: dict[str, list[tuple[Sample, StoredRow]]] = {}
        for item, known, place in zip(rows, self.state.samples(ids), self.index.places(ids), strict=True):
            sample_id, sample = item.row.utterance.id, known or SampleState({})
            arrays = dict(item.arrays or {})
            arrays |= self.arrays(sample_id, sample, place, schema.all_groups - item.groups.keys())
            seconds = item.seconds if item.seconds is not None else sample.seconds
            entry = entry_for(self.shards, item.row, seconds, schema.lengths_of(arrays))
            stored = StoredRow(sample_id, entry_digest(entry), item.groups, item.seconds, item.row.source)
            found.setdefault(split_of(sample_id, self.val_ratio), []).append((Sample(entry, arrays), stored))
        return [item for split, samples in found.items() for item in encoded(self, split, samples)]

    def _move_to_shards(self, rows: Mapping[str, PlannedRow | None]) -> None:
        """Move samples from artifacts to shards; samples that are not in the plan go to the private shards."""
        found: dict[str, list[tuple[Sample, StoredRow]]] = {}
        ids, every, taken = list(rows), self.shards.schema.all_groups, []
        for sample_id, sample, place in zip(ids, self.state.samples(ids), list(self.index.places(ids)), strict=True):
            if sample is None or sample.finished != every:
                continue
            row, in_shard = rows[sample_id], held(place, sample)
            if in_shard == every:
                taken.append(sample_id)  # a killed run did not get to delete them
            elif not self.output.incomplete(sample_id, sample) - in_shard:
                arrays = self.arrays(sample_id, sample, place, every)
                if row is None:
                    split, mark, entry = UNLISTED, b"", bare_entry(self.shards, sample_id, sample.lengths)
                elif sample.missing(row.fingerprints):
                    continue  # the missing columns are computed now
                else:
                    entry = entry_for(self.shards, row, sample.seconds, sample.lengths)
                    split, mark = split_of(sample_id, self.val_ratio), entry_digest(entry)
                found.setdefault(split, []).append((Sample(entry, arrays), StoredRow(sample_id, mark, {})))
                taken.append(sample_id)
        self.appender.append([item for split, samples in found.items() for item in encoded(self, split, samples)])
        self.remove_artifacts(taken)

    def remove_artifacts(self, ids: Iterable[str]) -> None:
        with atomic.explained(self.output.root):
            for sample_id in ids:
                for path in self.output.artifacts(sample_id):
                    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                        os.unlink(path)


class ShardPublisher:
    """Publishes staged batches. Not thread-safe."""

    def __init__(self, store: ShardStore) -> None:
        self.store = store
        self._artifacts = store.output.occupied()
        self._files = {name: atomic.AppendedFile(store.output.root / name) for name in (PROGRESS, REJECTED)}

    def close(self) -> None:
        for file in self._files.values():
            file.close()

    def publish(self, staged: Sequence[StagedRow], rejections: Sequence[Rejection]) -> list[StagedRow]:
        """Append a batch and list it. If it raises StoreError, nothing of the batch is listed."""
        store = self.store
        store.appender.append([*self._blocks(staged), *store.complete([item for item in staged if item.block is None])])
        if self._artifacts:
            store.remove_artifacts(item.row.utterance.id for item in staged)
        store.published()
        for rejection in rejections:
            store.state.reject(rejection)
        self._files[PROGRESS].append(item.row.utterance.id.encode() + b"\n" for item in staged)
        self._files[REJECTED].append(json_line(rejection.record()) for rejection in rejections)
        return list(staged)

    def _blocks(self, staged: Sequence[StagedRow]) -> list[Encoded]:
        """The blocks of a batch; the samples of a block are consecutive."""
        found: list[Encoded] = []
        whole = [item for item in staged if item.block is not None]
        for _, members in itertools.groupby(whole, key=lambda item: id(item.block)):
            items = list(members)
            rows = [
                StoredRow(item.row.utterance.id, item.entry, item.groups, item.seconds, item.row.source)
                for item in items
            ]
            assert items[0].block is not None
            split = split_of(rows[0].id, self.store.val_ratio)
            found.append(Encoded(split, items[0].block, rows))
        return found


def open_store(output: NpyOutput, state: State, formats: Sequence[str], max_shard_bytes: int) -> NpyStore | ShardStore:
    """Open the store for an output's features.

    The format of an earlier build is kept: an npy output stays one, and shards keep their format, whatever else is
    requested. If npy is requested, shards are unpacked. Raises StoreError if something else is in place of the shards.
    """
    known = state.get(KEPT_FORMAT)
    if known not in (None, *SHARD_FORMATS):
        raise StoreError(f"the state in {state.path} has the unknown format {known!r}; use a new --output-dir")
    if "npy" not in formats and any((output.root / name).exists() for name in (TRAIN, VAL)):
        log.warning(
            "%s was built as npy before, so npy is kept, as with --format npy,%s. To drop the npy layout, remove %s "
            "and %s and run the same command again", output.root, ",".join(formats), TRAIN, VAL,
        )  # fmt: skip
        formats = ["npy", *formats]
    if "npy" in formats:
        if known is not None:
            store = ShardStore(output, state, known, max_shard_bytes)
            store.recover()
            log.info("unpacking %s into the npy layout", store.folder)
            log.info("%d samples unpacked", unpack(store))
            state.put(KEPT_FORMAT, None)
        return NpyStore(output, state)
    if known is not None and known not in formats:
        log.warning("%s keeps its features as %s, as in earlier builds; %s is written in addition",
                    output.root, known, ", ".join(formats))  # fmt: skip
    store = ShardStore(output, state, known or formats[0], max_shard_bytes)
    store.take_place(known)
    return store
