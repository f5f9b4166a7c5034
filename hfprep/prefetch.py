"""Load items in threads ahead of their consumer, in order, within a bound of bytes.

Takes any iterable and a function; gives the function's results in the iterable's order. Knows nothing of audio.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

Item = TypeVar("Item")
Loaded = TypeVar("Loaded")


class _Ahead(Generic[Loaded]):
    """What is loading or loaded and not yet consumed: expected bytes while it loads, then its true size."""

    def __init__(self, size_bytes: Callable[[Loaded], int]) -> None:
        self.loading = 0
        self.held_bytes = 0
        self._size_bytes = size_bytes
        self._lock = threading.Lock()

    def begun(self, future: Future[Loaded], expected_bytes: int) -> None:
        with self._lock:
            self.loading += 1
            self.held_bytes += expected_bytes

        def loaded(finished: Future[Loaded]) -> None:
            size = 0 if finished.cancelled() or finished.exception() else self._size_bytes(finished.result())
            with self._lock:
                self.loading -= 1
                self.held_bytes += size - expected_bytes

        future.add_done_callback(loaded)

    def consumed(self, result: Loaded) -> None:
        size = self._size_bytes(result)
        with self._lock:
            self.held_bytes -= size


def prefetch(
    items: Iterable[Item],
    load: Callable[[Item], Loaded],
    *,
    expected_bytes: Callable[[Item], int],
    size_bytes: Callable[[Loaded], int],
    pool: ThreadPoolExecutor,
    max_bytes: int,
    max_loading: int,
) -> Iterator[Loaded]:
    """Results of `load` for each item, in order, computed in `pool` ahead of the consumer.

    What is loading or loaded and not yet consumed stays within `max_bytes`, except that one item is always let
    through. No more than `max_loading` items load at a time, so that wrong expectations cannot do much harm. An
    exception of `load` is raised at its item's turn. What was not begun is cancelled when the generator is closed.
    """
    ahead: _Ahead[Loaded] = _Ahead(size_bytes)
    waiting: deque[Future[Loaded]] = deque()
    source = iter(items)
    upcoming = next(source, None)
    try:
        while waiting or upcoming is not None:
            while upcoming is not None:
                expected = expected_bytes(upcoming)
                fits = ahead.loading < max_loading and ahead.held_bytes + expected <= max_bytes
                if waiting and not fits:
                    break
                future = pool.submit(load, upcoming)
                waiting.append(future)
                ahead.begun(future, expected)
                upcoming = next(source, None)
            result = waiting.popleft().result()
            ahead.consumed(result)
            yield result
    finally:
        for future in waiting:
            future.cancel()
