"""Which samples are in which shard, for builds that store features in shards: tables in the state's database.

Samples are added once they are synced, in the transaction that marks them as finished; anything in an open shard beyond
what is recorded here is a torn tail. Knows nothing about the content of a shard's file.
"""

import json
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from hfprep.errors import StoreError
from hfprep.io.chunks import chunks_of
from hfprep.store.state import SELECTED_TOGETHER, SampleState, State
from hfprep.store.values import whole_number

log = logging.getLogger(__name__)

SHARDS = "shards"
NUMBERS = "shard_numbers"  # key in the state: the next unused shard number of each split
UNLISTED = "unlisted"  # the split of samples that are not in the current manifest
_SHARD = "serial, split, number, name, samples, used, num_bytes, sha256, layout"
_PLACE = "shard, row, start, size, entry, stale"
_SELECT_PLACES = f"SELECT id, {_PLACE} FROM places WHERE id IN (SELECT value FROM json_each(?))"
_PUT_SHARD = f"INSERT OR REPLACE INTO shard_files ({_SHARD}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
_PUT_PLACE = "INSERT OR REPLACE INTO places (id, shard, row, start, size, entry) VALUES (?, ?, ?, ?, ?, ?)"
_DAMAGED_SHARD = """
typeof(split) != 'text' OR typeof(name) != 'text' OR typeof(layout) != 'text' OR typeof(sha256) != 'text'
OR NOT (sha256 = '' OR length(sha256) = 64 AND sha256 NOT GLOB '*[^0-9a-f]*')
OR typeof(number) != 'integer' OR typeof(samples) != 'integer' OR typeof(used) != 'integer'
OR typeof(num_bytes) != 'integer' OR min(number, samples, used, num_bytes) < 0
"""
# A shard that is not listed has no samples, and a place is inside its shard.
_DAMAGED_PLACE = """
typeof(id) != 'text' OR typeof(entry) != 'blob' OR typeof(row) != 'integer' OR typeof(start) != 'integer'
OR typeof(size) != 'integer' OR min(row, start, size) < 0
OR NOT EXISTS (SELECT 1 FROM shard_files WHERE serial = shard AND row < samples AND start + size <= used)
OR stale != '[]' AND (
    typeof(stale) != 'text' OR NOT json_valid(stale) OR json_type(stale) != 'array'
    OR EXISTS (SELECT 1 FROM json_each(stale) WHERE type != 'text')
)
"""


@dataclass(slots=True)
class Shard:
    """A shard of a split. `used` is the number of bytes up to the end of its samples.

    `num_bytes` and `sha256` are of the closed file; 0 and "" while it is open. `layout` is what all shards of a set
    have in common; "" if hfprep 0.1.0 wrote it.
    """

    serial: int
    split: str
    number: int
    name: str
    samples: int = 0
    used: int = 0
    num_bytes: int = 0
    sha256: str = ""
    layout: str = ""

    @property
    def closed(self) -> bool:
        """Whether the file is complete and has its final name."""
        return bool(self.sha256)


class Place(NamedTuple):
    """Where a sample is: its row in a shard, and the start and size of the block that contains it.

    `entry` is the digest of its record and other fields. `stale` are groups that differ from those in the state.
    """

    shard: int
    row: int
    start: int
    size: int
    entry: bytes
    stale: str = "[]"


def held(place: Place | None, sample: SampleState) -> frozenset[str]:
    """The finished groups of a sample that are up to date in its shard, if it is in one."""
    if place is None:
        return frozenset()
    return sample.finished if place.stale == "[]" else sample.finished - set(json.loads(place.stale))


def _numbers(value: Any) -> dict[str, int]:
    """The next number of each split, as it was stored. Raises AttributeError or TypeError for anything else."""
    return {split: whole_number(number) for split, number in value.items()}


class ShardIndex:
    """The shards of one output. Use from one thread at a time."""

    def __init__(self, state: State) -> None:
        self.state = state

    def remove_damaged(self) -> None:
        """Remove rows that cannot be right, so that their samples count as stored nowhere."""
        with self.state.transaction():
            removed = 0
            for table, damaged in (("shard_files", _DAMAGED_SHARD), ("places", _DAMAGED_PLACE)):
                self.state.query(f"DELETE FROM {table} WHERE {damaged}")
                removed += self.state.query("SELECT changes()")[0][0]
        if removed:
            log.warning("%s: %d rows about shards are damaged; the samples they describe are computed again",
                        self.state.path, removed)  # fmt: skip

    def shards(self, split: str | None = None) -> list[Shard]:
        """All shards, or those of a split, by their numbers."""
        rows = self.state.query(f"SELECT {_SHARD} FROM shard_files ORDER BY split, number")
        found = [Shard(*row) for row in rows]
        for shard in found:  # the state may not be trusted, and these files are written and removed
            if "\0" in shard.name or {"", ".", ".."}.intersection(shard.name.split("/")):
                raise StoreError(
                    f"the state in {self.state.path} names the file {shard.name!r}, "
                    "which is not a shard of this output; use a new --output-dir"
                )
        return [shard for shard in found if split in (None, shard.split)]

    def new(self, split: str) -> Shard:
        """A new shard, with a number that no other shard of its split has or had."""
        serial, number = self.state.query(
            "SELECT coalesce(max(serial), 0) + 1, coalesce(max(CASE WHEN split = ? THEN number END), -1) + 1 "
            "FROM shard_files", split,
        )[0]  # fmt: skip
        used = self.state.get(NUMBERS, _numbers) or {}
        number = max(number, used.get(split, 0))
        self.state.put(NUMBERS, used | {split: number + 1})
        return Shard(serial, split, number, "")

    def places(self, ids: Iterable[str]) -> Iterator[Place | None]:
        """Where each of these samples is, in their order; None for one that is in no shard."""
        for block in chunks_of(ids, SELECTED_TOGETHER):
            rows = self.state.query(_SELECT_PLACES, json.dumps(block))
            known = {row[0]: Place(*row[1:]) for row in rows}
            yield from map(known.get, block)

    def members(self, serial: int) -> list[tuple[str, Place]]:
        """The samples in a shard, by row, without rows that have been replaced."""
        rows = self.state.query(f"SELECT id, {_PLACE} FROM places WHERE shard = ? ORDER BY row", serial)
        return [(row[0], Place(*row[1:])) for row in rows]

    def put(self, shards: Iterable[Shard]) -> None:
        """Store these shards; inside a transaction."""
        names = _SHARD.split(", ")
        self.state.query_many(_PUT_SHARD, ([getattr(shard, name) for name in names] for shard in shards))

    def place(self, samples: Iterable[tuple[str, Place]]) -> None:
        """Store where these samples are; inside a transaction."""
        self.state.query_many(_PUT_PLACE, ((sample_id, *place[:5]) for sample_id, place in samples))

    def forget(self, serials: Sequence[int]) -> None:
        """Remove these shards, and the places of their samples."""
        with self.state.transaction():
            for serial in serials:
                self.state.query("DELETE FROM places WHERE shard = ?", serial)
                self.state.query("DELETE FROM shard_files WHERE serial = ?", serial)
