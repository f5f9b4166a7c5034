"""How many samples go together: hand-computed batches and limits."""

import random
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hfprep.pipeline.batching import (
    GIB,
    MAX_PATIENCE,
    PADDING_SHARE,
    BatchLimits,
    FrameBudget,
    batch_size_for_memory,
    batches,
    padded_frames,
)


@dataclass(frozen=True)
class Clip:
    num_frames: int


def lengths(found: list[list[Clip]]) -> list[list[int]]:
    return [[clip.num_frames for clip in batch] for batch in found]


@pytest.mark.parametrize(
    ("gib", "size"),
    [
        (140, 48),
        (79.2, 48),
        (48, 24),
        (39.4, 24),
        (24, 16),
        (23.6, 16),
        (16, 8),
        (15, 8),
        (12, 6),
        (11.2, 6),
        (8, 4),
        (7.6, 4),
        (6, 2),
        (2, 2),
    ],
)
def test_batch_size_follows_the_table(gib: float, size: int) -> None:
    assert batch_size_for_memory(int(gib * GIB)) == size


def test_the_users_own_batch_size_stands_and_a_cpu_takes_few_frames() -> None:
    assert BatchLimits.choose(5, 80 * GIB) == BatchLimits(5, None)
    assert BatchLimits.choose(0, None) == BatchLimits(4 * 16, 4 * 750, PADDING_SHARE)
    assert BatchLimits.choose(0, 16 * GIB) == BatchLimits(8 * 16, 8 * 750, PADDING_SHARE)


def test_batches_keep_order_and_stay_within_rows_and_frames() -> None:
    clips = [Clip(n) for n in (100, 90, 60, 40, 30, 30, 20, 10)]
    assert lengths(list(batches(clips, BatchLimits(3, None), FrameBudget()))) == [[100, 90, 60], [40, 30, 30], [20, 10]]
    by_frames = list(batches(clips, BatchLimits(99, None), FrameBudget(200)))
    assert lengths(by_frames) == [[100, 90], [60, 40, 30], [30, 20, 10]]  # 2 x 100, 3 x 60, 3 x 30


def test_clips_that_padding_would_change_are_only_with_equal_ones() -> None:
    clips = [Clip(n) for n in (9, 8, 8, 7, 7, 7, 9, 3)]
    limits, budget = BatchLimits(99, None), FrameBudget()
    assert lengths(list(batches(clips, limits, budget, pads_from=8))) == [[9, 8, 8], [7, 7, 7], [9], [3]]
    assert lengths(list(batches(clips, limits, budget, pads_from=99))) == [[9], [8, 8], [7, 7, 7], [9], [3]]
    assert lengths(list(batches(clips, limits, budget, pads_from=3))) == [[9, 8, 8, 7, 7, 7, 9, 3]]


def test_a_longer_clip_than_the_budget_goes_alone() -> None:
    clips = [Clip(n) for n in (500, 10, 10)]
    assert lengths(list(batches(clips, BatchLimits(9, None), FrameBudget(100)))) == [[500], [10, 10]]


def test_the_budget_is_asked_while_batches_are_made() -> None:
    """What a batch taught holds for the next one, although the clips were queued before."""
    budget = FrameBudget()
    made = batches([Clip(100) for _ in range(9)], BatchLimits(4, None), budget)
    assert len(next(made)) == 4
    budget.failed(400)
    assert [len(batch) for batch in made] == [2, 2, 1]


def test_a_batch_ends_before_the_clip_that_makes_too_much_of_it_padding() -> None:
    clips = [Clip(n) for n in (1000, 800, 690, 680, 640, 30)]
    by_share = BatchLimits(99, None, 0.25)
    # 200 of 2000 and 510 of 3000 are padding; 830 of 4000 fit, too; 1190 of 5000; 2160 of 6000 are more than a quarter.
    assert lengths(list(batches(clips, by_share, FrameBudget()))) == [[1000, 800, 690, 680, 640], [30]]
    # 200 frames may always be padding, 510 are above both bounds; 10 and 50 are not, 700 are.
    by_frames = BatchLimits(99, None, 0.01)
    assert lengths(list(batches(clips, by_frames, FrameBudget()))) == [[1000, 800], [690, 680, 640], [30]]


@pytest.mark.parametrize(
    ("clips", "gib", "most_batches"), [(200, 140, 16), (200, 40, 16), (5000, 140, 70), (5000, 40, 125), (200, 8, 33)]
)
@pytest.mark.parametrize("seed", range(5))
def test_padding_is_under_a_twentieth_of_clips_of_2_to_14_seconds(
    clips: int, gib: int, most_batches: int, seed: int
) -> None:
    draw = random.Random(seed)
    sizes = sorted((draw.randint(100, 700) for _ in range(clips)), reverse=True)
    limits = BatchLimits.choose(0, gib * GIB)
    found = list(batches(map(Clip, sizes), limits, FrameBudget(limits.max_frames)))
    assert sum(sizes) > 0.95 * sum(map(padded_frames, found))
    assert len(found) <= most_batches


@given(st.lists(st.integers(1, 300), max_size=40), st.integers(1, 9), st.integers(1, 2000), st.booleans())
def test_no_clip_is_lost_and_no_bound_broken(sizes: list[int], rows: int, frames: int, packed: bool) -> None:
    clips = [Clip(n) for n in sizes]
    found = list(batches(clips, BatchLimits(rows, None), FrameBudget(frames), packed=packed))
    assert [clip for batch in found for clip in batch] == clips
    costs = [padded_frames(batch, packed=packed) for batch in found]
    assert all(len(batch) <= rows for batch in found)
    assert all(len(batch) == 1 or cost <= frames for batch, cost in zip(found, costs, strict=True))


def test_packed_batches_are_filled_whatever_the_lengths_are() -> None:
    found = list(
        batches(
            map(Clip, (700, 400, 300, 100, 1500, 50, 1600)), BatchLimits.choose(0, None), FrameBudget(1500), packed=True
        )
    )
    assert lengths(found) == [[700, 400, 300, 100], [1500], [50], [1600]]
    assert sum(padded_frames(batch, packed=True) for batch in found) == 4650


def test_a_failure_halves_and_growth_stops_below_what_failed() -> None:
    budget = FrameBudget(16_000, patience=2)
    budget.failed(16_000)
    assert budget.limit == 8_000
    for _ in range(4):
        budget.fitted(8_000)
    assert budget.limit == 8_000 + 1_000 + 1_125  # two steps of an eighth
    for _ in range(20):
        budget.fitted(budget.limit)
        if budget.limit == 15_999:
            break
    assert budget.limit == 15_999


def test_what_has_fitted_is_remembered() -> None:
    budget = FrameBudget(12_000)
    budget.fitted(9_000)
    budget.failed(12_000)
    assert budget.limit == 9_000  # not 6,000: 9,000 is known to fit
    budget.failed(9_000)
    assert budget.limit == 4_500  # and now it is known that it does not always


def test_short_batches_stay_large_where_long_ones_start_small() -> None:
    budget = FrameBudget()
    budget.failed(16 * 1500)
    assert budget.limit == 12_000
    long = next(batches([Clip(1500) for _ in range(64)], BatchLimits(16, None), budget))
    short = next(batches([Clip(150) for _ in range(64)], BatchLimits(16, None), budget))
    assert (len(long), len(short)) == (8, 16)


def test_small_batches_are_no_reason_to_grow() -> None:
    budget = FrameBudget(1000, patience=1)
    budget.failed(1000)
    for _ in range(100):
        budget.fitted(200)
    assert budget.limit == 500


def test_memory_that_was_short_for_a_while_does_not_cost_for_ever() -> None:
    """After the limit has proved itself just below what failed, it is tried beyond."""
    budget = FrameBudget(10_000, patience=2)
    for size in (10_000, 5_000, 2_500, 1_250):
        budget.failed(size)
    for _ in range(200):
        budget.fitted(budget.limit or 0)
    assert budget.limit == 10_000


def test_a_lone_clip_that_fits_says_as_much_for_many_short_ones() -> None:
    budget = FrameBudget(10_000)
    budget.failed(1_000)
    assert budget.limit == 500
    budget.fitted(3_000)
    assert budget.limit == 3_000


def test_trials_that_fail_become_rarer() -> None:
    """A limit of 7,999 frames for ever: the growing budget must not fail at it every few batches."""
    budget = FrameBudget(16_000, patience=4)
    failures = 0
    for _ in range(20_000):
        if budget.limit is not None and budget.limit >= 8_000:
            budget.failed(budget.limit)
            failures += 1
        else:
            budget.fitted(budget.limit or 0)
    assert budget.patience == MAX_PATIENCE
    assert failures < 30
    assert budget.limit is not None
    assert budget.limit > 7_000


def test_without_any_failure_nothing_is_limited() -> None:
    budget = FrameBudget()
    for size in (10, 10**9):
        budget.fitted(size)
        assert budget.allows(10**12)
