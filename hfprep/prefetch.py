"""Load items in threads ahead of their consumer, in order, within a bound of bytes.

Takes any iterable and a function; gives the function's results in the iterable's order. Knows nothing of audio.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Loaded = TypeVar("Loaded")


def prefetch(
    items: Iterable[Item],
    load: Callable[[Item], Loaded],
    *,
    cost_bytes: Callable[[Item], int],
    pool: ThreadPoolExecutor,
    max_bytes: int,
) -> Iterator[Loaded]:
    """Results of `load` for each item, in order, computed in `pool` ahead of the consumer.

    The estimated bytes of all items that are loading or loaded and not yet consumed stay within `max_bytes`; one
    item is always let through. An exception of `load` is raised at its item's turn. What was started and not
    consumed is cancelled when the generator is closed.
    """
    waiting: deque[tuple[Future[Loaded], int]] = deque()
    held = 0
    source = iter(items)
    upcoming = next(source, None)
    try:
        while waiting or upcoming is not None:
            while upcoming is not None and (not waiting or held + cost_bytes(upcoming) <= max_bytes):
                cost = cost_bytes(upcoming)
                waiting.append((pool.submit(load, upcoming), cost))
                held += cost
                upcoming = next(source, None)
            future, cost = waiting.popleft()
            yield future.result()
            held -= cost
    finally:
        for future, _ in waiting:
            future.cancel()
