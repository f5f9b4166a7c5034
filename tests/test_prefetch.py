"""Loading ahead: in order, within bytes, never more than allowed at a time."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from hfprep.pipeline.prefetch import prefetch


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as threads:
        yield threads


class Gauge:
    """Counts what is loading, and what is loaded and not yet taken."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.loading = self.most_loading = self.started = 0

    def load(self, item: int) -> bytes:
        with self.lock:
            self.started += 1
            self.loading += 1
            self.most_loading = max(self.most_loading, self.loading)
        time.sleep(0.002)
        with self.lock:
            self.loading -= 1
        return bytes(item)


def settled(gauge: Gauge, started: int, seconds: float = 2.0) -> bool:
    """Whether, after a while, exactly so many loads have been started and all have ended."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and (gauge.started < started or gauge.loading):
        time.sleep(0.005)
    time.sleep(0.03)
    return gauge.started == started


def test_results_come_in_order(pool: ThreadPoolExecutor) -> None:
    def slow_first(item: int) -> int:
        time.sleep(0.02 if item == 0 else 0.0)
        return item * 10

    loaded = prefetch(range(20), slow_first, cost_bytes=lambda _: 1, pool=pool, max_bytes=8)
    assert list(loaded) == [item * 10 for item in range(20)]


def test_bytes_bound_how_far_it_runs_ahead(pool: ThreadPoolExecutor) -> None:
    gauge = Gauge()
    loaded = prefetch([10] * 50, gauge.load, cost_bytes=lambda item: item, pool=pool, max_bytes=45)
    next(loaded)
    assert settled(gauge, started=4)  # one is out, and 4 x 10 bytes fit: the next starts when the next is asked for
    next(loaded)
    assert settled(gauge, started=5)


def test_what_is_loaded_counts_with_its_true_size(pool: ThreadPoolExecutor) -> None:
    """Expected at 1 byte, 100 bytes when loaded: wrong expectations hold for what is loading, no longer."""
    gauge = Gauge()
    loaded = prefetch(
        [100] * 50, gauge.load, cost_bytes=lambda _: 1, size_bytes=len, pool=pool, max_bytes=250, max_loading=2
    )
    for taken in range(1, 12):
        next(loaded)
        time.sleep(0.01)
        # Two are loaded (200 of 250 bytes), and two more may have been begun at 1 byte each.
        assert gauge.started - taken <= 4
    assert gauge.most_loading <= 2


def test_one_item_always_passes(pool: ThreadPoolExecutor) -> None:
    gauge = Gauge()
    found = list(prefetch([500, 1, 500], gauge.load, cost_bytes=lambda item: item, pool=pool, max_bytes=10))
    assert [len(item) for item in found] == [500, 1, 500]
    assert gauge.most_loading == 1


def test_an_error_comes_at_its_items_turn(pool: ThreadPoolExecutor) -> None:
    def load(item: int) -> int:
        if item == 2:
            raise ValueError("item 2")
        return item

    loaded = prefetch(range(5), load, cost_bytes=lambda _: 1, pool=pool, max_bytes=100)
    assert [next(loaded), next(loaded)] == [0, 1]
    with pytest.raises(ValueError, match="item 2"):
        next(loaded)


def test_closing_cancels_what_has_not_begun() -> None:
    begun: list[int] = []
    gate = threading.Event()

    def load(item: int) -> int:
        begun.append(item)
        gate.wait(2.0 if item else 0.0)
        return item

    with ThreadPoolExecutor(1) as single:
        loaded = prefetch(range(10), load, cost_bytes=lambda _: 1, pool=single, max_bytes=100)
        assert next(loaded) == 0
        loaded.close()  # type: ignore[attr-defined]
        gate.set()
    assert len(begun) <= 2


@pytest.mark.parametrize("cost", [lambda _: 0, lambda _: 10**12], ids=["nothing", "everything"])
def test_any_expectation_ends_well(pool: ThreadPoolExecutor, cost: Callable[[int], int]) -> None:
    gauge = Gauge()
    loaded = prefetch(
        [3] * 30, gauge.load, cost_bytes=cost, size_bytes=len, pool=pool, max_bytes=9, max_loading=2
    )  # fmt: skip
    assert len(list(loaded)) == 30
    assert gauge.most_loading <= 2
