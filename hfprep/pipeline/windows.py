"""Rows that are worked on together, in the order in which they are loaded: longest first, so that batches are even.

A window is the rows among which those of like length find each other. Gives `in_loading_order`. Takes windows as they
come in; while one is being loaded, the headers of the next are read, so that the device does not wait between them.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from hfprep.io.chunks import chunks_of
from hfprep.pipeline.intake import Task

HEADERS_AT_ONCE = 32

# Gives the next window; None where there is none: with `wait` for good, without it for now.
Feed = Callable[[bool], Sequence[Task] | None]
ExpectedSeconds = Callable[[Sequence[Task]], Sequence[float]]


@dataclass(frozen=True, slots=True)
class Place:
    """A task, the number of its window, and how long its clip is expected to be (0 where nobody can tell)."""

    task: Task
    window: int
    seconds: float

    @property
    def group(self) -> tuple[int, bool]:
        """Only tasks of one group share a batch: of one window, with audio or without."""
        return self.window, self.task.with_audio


class Window:
    """Tasks whose lengths are being looked up in `pool`."""

    def __init__(
        self, number: int, tasks: Sequence[Task], expected_seconds: ExpectedSeconds, pool: ThreadPoolExecutor
    ) -> None:
        self._number = number
        self._tasks = tasks
        unknown = [task for task in tasks if task.with_audio and task.utterance.duration is None]
        self._headers: list[tuple[list[Task], Future[Sequence[float]]]] = [
            (part, pool.submit(expected_seconds, part)) for part in chunks_of(unknown, HEADERS_AT_ONCE)
        ]

    def places(self) -> list[Place]:
        """The tasks without audio as they come, then the others, longest first; waits for their headers."""
        known = (task for task in self._tasks if task.with_audio)
        found = dict.fromkeys(map(id, self._tasks), 0.0) | {id(task): task.utterance.duration or 0.0 for task in known}
        for part, seconds in self._headers:
            found |= zip(map(id, part), seconds.result(), strict=True)
        places = [Place(task, self._number, found[id(task)]) for task in self._tasks]
        return sorted(places, key=lambda place: (place.group[1], -place.seconds))


def in_loading_order(
    first: Sequence[Task], feed: Feed, expected_seconds: ExpectedSeconds, pool: ThreadPoolExecutor
) -> Iterator[Place | None]:
    """The tasks of `first` and of all windows that `feed` has when they are wanted; None while it has none.

    The next window is taken as soon as one begins.
    """
    number = 0
    window = Window(number, first, expected_seconds, pool)
    while True:
        number += 1
        tasks = feed(False)
        following = None if tasks is None else Window(number, tasks, expected_seconds, pool)
        yield from window.places()
        while following is None:
            yield None
            tasks = feed(False)
            following = None if tasks is None else Window(number, tasks, expected_seconds, pool)
        window = following
