"""Cutting pending rows into units, and finding the sample that kills its workers."""

import random
from collections.abc import Iterable, Sequence

import numpy as np
import pytest

from hfprep.pipeline.engines.work_units import MAX_UNIT_ROWS, Culprit, WorkQueue, WorkUnit, cut


def read(positions: Sequence[int] | np.ndarray) -> Iterable[tuple[int, str, int]]:
    """Position p stands on line p + 1 and is called row<p>."""
    return [(int(position) + 1, f"row{position}", int(position)) for position in positions]


def queue_of(count: int) -> WorkQueue:
    return WorkQueue([WorkUnit(0, range(count))], read)


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
@pytest.mark.parametrize("num_workers", [2, 9])
def test_units_cover_every_row_once_in_runs_that_depend_on_the_count(
    rows: int, lengths: list[int], num_workers: int
) -> None:
    positions = np.arange(rows, dtype=np.int64) * 3
    units = cut(positions, num_workers)
    assert [len(unit.rows) for unit in units] == lengths
    assert [unit.number for unit in units] == list(range(len(lengths)))
    assert np.array_equal(np.concatenate([unit.rows for unit in units]) if units else positions, positions)
    assert max(lengths, default=0) <= MAX_UNIT_ROWS


def test_what_waits_holds_positions_only_and_is_read_when_taken() -> None:
    queue = queue_of(3)
    assert len(queue) == 1
    unit = queue.take()
    assert len(queue) == 0
    assert unit.left == {1: ("row0", 0), 2: ("row1", 1), 3: ("row2", 2)}


def test_a_death_gives_the_rest_of_the_unit_to_the_next_worker() -> None:
    queue = queue_of(3)
    unit = queue.take()
    unit.report([2])
    assert queue.give_back(unit) is None
    assert list(queue.take().left) == [1, 3]


def test_deaths_with_progress_between_them_never_split_a_unit() -> None:
    """A worker that leaks memory dies over and over, but of no sample."""
    queue = queue_of(20)
    for line in range(1, 20):
        unit = queue.take()
        assert len(unit.left) == 21 - line
        unit.report([line])
        queue.give_back(unit)
        assert len(queue) == 1


@pytest.mark.parametrize("count", [1, 2, 7, 100])
def test_a_poisonous_sample_is_found_and_all_others_are_done(count: int) -> None:
    for poison in {1, count // 2 + 1, count}:
        queue, done, culprits, deaths = queue_of(count), [], [], 0
        while len(queue):
            unit = queue.take()
            for line in list(unit.left):
                if line == poison:
                    deaths += 1
                    culprit = queue.give_back(unit)
                    culprits += [culprit] if culprit else []
                    break
                unit.report([line])
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


def test_one_worker_gets_units_as_long_as_they_may_be() -> None:
    """So that rows of like length find each other."""
    assert [len(unit.rows) for unit in cut(np.arange(5000), 1)] == [2048, 2048, 904]


def test_samples_in_hand_are_tried_apart_from_all_others() -> None:
    queue = queue_of(100)
    assert queue.give_back(queue.take(), {3, 50}) is None
    assert [list(queue.take().left) for _ in range(2)] == [[3], [50]]
    assert list(queue.take().left) == [line for line in range(1, 101) if line not in (3, 50)]


@pytest.mark.parametrize("count", [2, 7, 100, 2000])
@pytest.mark.parametrize("hand", [1, 3, 40])
def test_a_poisonous_sample_costs_few_workers_where_it_is_known_what_they_had_in_hand(count: int, hand: int) -> None:
    for poison in {1, count // 2 + 1, count}:
        queue, done, culprits, deaths = queue_of(count), [], [], 0
        while len(queue):
            unit = queue.take()
            left = list(unit.left)
            if poison not in left:
                done += unit.report(left)
                continue
            at = left.index(poison)
            done += unit.report(left[: at // hand * hand])
            deaths += 1
            culprit = queue.give_back(unit, set(left[at // hand * hand :][:hand]))
            culprits += [culprit] if culprit else []
        assert sorted(done) == [line for line in range(1, count + 1) if line != poison]
        assert [culprit.line for culprit in culprits] == [poison]
        assert deaths <= 3 + (0 if hand <= 8 else 5)


@pytest.mark.parametrize("seed", range(50))
def test_two_workers_that_die_of_everything_find_a_culprit_every_few_deaths(seed: int) -> None:
    """Whichever of them dies first: no suspect waits until further ones have been found."""
    order, deaths, culprits = random.Random(seed), 0, 0
    queue = WorkQueue([WorkUnit(0, range(100)), WorkUnit(1, range(100, 200))], read)
    workers: list[list[WorkUnit]] = [[], []]
    in_turn = order.random()
    while culprits < 5:
        units = workers[deaths % 2 if order.random() < in_turn else order.randrange(2)]
        if not units:
            while len(queue) and len(units) < 2 and not (units and (units[-1].alone or queue.next_alone())):
                units.append(queue.take())
            continue
        hand, only = {min(units[0].left)}, len(units) == 1
        for unit in reversed(units):
            culprits += queue.give_back(unit, hand, only=only) is not None
        units.clear()
        deaths += 1
    assert deaths <= 17  # three for each culprit, and two for the next suspect


def test_a_unit_that_had_not_been_begun_is_blamed_for_nothing() -> None:
    queue = queue_of(3)
    for _ in range(10):
        assert queue.give_back(queue.take(), {77}) is None
        assert not queue.next_alone()


def test_where_nobody_knows_which_of_two_units_it_was_both_are_given_out_alone() -> None:
    queue = WorkQueue([WorkUnit(0, range(2)), WorkUnit(1, range(2, 4))], read)
    for unit in (queue.take(), queue.take()):
        assert queue.give_back(unit, only=False) is None
        assert unit.deaths == 0
    assert queue.next_alone()


def test_an_outcome_that_is_reported_twice_counts_once() -> None:
    unit = queue_of(3).take()
    assert unit.report([1, 2]) == [1, 2]
    assert unit.report([2, 3]) == [3]
