"""Which samples lie in which shard, where a build keeps its features in shards: tables in the state's database.

A shard is recorded once its file is whole and synced, together with its samples, in one transaction; its file is named
by the shard's own number (serial) in the private folder, or, once the set is complete, by the name that it has there.
Knows nothing of what is in a shard's file.
"""

import json
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from hfprep.io import atomic
from hfprep.io.chunks import chunks_of
from hfprep.schema import Need
from hfprep.store.fingerprints import Fingerprints
from hfprep.store.layout import PRIVATE
from hfprep.store.state import SELECTED_TOGETHER, SampleState, State

SHARDS = "shards"
_TEXT, _CODES, _LATENTS = int(Need.TEXT), int(Need.CODES), int(Need.LATENTS)  # arithmetic on flags is slow
_COLUMNS = "serial, split, number, samples, used, num_bytes, sha256, layout, name"
_PACKED = "shard, row, text, codes, latents, entry"
_SELECT_PACKED = f"SELECT id, {_PACKED} FROM packed WHERE id IN (SELECT value FROM json_each(?))"
COUNTS = np.dtype(np.uint32)


@dataclass(frozen=True, slots=True)
class Shard:
    """A shard. `number` is its place in its split, None once another has taken it; `layout` says how it was written.

    `name` is the path inside the output that it has as part of a complete set, "" as long as there is none.
    """

    serial: int
    split: str
    number: int | None
    samples: int
    used: int
    num_bytes: int
    sha256: str
    layout: str
    name: str


class Packed(NamedTuple):
    """Where a sample lies, what its columns there were computed from, and the digest of its record and other fields."""

    shard: int
    row: int
    text: bytes | None
    codes: bytes | None
    latents: bytes | None
    entry: bytes

    def holds(self, wanted: Fingerprints | SampleState) -> Need:
        """The groups that are there as wanted."""
        return Need(
            _TEXT * (self.text == wanted.text is not None)
            + _CODES * (self.codes == wanted.codes is not None)
            + _LATENTS * (self.latents == wanted.latents is not None)
        )


class ShardIndex:
    """The shards of one output; `suffix` is that of their files. Use from one thread at a time."""

    def __init__(self, root: Path, state: State, suffix: str) -> None:
        self.root = root
        self.state = state
        self.suffix = suffix
        self.folder = root / PRIVATE / SHARDS
        self._serial = max((shard.serial for shard in self.shards()), default=0)

    def shards(self) -> list[Shard]:
        """All shards, the current ones of each split in order."""
        rows = self.state.query(f"SELECT {_COLUMNS} FROM shards ORDER BY split, number, serial")
        return [Shard(*row) for row in rows]

    def placed(self) -> list[Shard]:
        """The shards that have a place in their split."""
        return [shard for shard in self.shards() if shard.number is not None]

    def current(self, split: str) -> list[Shard]:
        """The shards of a split, in order, up to the first that is not there."""
        found = [shard for shard in self.placed() if shard.split == split]
        return [shard for number, shard in enumerate(found) if shard.number == number]

    def is_empty(self) -> bool:
        """Whether there is no shard."""
        return not self.state.query("SELECT 1 FROM shards LIMIT 1")

    def packed(self, ids: Iterable[str]) -> Iterator[Packed | None]:
        """Where each of these samples lies, in their order; None for one that lies in no shard."""
        for block in chunks_of(ids, SELECTED_TOGETHER):
            rows = self.state.query(_SELECT_PACKED, json.dumps(block))
            known = {row[0]: Packed(*row[1:]) for row in rows}
            yield from map(known.get, block)

    def members(self, serial: int) -> list[tuple[str, Packed]]:
        """The samples that lie in a shard, by row."""
        rows = self.state.query(f"SELECT id, {_PACKED} FROM packed WHERE shard = ? ORDER BY row", serial)
        return [(row[0], Packed(*row[1:])) for row in rows]

    def new_serial(self) -> int:
        """A number for a shard that no other one of this output has."""
        self._serial += 1
        return self._serial

    def own_path(self, serial: int) -> Path:
        """The file of a shard that is part of no complete set."""
        return self.folder / f"{serial}{self.suffix}"

    def path(self, shard: Shard) -> Path:
        """The file of a shard, wherever it is now; its own path where it is not there at all."""
        final = self.root / shard.name
        return final if shard.name and final.is_file() else self.own_path(shard.serial)

    def add(self, shard: Shard, samples: Sequence[tuple[str, Fingerprints, bytes]], counts: np.ndarray) -> None:
        """Record a shard that is on disk with its samples (id, fingerprints, digest of the record), by row.

        counts: how often each code occurs in it, integers (codebook rows,).
        """
        values = (shard.serial, shard.split, shard.number, shard.samples, shard.used, shard.num_bytes, shard.sha256)
        compressed = zlib.compress(counts.astype(COUNTS).tobytes(), 1)
        with self.state.transaction():
            marks = ", ".join("?" * 10)
            self.state.query(
                f"INSERT INTO shards ({_COLUMNS}, code_counts) VALUES ({marks})",
                *values, shard.layout, shard.name, compressed,
            )  # fmt: skip
            for row, (sample_id, prints, entry) in enumerate(samples):
                self.state.query(
                    f"INSERT OR REPLACE INTO packed (id, {_PACKED}) VALUES (?, ?, ?, ?, ?, ?, ?)",
                    sample_id, shard.serial, row, prints.text, prints.codes, prints.latents, entry,
                )  # fmt: skip

    def demote(self, split: str, number: int) -> None:
        """Take their places from the shards of a split from that number on; what they hold can still be read."""
        with self.state.transaction():
            self.state.query("UPDATE shards SET number = NULL WHERE split = ? AND number >= ?", split, number)

    def rename(self, names: dict[int, str]) -> None:
        """Note the names, by serial, that shards are about to have in a complete set ("": no more)."""
        with self.state.transaction():
            for serial, name in names.items():
                self.state.query("UPDATE shards SET name = ? WHERE serial = ?", name, serial)

    def forget(self, serials: Iterable[int]) -> None:
        """Know no more of these shards and of what lies in them."""
        with self.state.transaction():
            for serial in serials:
                self.state.query("DELETE FROM packed WHERE shard = ?", serial)
                self.state.query("DELETE FROM shards WHERE serial = ?", serial)

    def superseded(self) -> list[Shard]:
        """Shards without a place of which nothing is needed any more."""
        found = self.state.query(
            f"SELECT {_COLUMNS} FROM shards WHERE number IS NULL "
            "AND NOT EXISTS (SELECT 1 FROM packed WHERE packed.shard = shards.serial)"
        )
        return [Shard(*row) for row in found]

    def remove(self, shards: Sequence[Shard]) -> None:
        """Forget shards, then delete their files."""
        if shards:
            paths = [self.path(shard) for shard in shards]
            self.forget(shard.serial for shard in shards)
            with atomic.explained(self.folder):
                for path in paths:
                    path.unlink(missing_ok=True)

    def code_counts(self, serials: Iterable[int], size: int) -> np.ndarray:
        """How often each code occurs in these shards together: int64 (size,)."""
        total = np.zeros(size, np.int64)
        for serial in serials:
            for (compressed,) in self.state.query("SELECT code_counts FROM shards WHERE serial = ?", serial):
                total += np.frombuffer(zlib.decompress(compressed), COUNTS)
        return total

    def mend(self) -> list[Shard]:
        """Hold the tables against the disk: forget shards that are not there whole, which are given; delete leftovers.

        A leftover is a file in the private folder that no table knows: it was not finished when its run was killed.
        """
        broken = [shard for shard in self.shards() if _size_of(self.path(shard)) != shard.num_bytes]
        self.forget(shard.serial for shard in broken)
        own = {self.own_path(shard.serial) for shard in self.shards()}
        with atomic.explained(self.folder):
            for path in self.folder.iterdir() if self.folder.is_dir() else ():
                if path not in own:
                    path.unlink()
        return broken


def _size_of(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None
