"""Which samples are in which shard, where a build keeps its features in shards: tables in the state's database.

They are told of samples once these are synced, in the transaction that says that they are finished; so what stands in
an open shard beyond what is known here is a torn tail. Knows nothing of what is in a shard's file.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from hfprep.errors import StoreError
from hfprep.io.chunks import chunks_of
from hfprep.store.state import SELECTED_TOGETHER, SampleState, State

SHARDS = "shards"
NUMBERS = "shard_numbers"  # in the state: the first number of each split that no shard has had
UNLISTED = "unlisted"  # the split of samples that the manifest does not list now
_SHARD = "serial, split, number, name, samples, used, num_bytes, sha256, layout"
_PLACE = "shard, row, start, size, entry, stale"
_SELECT_PLACES = f"SELECT id, {_PLACE} FROM places WHERE id IN (SELECT value FROM json_each(?))"
_PUT_SHARD = f"INSERT OR REPLACE INTO shard_files ({_SHARD}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
_PUT_PLACE = "INSERT OR REPLACE INTO places (id, shard, row, start, size, entry) VALUES (?, ?, ?, ?, ?, ?)"


@dataclass(slots=True)
class Shard:
    """A shard of a split. `used` are the bytes of its samples and of what comes before them.

    `num_bytes` and `sha256` are of the closed file; 0 and "" while it is open. `layout` is what shards of one set have
    in common; "" where hfprep 0.1.0 wrote it.
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
        """Whether the file has its end and its name."""
        return bool(self.sha256)

    def is_named_below(self) -> bool:
        """Whether its name leads to a file below the folder of the set."""
        parts = self.name.split("/") if isinstance(self.name, str) else [""]
        return "\0" not in self.name and not {"", ".", ".."}.intersection(parts)


class Place(NamedTuple):
    """Where a sample is: its row in a shard, and where the block that holds it starts and how long that is.

    `entry` is the digest of its record and other fields. `stale` are groups that are not as the state has them.
    """

    shard: int
    row: int
    start: int
    size: int
    entry: bytes
    stale: str = "[]"

    def holds(self, sample: SampleState) -> frozenset[str]:
        """The finished groups that are there as the state has them."""
        return sample.finished if self.stale == "[]" else sample.finished - set(json.loads(self.stale))


class ShardIndex:
    """The shards of one output. Use from one thread at a time."""

    def __init__(self, state: State) -> None:
        self.state = state

    def shards(self, split: str | None = None) -> list[Shard]:
        """All shards, or those of a split, by their numbers."""
        rows = self.state.query(f"SELECT {_SHARD} FROM shard_files ORDER BY split, number")
        found = [Shard(*row) for row in rows]
        for shard in found:  # the state may be another's, and these files are written to and removed
            if not shard.is_named_below():
                raise StoreError(
                    f"the state in {self.state.path} names the file {shard.name!r}, which is no shard of this output; "
                    "use a new --output-dir"
                )
        return [shard for shard in found if split in (None, shard.split)]

    def new(self, split: str) -> Shard:
        """A shard that nobody knows of, with a number that no other one of its split has or had."""
        serial, number = self.state.query(
            "SELECT coalesce(max(serial), 0) + 1, coalesce(max(CASE WHEN split = ? THEN number END), -1) + 1 "
            "FROM shard_files", split,
        )[0]  # fmt: skip
        used = self.state.get(NUMBERS) or {}
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
        """The samples that are in a shard, by row; a row that another has replaced is not one."""
        rows = self.state.query(f"SELECT id, {_PLACE} FROM places WHERE shard = ? ORDER BY row", serial)
        return [(row[0], Place(*row[1:])) for row in rows]

    def put(self, shards: Iterable[Shard]) -> None:
        """Keep what is known of shards; inside a transaction."""
        for shard in shards:
            values = (getattr(shard, name) for name in _SHARD.split(", "))
            self.state.query(_PUT_SHARD, *values)

    def place(self, samples: Iterable[tuple[str, Place]]) -> None:
        """Keep where samples are from now on; inside a transaction."""
        self.state.query_many(_PUT_PLACE, ((sample_id, *place[:5]) for sample_id, place in samples))

    def forget(self, serials: Sequence[int]) -> None:
        """Know no more of these shards and of what is in them."""
        with self.state.transaction():
            for serial in serials:
                self.state.query("DELETE FROM places WHERE shard = ?", serial)
                self.state.query("DELETE FROM shard_files WHERE serial = ?", serial)
