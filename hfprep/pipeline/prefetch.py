"""Loads items in threads ahead of their consumer, in order, with a limit in bytes.

Takes any iterable and a function; yields the function's results in the iterable's order. Knows nothing about audio.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

Item = TypeVar("Item")
Loaded = TypeVar("Loaded")


class _Ahead(Generic[Loaded]):
    """Items that are loading, or loaded and not yet consumed: expected bytes while loading, then the actual size."""

    def __init__(self, size_bytes: Callable[[Loaded], int] | None) -> None:
        self.loading = 0
        self.held_bytes = 0
        self._size_bytes = size_bytes
        self._lock = threading.Lock()

    def started(self, future: Future[Loaded], cost: int) -> None:
        with self._lock:
            self.loading += 1
            self.held_bytes += cost

        def loaded(finished: Future[Loaded]) -> None:
            size = 0 if finished.cancelled() or finished.exception() else self._size(finished.result(), cost)
            with self._lock:
                self.loading -= 1
                self.held_bytes += size - cost

        future.add_done_callback(loaded)

    def consumed(self, result: Loaded, cost: int) -> None:
        with self._lock:
            self.held_bytes -= self._size(result, cost)

    def _size(self, result: Loaded, cost: int) -> int:
        return cost if self._size_bytes is None else self._size_bytes(result)


def prefetch(
    items: Iterable[Item | None],
    load: Callable[[Item], Loaded],
    *,
    cost_bytes: Callable[[Item], int],
    size_bytes: Callable[[Loaded], int] | None = None,
    pool: ThreadPoolExecutor,
    max_bytes: int,
    max_loading: int | None = None,
) -> Iterator[Loaded]:
    """Results of `load` for each item, in order, computed in `pool` ahead of the consumer.

    An item that is None means that there is none at the moment: the next one is requested again whenever the consumer
    takes a result, and the generator ends once nothing is loading or loaded.

    The total of items that are loading (`cost_bytes`) or loaded (`size_bytes`, else the cost) and not yet consumed
    stays within `max_bytes`, except that one item is always admitted. At most `max_loading` items load at a time, which
    limits the effect of wrong costs. An exception in `load` is raised in place of the item's result. Items that have
    not been started are cancelled when the generator is closed.
    """
    ahead: _Ahead[Loaded] = _Ahead(size_bytes)
    waiting: deque[tuple[Future[Loaded], int]] = deque()
    source = iter(items)
    upcoming = next(source, None)
    try:
        while waiting or upcoming is not None:
            while upcoming is not None:
                cost = cost_bytes(upcoming)
                fits = (max_loading is None or ahead.loading < max_loading) and ahead.held_bytes + cost <= max_bytes
                if waiting and not fits:
                    break
                future = pool.submit(load, upcoming)
                waiting.append((future, cost))
                ahead.started(future, cost)
                upcoming = next(source, None)
            future, cost = waiting.popleft()
            result = future.result()
            ahead.consumed(result, cost)
            yield result
            if upcoming is None:
                upcoming = next(source, None)
    finally:
        for future, _ in waiting:
            future.cancel()
