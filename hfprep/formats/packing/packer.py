"""Finished samples of a build on their way from artifacts of the npy layout into shards, while it goes on.

A sample is settled when it is finished or rejected. As soon as all samples up to one are settled, the finished ones go
to their splits in source order; a shard that is whole is recorded in the state, and only then do their artifacts go.
Killed anywhere, every finished sample lies complete in at least one place that the state knows.
"""

import contextlib
import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from itertools import chain, islice
from typing import Any

import numpy as np

from hfprep.errors import StoreError
from hfprep.formats.packing.formats import ShardFormat
from hfprep.formats.packing.reading import SampleReader
from hfprep.formats.packing.shard_set import ShardSet
from hfprep.formats.packing.splits import Item, SplitPacker
from hfprep.formats.samples import SPLITS, Entry, Sample
from hfprep.formats.shard_files import ShardStream, Start, WrittenShard, closing_stream
from hfprep.io import atomic
from hfprep.io.chunks import chunks_of
from hfprep.schema import Need, Utterance
from hfprep.store.fingerprints import Fingerprints
from hfprep.store.layout import NpyOutput, PlannedRow, is_validation, record_of
from hfprep.store.shard_index import Packed, Shard, ShardIndex
from hfprep.store.state import SampleState, State

ROWS_TOGETHER = 256
SURVEY = "packed_survey"
UNLISTED = "unlisted"  # the split of samples that the manifest does not list now
NOTHING_KNOWN = SampleState(*[None] * len(SampleState.__annotations__))
Member = tuple[str, Fingerprints, bytes]
Chunks = Callable[[], Iterator[list[PlannedRow]]]


class Packer:
    """Packs the rows of one plan. Use from one thread at a time.

    `chunks` goes through the plan's rows from the start; `lines` are their manifest lines, rising, int64 (rows,);
    `settled` says which of them are finished at the start, bool (rows,); `any_extra`, whether any has other fields.
    """

    def __init__(
        self,
        output: NpyOutput,
        index: ShardIndex,
        shards: ShardFormat,
        *,
        chunks: Chunks,
        lines: np.ndarray,
        settled: np.ndarray,
        any_extra: bool,
        val_ratio: float,
        codebook_size: int,
    ) -> None:
        self.output = output
        self.index = index
        self.state: State = index.state
        self.shards = shards
        self.set = ShardSet(index, shards)
        self.reader = SampleReader(output, index, shards)
        self.chunks = chunks
        self.lines = lines
        self.settled = settled
        self.val_ratio = val_ratio
        self.codebook_size = codebook_size
        self._any_extra = any_extra
        self._survey: Any = None
        self._start_over()

    def _start_over(self) -> None:
        self._rows: Iterator[PlannedRow] = chain.from_iterable(self.chunks())
        self._position = 0
        self._splits: dict[str, SplitPacker] = {}
        self._recorded: set[int] = set()
        self._condition = (0, 0)

    def settle(self, lines: Iterable[int]) -> None:
        """Note that these manifest lines are finished or rejected."""
        self.settled[np.searchsorted(self.lines, np.fromiter(lines, np.int64))] = True

    def advance(self, stop: Callable[[], bool] = lambda: False) -> None:
        """Pack what is settled up to the first row that is not; between shards it may be asked to stop."""
        while self._position < len(self.settled) and self.settled[self._position] and not stop():
            ahead = self.settled[self._position : self._position + ROWS_TOGETHER]
            count = len(ahead) if ahead.all() else int(ahead.argmin())
            self._take(list(islice(self._rows, count)))
            self._position += count

    def finish(self, stop: Callable[[], bool] = lambda: False) -> bool:
        """Pack everything that is left once all rows are settled; False where it was asked to stop before the end."""
        while True:
            self.advance(stop)
            if self._position < len(self.settled):
                return False
            self._prepare((0, 0))
            for split in self._splits.values():
                split.finish()
            needed = self._surveyed(finished=True)
            if needed == self._survey:
                break
            # Rows that brought a field of their own were rejected, or rows with new ones came: other columns.
            self._survey = needed
            self._start_over()
        self.index.remove(self.index.superseded())
        self._keep_unlisted()
        return True

    def abandon(self) -> None:
        """Drop shards that are not whole; what they were to hold is where it was."""
        for split in self._splits.values():
            split.abandon()

    def listed_shards(self) -> set[int]:
        """Shards (their serials) of which every sample is finished and in the plan."""
        kept = (shard.serial for split in self._splits.values() for shard in split.shards[: split.kept])
        return self._recorded.union(kept)

    def _surveyed(self, *, finished: bool) -> Any:
        """What the rows of the plan need as columns: of all, or of those that are finished."""
        if not self._any_extra:
            return self.shards.survey(lambda: iter(()))  # records of a build have nothing but their usual fields

        def entries() -> Iterator[Entry]:
            for split in SPLITS:
                for rows in self.chunks():
                    known = self.state.samples(row.utterance.id for row in rows) if finished else iter(())
                    for row in rows:
                        sample = next(known, None)
                        there = not finished or (sample is not None and not sample.missing(row.fingerprints))
                        if there and self._split_of(row) == split:
                            record = record_of(row.utterance, sample or NOTHING_KNOWN)
                            yield Entry(record, None, row.utterance.extra)

        return self.shards.survey(entries)

    def _split_of(self, row: PlannedRow) -> str:
        return SPLITS[is_validation(row.utterance.id, self.val_ratio)]

    def _prepare(self, condition: tuple[int, int]) -> None:
        """Settle the columns and see which shards are of them."""
        if self._splits:
            return
        self._condition = condition
        if self._survey is None:
            known = None if self.index.is_empty() else self.state.get(SURVEY)
            self._survey = known or self._surveyed(finished=False)
        self.state.put(SURVEY, self._survey)  # before any shard is: the next run has to take the same columns
        self.shards.prepare(self._survey, condition)
        layout = self.shards.layout()
        for name in SPLITS:
            shards: list[Shard] = []
            for shard in self.index.current(name):
                if shard.layout != layout:
                    break
                shards.append(shard)
            self._splits[name] = SplitPacker(name, shards, self)

    def _take(self, rows: Sequence[PlannedRow]) -> None:
        ids = [row.utterance.id for row in rows]
        for row, sample, packed in zip(rows, self.state.samples(ids), list(self.index.packed(ids)), strict=True):
            if sample is None or sample.missing(row.fingerprints):
                continue  # rejected
            self._prepare((sample.condition_len or 0, sample.model_dim or 0))
            self._splits[self._split_of(row)].add(Item(row, sample), packed)

    def _keep_unlisted(self) -> None:
        """Bring together what the manifest does not list now: rows that come back need not be computed again."""
        former = [shard for shard in self.index.shards() if shard.number is None and shard.split != UNLISTED]
        ids = [sample_id for shard in former for sample_id, _ in self.index.members(shard.serial)]
        ids += sorted({path_id for path_id, _ in self.output.all_artifacts()} - set(ids))
        waiting: deque[tuple[str, SampleState]] = deque()

        def record(shards: Sequence[WrittenShard]) -> None:
            for shard in shards:
                taken = [waiting.popleft() for _ in range(shard.samples)]
                members = [(sample_id, sample.fingerprints(), b"") for sample_id, sample in taken]
                self._record(UNLISTED, None, shard, members, [sample.code_len for _, sample in taken])

        stream = self.stream(UNLISTED, Start())
        with closing_stream(stream):
            for sample_id, sample in zip(ids, self.state.samples(ids), strict=True):
                packed = next(self.index.packed([sample_id]))
                if sample is not None and self._is_whole(sample_id, sample, packed):
                    waiting.append((sample_id, sample))
                    entry = Entry(record_of(Utterance(0, sample_id, "", "", ""), sample))
                    record(stream.add(Sample(entry, self.reader.arrays(sample_id, sample, packed))))
            if waiting:
                record(stream.finish())
        self.index.remove(former)

    def _is_whole(self, sample_id: str, sample: SampleState, packed: Packed | None) -> bool:
        """Whether all of a sample is there, and of the shape that the others have."""
        missing = self.output.incomplete(sample_id, sample) & ~(packed.holds(sample) if packed else Need.NOTHING)
        shape = sample.condition_len, sample.model_dim
        return sample.finished() == Need.ALL and not missing and shape == self._condition

    # What the splits ask for.

    def demote(self, split: str, number: int) -> None:
        """Take their places from the shards that there are from that number on; the complete set is no more."""
        if any(shard.split == split and (shard.number or 0) >= number for shard in self.index.placed()):
            self.set.withdraw()
            self.index.demote(split, number)

    def stream(self, split: str, start: Start) -> ShardStream:
        """A writer of shards in the private folder; no shard moves while it is at work."""
        del split
        self.set.withdraw()
        return self.shards.stream(lambda _: self.index.own_path(self.index.new_serial()), start)

    def samples(self, items: Iterable[Item]) -> Generator[Sample, None, None]:
        """Items with their arrays."""
        for block in chunks_of(items, ROWS_TOGETHER):
            for item, packed in zip(block, list(self.index.packed(item.id for item in block)), strict=True):
                arrays = self.reader.arrays(item.id, item.row.fingerprints, packed)
                yield Sample(item.entry, arrays)

    def record(self, split: str, number: int, shard: WrittenShard, items: Sequence[Item]) -> None:
        """Take a shard that is whole; its samples' artifacts go, and shards of which nothing more is needed."""
        members = [(item.id, item.row.fingerprints, item.digest) for item in items]
        serial = self._record(split, number, shard, members, [item.sample.code_len for item in items])
        self._recorded.add(serial)
        self.index.remove(self.index.superseded())

    def _record(
        self, split: str, number: int | None, shard: WrittenShard, members: Sequence[Member], lengths: Sequence[Any]
    ) -> int:
        counts = self._read_back(shard, lengths)
        self.set.withdraw()
        serial = int(shard.path.stem)
        row = Shard(
            serial, split, number, shard.samples, shard.used, shard.num_bytes, shard.sha256, self.shards.layout(), ""
        )
        self.index.add(row, members, counts)
        self.remove_artifacts(sample_id for sample_id, _, _ in members)
        return serial

    def _read_back(self, shard: WrittenShard, lengths: Sequence[Any]) -> np.ndarray:
        """How often each code occurs in a shard, int64 (codebook rows,), read from its file: it can be read."""
        counts = np.zeros(self.codebook_size, np.int64)
        read = self.shards.reader(shard.path, shard.samples)
        for row, length in enumerate(lengths):
            codes = read(row)["codes"]
            if len(codes) != length:
                raise StoreError(f"{shard.path} does not hold what was written to it; see to the disk, then run again")
            counts += np.bincount(codes, minlength=self.codebook_size)[: self.codebook_size]
        return counts

    def remove_artifacts(self, ids: Iterable[str]) -> None:
        """Delete the artifacts of samples that lie in a shard."""
        with atomic.explained(self.output.root):
            for sample_id in ids:
                for path in self.output.artifacts(sample_id):
                    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                        os.unlink(path)
