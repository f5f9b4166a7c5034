"""Computed batches on their way into shards: serialised where they were computed, appended where the output is.

`ShardStaging` goes to the workers and opens a `ShardStage` there. `Appender` appends what these give: bytes, one sync
for each split, then one transaction of the state, which says where the samples are and that they are finished. Killed
anywhere, the state never claims what is not on disk.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hfprep.formats.samples import SPLITS, Entry, Sample
from hfprep.formats.shards import Block, ShardFormat, SplitWriter
from hfprep.schema import METADATA, Features, manifest_record, metadata_of
from hfprep.store.layout import PlannedRow, is_validation
from hfprep.store.shard_index import Place, Shard, ShardIndex
from hfprep.store.state import Finished, State

DIGEST_BYTES = 16


@dataclass(frozen=True, slots=True)
class StagedRow:
    """A computed sample, serialised in a block that it may share with its neighbours.

    Where some of its columns are in the output already, there is no block: `arrays` are the new ones.
    """

    row: PlannedRow
    groups: dict[str, Finished]
    seconds: float | None
    entry: bytes
    block: Block | None = None
    arrays: Mapping[str, np.ndarray] | None = None


@dataclass(frozen=True, slots=True)
class StoredRow:
    """What the state is told of a sample that was appended; `groups` are those that become finished with it."""

    id: str
    entry: bytes
    groups: Mapping[str, Finished]
    seconds: float | None = None
    source: str | None = None


@dataclass(frozen=True, slots=True)
class Encoded:
    """A block for a split, and its samples."""

    split: str
    block: Block
    rows: Sequence[StoredRow]


def entry_digest(entry: Entry) -> bytes:
    """What tells a record and its other fields from others."""
    return hashlib.blake2b(entry.line + entry.extra.encode(), digest_size=DIGEST_BYTES).digest()


def entry_for(shards: ShardFormat, row: PlannedRow, seconds: float | None, lengths: Mapping[str, int]) -> Entry:
    """The entry of a complete sample of a plan."""
    record = manifest_record(shards.schema, metadata_of(row.utterance, seconds), lengths)
    return Entry(record, None, row.utterance.extra)


def bare_entry(shards: ShardFormat, sample_id: str, lengths: Mapping[str, int]) -> Entry:
    """The entry of a sample that no manifest lists."""
    metadata = dict.fromkeys(METADATA) | {"id": sample_id, "audio_path": "", "text": ""}
    return Entry(manifest_record(shards.schema, metadata, lengths))


def split_of(sample_id: str, val_ratio: float) -> str:
    """The split that a sample belongs to."""
    return SPLITS[is_validation(sample_id, val_ratio)]


@dataclass(frozen=True)
class ShardStaging:
    """How to open a stage, here or in another process."""

    shards: ShardFormat
    val_ratio: float

    def open(self, folder: Path) -> "ShardStage":
        """A stage; it needs no folder."""
        del folder
        return ShardStage(self.shards, self.val_ratio)


class ShardStage:
    """Serialises computed samples."""

    def __init__(self, shards: ShardFormat, val_ratio: float) -> None:
        self.shards = shards
        self.val_ratio = val_ratio

    def close(self) -> None:
        """Nothing is open."""

    def write(self, computed: Sequence[tuple[PlannedRow, Features]]) -> list[StagedRow]:
        """Serialise these samples, those of one split together; raises StoreError."""
        staged: list[StagedRow] = []
        whole: dict[str, list[tuple[PlannedRow, Features]]] = {name: [] for name in SPLITS}
        for row, features in computed:
            if features.arrays.keys() == self.shards.schema.by_name.keys():
                whole[split_of(row.utterance.id, self.val_ratio)].append((row, features))
            else:
                groups = finished_groups(self.shards, row, features.arrays)
                staged.append(StagedRow(row, groups, features.seconds, b"", arrays=features.arrays))
        for rows in whole.values():
            staged += self._encode(rows)
        return staged

    def _encode(self, rows: Sequence[tuple[PlannedRow, Features]]) -> list[StagedRow]:
        schema = self.shards.schema
        samples = [
            Sample(entry_for(self.shards, row, item.seconds, schema.lengths_of(item.arrays)), dict(item.arrays))
            for row, item in rows
        ]
        blocks = [block for block in self.shards.encode(samples) for _ in range(block.samples)]
        return [
            StagedRow(
                row, finished_groups(self.shards, row, item.arrays), item.seconds, entry_digest(sample.entry), block
            )
            for (row, item), sample, block in zip(rows, samples, blocks, strict=True)
        ]


def finished_groups(shards: ShardFormat, row: PlannedRow, arrays: Mapping[str, np.ndarray]) -> dict[str, Finished]:
    """The groups of these arrays as the state keeps them."""
    schema = shards.schema
    names = dict.fromkeys(schema.by_name[name].group for name in arrays)
    return {
        name: Finished(
            row.fingerprints[name],
            schema.lengths_of({item.name: arrays[item.name] for item in schema.columns_of([name])}),
        )
        for name in names
    }


class Appender:
    """Appends to the shards of an output; use from one thread at a time.

    `folder_of` says where the shards of a split are. `before` is called before anything changes, `closed` with shards
    that were closed, once the state knows of it.
    """

    def __init__(
        self,
        index: ShardIndex,
        shards: ShardFormat,
        folder_of: Callable[[str], Path],
        *,
        before: Callable[[], None],
        closed: Callable[[Sequence[Shard]], None] = lambda _: None,
        continues_closed: bool = True,
    ) -> None:
        self.index = index
        self.state: State = index.state
        self.shards = shards
        self.folder_of = folder_of
        self._before = before
        self._closed = closed
        self._continues_closed = continues_closed
        self._writers: dict[str, SplitWriter] = {}
        self._not_resumed: frozenset[int] = frozenset()

    def close(self) -> None:
        """Let go of open shards as they are."""
        for writer in self._writers.values():
            writer.close()
        self._writers.clear()

    def append(self, encoded: Sequence[Encoded]) -> None:
        """Append blocks; raises StoreError, and then the state knows nothing of them."""
        if not encoded:
            return
        self._before()
        placed, finished, writers = [], list[StoredRow](), []
        for split in dict.fromkeys(item.split for item in encoded):
            items = [item for item in encoded if item.split == split]
            writer = self._writer(split)
            rows = [row for item in items for row in item.rows]
            for row, place in zip(rows, writer.append([item.block for item in items]), strict=True):
                placed.append((row.id, Place(place.shard.serial, place.row, place.start, place.size, row.entry)))
            finished += rows
            writers.append(writer)
        for writer in writers:
            writer.sync()
        with self.state.transaction():
            self._put(writers)
            self.index.place(placed)
            for row in finished:
                if row.groups:
                    self.state.finish(row.id, row.groups, seconds=row.seconds, source=row.source)
        self._say_closed(writers)

    def finish(self, splits: Sequence[str]) -> None:
        """Close all open shards; each of these splits has one, an empty one if need be, where the format has such."""
        for split in splits:
            if self.shards.empty_splits and not self.index.shards(split):
                self._before()
                self._writer(split).open_empty()
        for shard in self.index.shards():
            if not shard.closed:
                self._writer(shard.split)
        writers = list(self._writers.values())
        for writer in writers:
            writer.finish()
        with self.state.transaction():
            self._put(writers)
        self._say_closed(writers)
        self._writers.clear()

    def begin_again(self, without: Sequence[int]) -> None:
        """Close what is open; these shards (their serials) are not appended to any more."""
        self.finish(())
        self._not_resumed = frozenset(without)

    def _writer(self, split: str) -> SplitWriter:
        if split not in self._writers:
            folder = self.folder_of(split)
            self._writers[split] = SplitWriter(self.shards, folder, lambda: self._new(split), self._resumed(split))
        return self._writers[split]

    def _new(self, split: str) -> Shard:
        shard = self.index.new(split)
        shard.name = self.shards.shard_name(split, shard.number)
        shard.layout = self.shards.layout()
        with self.state.transaction():  # so that no other split takes its serial
            self.index.put([shard])
        return shard

    def _resumed(self, split: str) -> Shard | None:
        """The shard of an earlier run that has room left: an open one, or the last one."""
        found = [shard for shard in self.index.shards(split) if shard.serial not in self._not_resumed]
        for shard in reversed(found):
            ours = shard.layout == self.shards.layout() and shard.used
            ends_as_ours = not shard.closed or shard.num_bytes == shard.used + len(self.shards.tail)
            if ours and ends_as_ours and (not shard.closed or self._has_room(shard)):
                return shard
        return None

    def _has_room(self, shard: Shard) -> bool:
        most = self.shards.max_samples
        here = (self.folder_of(shard.split) / shard.name).is_file()
        return (
            here
            and self._continues_closed
            and shard.num_bytes < self.shards.options.max_shard_bytes
            and shard.samples < (most or np.inf)
        )

    def _put(self, writers: Sequence[SplitWriter]) -> None:
        for writer in writers:
            self.index.put([*writer.closed, *([writer.current] if writer.current is not None else [])])

    def _say_closed(self, writers: Sequence[SplitWriter]) -> None:
        for writer in writers:
            closed, writer.closed = writer.closed, []
            if closed:
                self._closed(closed)
