"""Compacts the shards at the end of a build: every listed sample once, in its split, and no unused rows.

A shard is left unchanged if all of its rows are listed, in its split, with their current records and the current
layout. Other shards are rewritten one by one: listed rows are appended to their splits' shards, rows that are not in
the manifest to private shards, and replaced rows are dropped. Then the old shard is deleted. So the disk never has more
than the features and a few shards, and a killed run continues where it stopped.
"""

import json
from array import array
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from hfprep.errors import StoreError
from hfprep.formats.appending import Encoded, StoredRow, bare_entry, entry_digest, entry_for, split_of
from hfprep.formats.samples import SPLITS, Entry, Sample, parse_entry
from hfprep.formats.shard_output import PlannedRows, ShardOutput
from hfprep.io.chunks import chunks_of
from hfprep.store.shard_index import UNLISTED, Place, Shard, held

ROWS_TOGETHER = 64
_LISTED = """
PRAGMA plan.journal_mode=OFF; PRAGMA plan.synchronous=OFF;
CREATE TABLE plan.listed (
    id TEXT PRIMARY KEY, position INTEGER NOT NULL, split TEXT NOT NULL, entry BLOB NOT NULL, line BLOB, extra TEXT
) WITHOUT ROWID;
CREATE INDEX plan.listed_by_position ON listed (position)
"""
ROWS_IN_ORDER = 4096
_SELECT_LISTED = "SELECT id, split, entry, line, extra FROM listed WHERE id IN (SELECT value FROM json_each(?))"
_CLEAN_ROWS = """
SELECT count(*) FROM places JOIN listed USING (id)
WHERE places.shard = ? AND listed.split = ? AND listed.entry = places.entry
"""
_KEPT_ROWS = """
SELECT count(*) FROM places LEFT JOIN listed USING (id) WHERE places.shard = ? AND listed.id IS NULL
"""
_ORDER = """
SELECT listed.id, listed.split, places.shard, places.row, places.start, places.size
FROM listed JOIN places USING (id) WHERE listed.position >= ? AND listed.position < ? ORDER BY listed.position
"""


class Compaction:
    def __init__(self, store: ShardOutput, val_ratio: float) -> None:
        self.store = store
        self.index = store.index
        self.state = store.state
        self.val_ratio = val_ratio
        self._count = 0

    def list_plan(self, plan: PlannedRows) -> None:
        """Record which samples are finished, and which entries their shards must have."""
        path = self.store.output.work / "listed.sqlite"  # temporary
        self.state.query("ATTACH ? AS plan", str(path))
        for statement in _LISTED.split(";"):
            self.state.query(statement)
        position = 0
        with self.state.transaction():
            for rows in plan.chunks():
                found = []
                ids = [row.utterance.id for row in rows]
                for row, sample, place in zip(rows, self.state.samples(ids), self.index.places(ids), strict=True):
                    if sample is None or sample.missing(row.fingerprints):
                        continue  # rejected, or still to be computed
                    if place is None or held(place, sample) != sample.finished:
                        raise StoreError(f"sample {row.utterance.id!r} is finished but in no shard; please report this")
                    entry = entry_for(self.store.shards, row, sample.seconds, sample.lengths)
                    digest = entry_digest(entry)
                    new = digest != place.entry
                    split = split_of(row.utterance.id, self.val_ratio)
                    line, extra = (entry.line, entry.extra) if new else (None, None)
                    found.append((row.utterance.id, position, split, digest, line, extra))
                    position += 1
                self.state.query_many("INSERT INTO listed VALUES (?, ?, ?, ?, ?, ?)", found)
        self._count = position

    def close(self) -> None:
        """Drop the recorded plan."""
        self.state.query("DETACH plan")
        (self.store.output.work / "listed.sqlite").unlink(missing_ok=True)

    def compact(self, stop: Callable[[], bool]) -> bool:
        """Rewrite shards as necessary; False if `stop()` ended it early."""
        store = self.store
        dirty = [shard for shard in self.index.shards() if not self._is_clean(shard)]
        if dirty:
            store.appender.restart([shard.serial for shard in dirty])
        for shard in dirty:
            if stop():
                return False
            self._rewrite(shard)
        store.appender.finish(SPLITS)
        return True

    def _is_clean(self, shard: Shard) -> bool:
        if shard.split == UNLISTED:
            return bool(self.state.query(_KEPT_ROWS, shard.serial)[0][0] == shard.samples)
        count = self.state.query(_CLEAN_ROWS, shard.serial, shard.split)[0][0]
        return bool(count == shard.samples and shard.layout == self.store.shards.layout())

    def _rewrite(self, shard: Shard) -> None:
        store = self.store
        store.withdraw()
        for members in chunks_of(self.index.members(shard.serial), ROWS_TOGETHER):
            store.appender.append(self._encoded(members))
        self.index.forget([shard.serial])
        store.removed(shard)

    def _encoded(self, members: Sequence[tuple[str, Place]]) -> list[Encoded]:
        ids = json.dumps([sample_id for sample_id, _ in members])
        listed = {sample_id: known for sample_id, *known in self.state.query(_SELECT_LISTED, ids)}
        rows: dict[str, list[tuple[Sample, StoredRow]]] = {}
        for sample_id, place in members:
            if sample_id in listed:
                split, digest, line, extra = listed[sample_id]
                sample = self.store.sample(place)
                if line is not None:  # the shard has another entry
                    sample = Sample(Entry(parse_entry(line).record, None, extra), sample.arrays)
            else:
                unlisted, split, digest = self._unlisted(sample_id, place), UNLISTED, b""
                if unlisted is None:
                    continue
                sample = unlisted
            rows.setdefault(split, []).append((sample, StoredRow(sample_id, digest, {})))
        return [item for split, found in rows.items() for item in encoded(self.store, split, found)]

    def _unlisted(self, sample_id: str, place: Place) -> Sample | None:
        """A sample that is kept in case its row is added again; None if no build can use it."""
        try:
            arrays = self.store.sample(place).arrays
        except StoreError:  # of other models, or damaged
            return None
        state = self.state.sample(sample_id)
        if state is None or state.finished != self.store.shards.schema.all_groups:
            return None
        return Sample(bare_entry(self.store.shards, sample_id, state.lengths), arrays)

    def places(self) -> dict[str, np.ndarray]:
        """The places of each split's samples, in source order: int64 (samples, columns of the format)."""
        shards = self.store.shards
        positions: dict[int, tuple[int, int]] = {}
        for split in SPLITS:
            first = 0
            for number, shard in enumerate(self.index.shards(split)):
                positions[shard.serial] = (number, first)
                first += shard.samples
        with_lengths = bool(set(shards.place_columns) & set(shards.schema.lengths))
        tables = {split: array("q") for split in SPLITS}
        for rows in self._in_order():
            samples = self.state.samples(row[0] for row in rows) if with_lengths else [None] * len(rows)
            for (_, split, serial, *place), sample in zip(rows, samples, strict=True):
                row, start, size = place
                lengths = {} if sample is None else sample.lengths
                tables[split].extend(shards.place_of((row, start, size), *positions[serial], lengths))
        columns = len(shards.place_columns)
        return {split: np.frombuffer(table, np.int64).reshape(-1, columns) for split, table in tables.items()}

    def _in_order(self) -> Iterator[list[tuple[str, str, int, int, int, int]]]:
        for start in range(0, self._count, ROWS_IN_ORDER):
            yield self.state.query(_ORDER, start, start + ROWS_IN_ORDER)


def encoded(store: ShardOutput, split: str, rows: Sequence[tuple[Sample, StoredRow]]) -> list[Encoded]:
    found, taken = [], 0
    for block in store.shards.encode([sample for sample, _ in rows]):
        found.append(Encoded(split, block, [row for _, row in rows[taken : taken + block.samples]]))
        taken += block.samples
    return found
