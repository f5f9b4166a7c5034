"""One split on its way into shards: which shards of earlier runs stay as they are, and what is written after them.

Takes the split's samples in order. As long as they are those of the shards that are there, nothing is written; from the
first difference on, everything is. Knows nothing of where arrays come from or of what recording a shard means.
"""

import hashlib
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

from hfprep.formats.samples import Entry, Sample
from hfprep.formats.shard_files import RoomLeft, ShardStream, Start, WrittenShard
from hfprep.schema import Need
from hfprep.store.layout import PlannedRow, record_of
from hfprep.store.shard_index import Packed, Shard
from hfprep.store.state import SampleState


@dataclass(frozen=True)
class Item:
    """A finished sample of the plan."""

    row: PlannedRow
    sample: SampleState

    @property
    def id(self) -> str:
        return self.row.utterance.id

    @property
    def entry(self) -> Entry:
        """Its record, as it has to stand in a shard."""
        return Entry(record_of(self.row.utterance, self.sample), None, self.row.utterance.extra)

    @cached_property
    def digest(self) -> bytes:
        """What tells its record and other fields from others."""
        entry = self.entry
        return hashlib.blake2b(entry.line + entry.extra.encode(), digest_size=16).digest()

    def stays(self, packed: Packed | None, shard: Shard, row: int) -> bool:
        """Whether it lies in that row of that shard, exactly as it has to."""
        if packed is None or (packed.shard, packed.row) != (shard.serial, row):
            return False
        return packed.entry == self.digest and packed.holds(self.row.fingerprints) == Need.ALL


class Job(Protocol):
    """What a split is packed for."""

    def demote(self, split: str, number: int) -> None:
        """Take their places from the shards that there are from that number on."""

    def stream(self, split: str, start: Start) -> ShardStream:
        """A writer that begins there."""

    def samples(self, items: Iterable[Item]) -> Iterator[Sample]:
        """Items with their arrays."""

    def record(self, split: str, number: int, shard: WrittenShard, items: Sequence[Item]) -> None:
        """Take a shard that is whole and holds these items."""


class SplitPacker:
    """Packs one split; `shards` are those of earlier runs that may stay, in order."""

    def __init__(self, split: str, shards: Sequence[Shard], job: Job) -> None:
        self.split = split
        self.shards = shards
        self.job = job
        self.kept = 0
        self._last: list[Item] = []  # of the last shard that stays: it may turn out to have room left
        self._items: deque[Item] = deque()  # after that
        self._stream: ShardStream | None = None
        self._number = 0

    def add(self, item: Item, packed: Packed | None) -> None:
        """Take the next sample."""
        if self._stream is None and self.kept < len(self.shards):
            shard = self.shards[self.kept]
            if item.stays(packed, shard, len(self._items)):
                self._items.append(item)
                if len(self._items) == shard.samples:
                    self._last, self._items = list(self._items), deque()
                    self.kept += 1
                return
        if self._stream is None:
            self._begin(self._start(self.kept), [*self._items, item])
        else:
            self._feed([item])

    def finish(self) -> None:
        """Write what is left."""
        left = self.shards[self.kept :]
        if self._stream is None and not self._items and (self.kept or (left and left[0].samples == 0)):
            # An empty split is one empty shard, where the format has such.
            self.job.demote(self.split, self.kept or 1)
            return
        if self._stream is None:
            self._begin(self._start(self.kept), list(self._items))
        assert self._stream is not None
        try:
            self._record(self._stream.finish())
        except RoomLeft:
            self._begin_earlier()
            self._record(self._stream.finish())

    def abandon(self) -> None:
        """Drop what is not whole."""
        if self._stream is not None:
            self._stream.abandon()

    def _start(self, number: int) -> Start:
        before = self.shards[number - 1] if number else None
        position = sum(shard.samples for shard in self.shards[:number])
        return Start(number, position, before.samples, before.used) if before else Start()

    def _begin(self, start: Start, items: Sequence[Item]) -> None:
        self.job.demote(self.split, start.number)
        self._stream = self.job.stream(self.split, start)
        self._number = start.number
        self._items.clear()
        self._feed(items)

    def _begin_earlier(self) -> None:
        """Write the last shard that was to stay again: it has room for what follows."""
        self.abandon()
        self.kept -= 1
        start = self._start(self.kept)
        # The shard before that one ended because of what this one begins with, which is as it was.
        self._begin(Start(start.number, start.position), [*self._last, *self._items])

    def _feed(self, items: Sequence[Item]) -> None:
        assert self._stream is not None
        for item, sample in zip(items, self.job.samples(items), strict=True):
            self._items.append(item)
            try:
                self._record(self._stream.add(sample))
            except RoomLeft:
                self._items.extend(items[len(self._items) :])
                self._begin_earlier()
                return

    def _record(self, shards: Sequence[WrittenShard]) -> None:
        for shard in shards:
            items = [self._items.popleft() for _ in range(shard.samples)]
            self.job.record(self.split, self._number, shard, items)
            self._number += 1
            self._last.clear()
