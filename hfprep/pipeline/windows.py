"""The loading order of rows: longest first within a window, so that batches have clips of similar length.

A window is a set of rows that are sorted by length together. Provides `in_loading_order`. While one window is loaded,
the headers of the next are read, so that the device does not wait in between.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from hfprep.io.chunks import chunks_of
from hfprep.pipeline.intake import Task

HEADERS_AT_ONCE = 32
SECONDS_TOGETHER = 40.0  # of audio in a chunk, at most, so that nobody waits for the thread that loads it

# Returns the next window, or None: with `wait` if there is no other, without it if there is none yet.
Feed = Callable[[bool], Sequence[Task] | None]
ExpectedSeconds = Callable[[Sequence[Task]], Sequence[float]]


@dataclass(frozen=True, slots=True)
class Place:
    """A task, the number of its window, and the expected length of its clip in seconds (0 if unknown)."""

    task: Task
    window: int
    seconds: float

    @property
    def group(self) -> tuple[int, bool]:
        """Tasks can only share a batch within a group: the same window, with or without audio."""
        return self.window, self.task.with_audio


class Window:
    """Tasks whose lengths are read in `pool`."""

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
        """The tasks without audio in order, then the others, longest first; waits for their headers."""
        known = (task for task in self._tasks if task.with_audio)
        found = dict.fromkeys(map(id, self._tasks), 0.0) | {id(task): task.utterance.duration or 0.0 for task in known}
        for part, seconds in self._headers:
            found |= zip(map(id, part), seconds.result(), strict=True)
        places = [Place(task, self._number, found[id(task)]) for task in self._tasks]
        return sorted(places, key=lambda place: (place.group[1], -place.seconds))


def in_loading_order(
    first: Sequence[Task], feed: Feed, expected_seconds: ExpectedSeconds, pool: ThreadPoolExecutor, together: int = 1
) -> Iterator[list[Place] | None]:
    """The tasks of `first` and of all further windows that `feed` returns, in chunks; None while it has none.

    A chunk has up to `together` tasks, for one thread to load. The next window is requested as soon as one begins.
    """

    def opened(number: int) -> Window | None:
        tasks = feed(False)
        return None if tasks is None else Window(number, tasks, expected_seconds, pool)

    window = Window(0, first, expected_seconds, pool)
    for number in itertools.count(1):
        following = opened(number)
        yield from loaded_together(window.places(), together)
        while following is None:
            yield None
            following = opened(number)
        window = following


def loaded_together(places: Iterable[Place], together: int) -> Iterator[list[Place]]:
    """Chunks of up to `together` successive places; a clip of unknown length, which may be long, is alone."""
    chunk: list[Place] = []
    for place in places:
        if chunk and not (len(chunk) < together and _fits(place, chunk)):
            yield chunk
            chunk = []
        chunk.append(place)
    if chunk:
        yield chunk


def _fits(place: Place, chunk: Sequence[Place]) -> bool:
    if any(other.task.with_audio and not other.seconds for other in (place, chunk[-1])):
        return False
    return sum(other.seconds for other in chunk) + place.seconds <= SECONDS_TOGETHER
