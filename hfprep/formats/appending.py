"""Writes computed batches to shards: workers serialise them, the driver appends them.

`ShardStaging` is sent to the workers, which serialise with it. `Appender` appends their blocks: it writes the
bytes, syncs each split once, and then records in one state transaction where the samples are and that they are
finished. After a kill at any point, the state never claims more than is on disk.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hfprep.formats.samples import SPLITS, Entry, Sample
from hfprep.formats.shards import Block, ShardFormat, SplitWriter
from hfprep.schema import METADATA, Features, PickledAsTuple, manifest_record
from hfprep.store.layout import PlannedRow, finished_groups, is_validation, record_of
from hfprep.store.shard_index import Place, Shard, ShardIndex
from hfprep.store.state import Finished, State

DIGEST_BYTES = 16


@dataclass(frozen=True, slots=True)
class StagedRow(PickledAsTuple):
    """A computed sample, serialised in a block that it may share with other samples.

    If the output already has some of its columns, `block` is None and `arrays` has the new columns.
    """

    row: PlannedRow
    groups: dict[str, Finished]
    seconds: float | None
    entry: bytes
    block: Block | None = None
    arrays: Mapping[str, np.ndarray] | None = None


@dataclass(frozen=True, slots=True)
class StoredRow:
    """What the state records about an appended sample; `groups` are the newly finished ones."""

    id: str
    entry: bytes
    groups: Mapping[str, Finished]
    seconds: float | None = None
    source: str | None = None


@dataclass(frozen=True, slots=True)
class Encoded:
    split: str
    block: Block
    rows: Sequence[StoredRow]


def entry_digest(entry: Entry) -> bytes:
    """A hash of a record and its other fields, to detect changes."""
    return hashlib.blake2b(entry.line + entry.extra.encode(), digest_size=DIGEST_BYTES).digest()


def entry_for(shards: ShardFormat, row: PlannedRow, seconds: float | None, lengths: Mapping[str, int]) -> Entry:
    return Entry(record_of(shards.schema, row.utterance, seconds, lengths), None, row.utterance.extra)


def bare_entry(shards: ShardFormat, sample_id: str, lengths: Mapping[str, int]) -> Entry:
    """The entry of a sample that is not in the manifest."""
    metadata = dict.fromkeys(METADATA) | {"id": sample_id, "audio_path": "", "text": ""}
    return Entry(manifest_record(shards.schema, metadata, lengths))


def split_of(sample_id: str, val_ratio: float) -> str:
    return SPLITS[is_validation(sample_id, val_ratio)]


@dataclass(frozen=True)
class ShardStaging:
    """Serialises computed samples, in this or another process. It is its own stage."""

    shards: ShardFormat
    val_ratio: float

    def open(self, folder: Path) -> "ShardStaging":
        """This; `folder` is not used."""
        del folder
        return self

    def close(self) -> None:
        """Nothing is open."""

    def write(self, computed: Sequence[tuple[PlannedRow, Features]]) -> list[StagedRow]:
        """Serialise samples, grouped by split; raises StoreError."""
        staged: list[StagedRow] = []
        whole: dict[str, list[tuple[PlannedRow, Features]]] = {name: [] for name in SPLITS}
        for row, features in computed:
            if features.arrays.keys() == self.shards.schema.by_name.keys():
                whole[split_of(row.utterance.id, self.val_ratio)].append((row, features))
            else:
                staged.append(
                    StagedRow(row, self._groups(row, features), features.seconds, b"", arrays=features.arrays)
                )
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
            StagedRow(row, self._groups(row, item), item.seconds, entry_digest(sample.entry), block)
            for (row, item), sample, block in zip(rows, samples, blocks, strict=True)
        ]

    def _groups(self, row: PlannedRow, features: Features) -> dict[str, Finished]:
        shapes = {name: array.shape for name, array in features.arrays.items()}
        return finished_groups(self.shards.schema, row, shapes)


class Appender:
    """Appends to the shards of an output. Not thread-safe.

    `folder_of` returns the folder of a split's shards. `before` is called before the first change, `closed` with closed
    shards after the state has recorded them.
    """

    def __init__(
        self,
        index: ShardIndex,
        shards: ShardFormat,
        folder_of: Callable[[str], Path],
        *,
        before: Callable[[], None],
        closed: Callable[[Sequence[Shard]], None],
        continues_closed: bool,
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
        """Close the files of open shards, which stay open shards."""
        for writer in self._writers.values():
            writer.close()
        self._writers.clear()

    def append(self, encoded: Sequence[Encoded]) -> None:
        """Append blocks. If it raises StoreError, the state does not list any of them."""
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
        self._report_closed(writers)

    def finish(self, splits: Sequence[str]) -> None:
        """Close all open shards. Writes an empty shard for splits without one, if the format requires it."""
        for split in splits:
            if self.shards.empty_splits and not self.index.shards(split):
                self._before()
                self._writer(split).opened()
        for shard in self.index.shards():
            if not shard.closed:
                self._writer(shard.split)
        writers = list(self._writers.values())
        for writer in writers:
            writer.finish()
        with self.state.transaction():
            self._put(writers)
        self._report_closed(writers)
        self._writers.clear()

    def restart(self, without: Sequence[int]) -> None:
        """Close all open shards, and do not append to these shards (by serial) any more."""
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
        with self.state.transaction():  # reserves the serial
            self.index.put([shard])
        return shard

    def _resumed(self, split: str) -> Shard | None:
        """A shard of an earlier run with space left: an open one, or the last one."""
        found = [shard for shard in self.index.shards(split) if shard.serial not in self._not_resumed]
        for shard in reversed(found):
            ours = shard.layout == self.shards.layout() and shard.used
            ends_as_ours = not shard.closed or shard.num_bytes == shard.used + len(self.shards.tail)
            if ours and ends_as_ours and (not shard.closed or self._has_room(shard)):
                return shard
        return None

    def _has_room(self, shard: Shard) -> bool:
        most = self.shards.max_samples
        small = shard.num_bytes < self.shards.options.max_shard_bytes and (most is None or shard.samples < most)
        return small and self._continues_closed and (self.folder_of(shard.split) / shard.name).is_file()

    def _put(self, writers: Sequence[SplitWriter]) -> None:
        for writer in writers:
            self.index.put([*writer.closed, *([writer.current] if writer.current is not None else [])])

    def _report_closed(self, writers: Sequence[SplitWriter]) -> None:
        for writer in writers:
            closed, writer.closed = writer.closed, []
            if closed:
                self._closed(closed)
