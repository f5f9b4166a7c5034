"""Where a build keeps its features: as npy artifacts, or, where npy is not asked for, in the shards of another format.

`open_store` gives one of two things that a build uses alike. From then on the state is true of shards: what it says is
finished is whole.

    kept = open_store(output, state, formats, max_shard_bytes)
    kept.manifests                    whether manifests list the samples (npy), or the progress file alone
    kept.name                         npy, arrow or webdataset
    kept.begin(plan, val_ratio)       once the plan is there, before anything is computed
    kept.staging                      for the workers, small: `staging.open(folder)` gives a stage,
                                      `stage.write([(PlannedRow, Features)])` a list of staged samples, each with `.row`
    kept.publisher()                  for the driver: `publish(staged, rejections)`, `close()`
    kept.finish(plan, stop)           once nothing is left to compute; False if `stop()` ended it early
    kept.publish(origin)              the complete set in its place; a digest of what it shows, for exports
    kept.end()                        the run ends, complete or not
    kept.read(column, ids)            that column of these samples, one array each
    kept.close()                      leave nothing open
"""

import contextlib
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
from hfprep.formats.formats import KEPT_FORMAT, SHARD_FORMATS
from hfprep.formats.samples import SPLITS, Origin, Sample
from hfprep.formats.settling import Settling, encoded
from hfprep.formats.shard_output import DESCRIBED, PlannedRows, ShardOutput
from hfprep.formats.unpacking import remove_empty, remove_empty_folders, unpack
from hfprep.io import atomic
from hfprep.io.chunks import chunks_of
from hfprep.io.digest import digest
from hfprep.io.file_hashes import sha256_file
from hfprep.io.npy_format import parse_npy
from hfprep.schema import Rejection
from hfprep.store.layout import (
    PROGRESS,
    REJECTED,
    TRAIN,
    VAL,
    NpyOutput,
    PlannedRow,
    Publisher,
    Stage,
    json_line,
)
from hfprep.store.shard_index import UNLISTED
from hfprep.store.state import SampleState, State

log = logging.getLogger(__name__)

ROWS_TOGETHER = 64
SETTLED = "settled"  # in the state: what the shards were last settled for, and the order that this gave


@dataclass(frozen=True)
class NpyStaging:
    """How to open a stage for artifacts of the npy layout."""

    def open(self, folder: Path) -> Stage:
        """A stage in a folder of one process."""
        return Stage(folder)


class NpyKept:
    """Features as artifacts of the npy layout, listed by manifests."""

    name = "npy"
    manifests = True
    staging = NpyStaging()

    def __init__(self, output: NpyOutput, state: State) -> None:
        self.output = output
        self.state = state
        self.val_ratio = 0.0

    def begin(self, plan: PlannedRows, val_ratio: float) -> None:
        """Nothing has to be done before rows are computed."""
        del plan
        self.val_ratio = val_ratio

    def publisher(self) -> Publisher:
        """What makes batches final."""
        return Publisher(self.output, self.state, self.val_ratio)

    def finish(self, plan: PlannedRows, stop: Callable[[], bool]) -> bool:
        """Artifacts are final already."""
        del plan, stop
        return True

    def read(self, column: str, ids: Sequence[str]) -> list[np.ndarray]:
        """A column of these samples."""
        paths = [str(self.output.artifact(column, sample_id)) for sample_id in ids]
        with ThreadPoolExecutor(self.output.reading_threads) as pool:
            return list(pool.map(self._read, paths))

    def _read(self, path: str) -> np.ndarray:
        try:
            return parse_npy(self.output.content(path))
        except (OSError, ValueError) as error:
            message = f"{path} was complete but cannot be read now: {error}; run the same command again"
            raise StoreError(message) from error

    def publish(self, origin: Origin) -> str:
        """Manifests and artifacts are the set."""
        del origin
        return ""

    def end(self) -> None:
        """The run ends, complete or not."""

    def close(self) -> None:
        """Nothing is open."""


class ShardKept(ShardOutput):
    """Features in shards of one format, appended batch by batch."""

    manifests = False

    def __init__(self, output: NpyOutput, state: State, name: str, max_shard_bytes: int) -> None:
        super().__init__(output, state, name, max_shard_bytes)
        self.val_ratio = 0.0
        self._plan: PlannedRows | None = None
        self._settling: Settling | None = None

    def begin(self, plan: PlannedRows, val_ratio: float) -> None:
        """Choose the columns, and bring what is in artifacts of the npy layout into shards."""
        self.val_ratio, self._plan = val_ratio, plan
        self.survey(plan)
        if self.output.occupied():
            log.info("%s holds features as npy files; they go into %s", self.output.root, self.folder)
            for rows in plan.chunks():
                for block in chunks_of(rows, ROWS_TOGETHER):
                    self._take_in({row.utterance.id: row for row in block})
            for ids in chunks_of({sample_id for sample_id, _ in self.output.all_artifacts()}, ROWS_TOGETHER):
                self._take_in(dict.fromkeys(ids))
            remove_empty_folders(self.output)

    @property
    def staging(self) -> ShardStaging:
        """How workers serialise what they compute."""
        return ShardStaging(self.shards, self.val_ratio)

    def publisher(self) -> "ShardPublisher":
        """What makes batches final."""
        return ShardPublisher(self)

    def finish(self, plan: PlannedRows, stop: Callable[[], bool]) -> bool:
        """Settle the shards once every row is finished or rejected; False if it was stopped before the end."""
        self._plan = plan
        if self._order() is not None:
            return True
        return self._listed().settle(stop)

    def _order(self) -> str | None:
        """A digest of the places of all samples, where the set is settled for this plan; else None."""
        known = self.state.get(SETTLED) or {}
        complete = (self.folder / self.shards.marker).is_file()
        return known["order"] if complete and known.get("mark") == self._mark() else None

    def _listed(self) -> Settling:
        """The shards held against the plan."""
        if self._settling is None:
            assert self._plan is not None
            self._settling = Settling(self, self.val_ratio)
            self._settling.list_plan(self._plan)
        return self._settling

    def _mark(self) -> str:
        """What tells that shards were settled for this plan."""
        assert self._plan is not None
        return digest([sha256_file(self._plan.path), self.val_ratio, self.shards.layout(), self._sums()]).hex()

    def _sums(self) -> list[str]:
        return [shard.sha256 for shard in self.index.shards()]

    def publish(self, origin: Origin) -> str:
        """Write the files beside the shards; gives a digest of the whole. Nothing where they are there already."""
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
            described = Origin(origin.stats, origin.fingerprints, self.shards.options.dtype, schema)
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
        """A column of these samples."""
        group = [self.shards.schema.by_name[column].group]
        known = zip(ids, self.state.samples(ids), list(self.index.places(ids)), strict=True)
        return [self.stored.arrays(x, sample or SampleState({}), place, group)[column] for x, sample, place in known]

    def published(self) -> None:
        """A batch is final."""

    def end(self) -> None:
        """The run ends, complete or not."""

    def close(self) -> None:
        """Let go of what is open, as it is."""
        self.appender.close()
        if self._settling is not None:
            self._settling.close()
            self._settling = None

    def complete(self, rows: Sequence[StagedRow]) -> list[Encoded]:
        """Rows of which only some columns were computed, with those that the output has, as blocks."""
        ids, schema = [item.row.utterance.id for item in rows], self.shards.schema
        found: dict[str, list[tuple[Sample, StoredRow]]] = {}
        for item, known, place in zip(rows, self.state.samples(ids), self.index.places(ids), strict=True):
            sample_id, sample = item.row.utterance.id, known or SampleState({})
            arrays = dict(item.arrays or {})
            arrays |= self.stored.arrays(sample_id, sample, place, schema.all_groups - item.groups.keys())
            seconds = item.seconds if item.seconds is not None else sample.seconds
            entry = entry_for(self.shards, item.row, seconds, schema.lengths_of(arrays))
            stored = StoredRow(sample_id, entry_digest(entry), item.groups, item.seconds, item.row.source)
            found.setdefault(split_of(sample_id, self.val_ratio), []).append((Sample(entry, arrays), stored))
        return [item for split, samples in found.items() for item in encoded(self, split, samples)]

    def _take_in(self, rows: Mapping[str, PlannedRow | None]) -> None:
        """Append samples that are in artifacts, and delete these; rows of no plan are kept beside the set."""
        found: dict[str, list[tuple[Sample, StoredRow]]] = {}
        ids, every, taken = list(rows), self.shards.schema.all_groups, []
        for sample_id, sample, place in zip(ids, self.state.samples(ids), list(self.index.places(ids)), strict=True):
            if sample is None or sample.finished != every:
                continue
            held = frozenset[str]() if place is None else place.holds(sample)
            row = rows[sample_id]
            if held == every:
                taken.append(sample_id)  # a killed run had not come to delete them
            elif not self.output.incomplete(sample_id, sample) - held:
                arrays = self.stored.arrays(sample_id, sample, place, every)
                if row is None:
                    split, mark, entry = UNLISTED, b"", bare_entry(self.shards, sample_id, sample.lengths)
                elif sample.missing(row.fingerprints):
                    continue  # the rest of it is computed now, or it counts as not listed
                else:
                    entry = entry_for(self.shards, row, sample.seconds, sample.lengths)
                    split, mark = split_of(sample_id, self.val_ratio), entry_digest(entry)
                found.setdefault(split, []).append((Sample(entry, arrays), StoredRow(sample_id, mark, {})))
                taken.append(sample_id)
        self.appender.append([item for split, samples in found.items() for item in encoded(self, split, samples)])
        self.remove_artifacts(taken)

    def remove_artifacts(self, ids: Iterable[str]) -> None:
        """Delete the artifacts of samples that are in a shard."""
        with atomic.explained(self.output.root):
            for sample_id in ids:
                for path in self.output.artifacts(sample_id):
                    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                        os.unlink(path)


class ShardPublisher:
    """Makes staged batches final, one after another; use from one thread at a time."""

    def __init__(self, kept: ShardKept) -> None:
        self.kept = kept
        self._artifacts = kept.output.occupied()
        self._files = {name: atomic.AppendedFile(kept.output.root / name) for name in (PROGRESS, REJECTED)}

    def close(self) -> None:
        """Close the files; everything published is on disk already."""
        for file in self._files.values():
            file.close()

    def publish(self, staged: Sequence[StagedRow], rejections: Sequence[Rejection]) -> list[StagedRow]:
        """Append a batch and list it; raises StoreError, and then nothing of the batch is listed."""
        kept = self.kept
        kept.appender.append([*self._blocks(staged), *kept.complete([item for item in staged if item.block is None])])
        if self._artifacts:
            kept.remove_artifacts(item.row.utterance.id for item in staged)
        kept.published()
        for rejection in rejections:
            kept.state.reject(rejection)
        self._files[PROGRESS].append(item.row.utterance.id.encode() + b"\n" for item in staged)
        self._files[REJECTED].append(json_line(rejection.record()) for rejection in rejections)
        return list(staged)

    def _blocks(self, staged: Sequence[StagedRow]) -> list[Encoded]:
        """The blocks of a batch; samples of one stand one after another."""
        found: list[Encoded] = []
        whole = [item for item in staged if item.block is not None]
        for _, members in itertools.groupby(whole, key=lambda item: id(item.block)):
            items = list(members)
            rows = [
                StoredRow(item.row.utterance.id, item.entry, item.groups, item.seconds, item.row.source)
                for item in items
            ]
            assert items[0].block is not None
            split = split_of(rows[0].id, self.kept.val_ratio)
            found.append(Encoded(split, items[0].block, rows))
        return found


def open_store(output: NpyOutput, state: State, formats: Sequence[str], max_shard_bytes: int) -> NpyKept | ShardKept:
    """Where an output keeps its features.

    What an earlier build was asked for stays: an output in the npy layout stays one, and shards stay in their format,
    whichever else is asked for. Shards are unpacked where npy is asked for. Raises StoreError if something else is
    in the shards' place.
    """
    known = state.get(KEPT_FORMAT)
    if known not in (None, *SHARD_FORMATS):
        raise StoreError(f"the state in {state.path} names the format {known!r}; use a new --output-dir")
    if "npy" not in formats and any((output.root / name).exists() for name in (TRAIN, VAL)):
        log.warning(
            "%s was built as npy before: that is kept, as with --format npy,%s. To give the npy layout up, remove %s "
            "and %s and run the same command again", output.root, ",".join(formats), TRAIN, VAL,
        )  # fmt: skip
        formats = ["npy", *formats]
    if "npy" in formats:
        if known is not None:
            kept = ShardKept(output, state, known, max_shard_bytes)
            kept.recover()
            log.info("unpacking %s into the npy layout", kept.folder)
            log.info("%d samples unpacked", unpack(kept))
            state.put(KEPT_FORMAT, None)
        return NpyKept(output, state)
    if known is not None and known not in formats:
        log.warning("%s keeps its features as %s, as in earlier builds; %s is written beside that",
                    output.root, known, ", ".join(formats))  # fmt: skip
    kept = ShardKept(output, state, known or formats[0], max_shard_bytes)
    if known is None:
        kept.check_place()  # from then on the folder is the output's own, whatever a killed run left there
    state.put(KEPT_FORMAT, kept.name)
    kept.recover()
    return kept
