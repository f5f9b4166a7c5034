"""Cutting pending rows into shards, and finding the sample that kills its workers."""

from collections.abc import Iterable, Sequence

import numpy as np
import pytest

from hfprep.pipeline.engines.shards import MAX_SHARD_ROWS, Culprit, Shard, ShardQueue, cut


def read(positions: Sequence[int] | np.ndarray) -> Iterable[tuple[int, str, int]]:
    """Position p stands on line p + 1 and is called row<p>."""
    return [(int(position) + 1, f"row{position}", int(position)) for position in positions]


def queue_of(count: int) -> ShardQueue:
    return ShardQueue([Shard(0, range(count))], read)


@pytest.mark.parametrize(
    ("rows", "lengths"),
    [
        (0, []),
        (1, [1]),
        (4, [4]),
        (9, [4, 4, 1]),
        (640, [10] * 64),
        (641, [11] * 58 + [3]),
        (200_000, [2048] * 97 + [1344]),
    ],
)
def test_shards_cover_every_row_once_in_runs_that_depend_on_the_count(rows: int, lengths: list[int]) -> None:
    positions = np.arange(rows, dtype=np.int64) * 3
    shards = cut(positions)
    assert [len(shard.rows) for shard in shards] == lengths
    assert [shard.number for shard in shards] == list(range(len(lengths)))
    assert np.array_equal(np.concatenate([shard.rows for shard in shards]) if shards else positions, positions)
    assert max(lengths, default=0) <= MAX_SHARD_ROWS


def test_what_waits_holds_positions_only_and_is_read_when_taken() -> None:
    queue = queue_of(3)
    assert len(queue) == 1
    shard = queue.take()
    assert len(queue) == 0
    assert shard.left == {1: ("row0", 0), 2: ("row1", 1), 3: ("row2", 2)}


def test_a_death_gives_the_rest_of_the_shard_to_the_next_worker() -> None:
    queue = queue_of(3)
    shard = queue.take()
    shard.report([2])
    assert queue.give_back(shard) is None
    assert list(queue.take().left) == [1, 3]


def test_deaths_with_progress_between_them_never_split_a_shard() -> None:
    """A worker that leaks memory dies over and over, but of no sample."""
    queue = queue_of(20)
    for line in range(1, 20):
        shard = queue.take()
        assert len(shard.left) == 21 - line
        shard.report([line])
        queue.give_back(shard)
        assert len(queue) == 1


@pytest.mark.parametrize("count", [1, 2, 7, 100])
def test_a_poisonous_sample_is_found_and_all_others_are_done(count: int) -> None:
    for poison in {1, count // 2 + 1, count}:
        queue, done, culprits, deaths = queue_of(count), [], [], 0
        while len(queue):
            shard = queue.take()
            for line in list(shard.left):
                if line == poison:
                    deaths += 1
                    culprit = queue.give_back(shard)
                    culprits += [culprit] if culprit else []
                    break
                shard.report([line])
                done.append(line)
        assert sorted(done) == [line for line in range(1, count + 1) if line != poison]
        assert [(culprit.line, culprit.id) for culprit in culprits] == [(poison, f"row{poison - 1}")]
        assert deaths <= 3 + 2 * int(np.ceil(np.log2(count))) + 2


def test_a_sample_is_blamed_only_for_deaths_of_its_own() -> None:
    """Three deaths of a pair may be anyone's; alone, each half has to die twice more."""
    queue = queue_of(2)
    for _ in range(3):
        assert queue.give_back(queue.take()) is None
    first = queue.take()
    assert list(first.left) == [1]
    assert queue.give_back(first) is None
    again = queue.take()
    again.report([1])
    assert queue.give_back(again) is None
    second = queue.take()
    assert queue.give_back(second) is None
    assert queue.give_back(queue.take()) == Culprit(2, "row1", 3)
