"""Which samples one thread loads at a time."""

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest

from hfprep.pipeline.intake import Task
from hfprep.pipeline.windows import SECONDS_TOGETHER, Place, in_loading_order, loaded_together
from hfprep.schema import Utterance


def place(seconds: float, *, with_audio: bool = True) -> Place:
    utterance = Utterance(line=1, id="a", text="a", audio="a.wav", path="/a.wav", duration=seconds or None)
    return Place(Task(utterance, frozenset(), with_audio), 0, seconds)


TOGETHER = 8
LONG = SECONDS_TOGETHER * 0.4


@pytest.mark.parametrize(
    ("places", "lengths"),
    [
        ([place(1.0)] * (2 * TOGETHER + 1), [TOGETHER, TOGETHER, 1]),
        ([place(LONG)] * 5, [2, 2, 1]),  # together not longer than allowed
        ([place(10 * SECONDS_TOGETHER), place(1.0)], [1, 1]),
        ([place(2.0), place(0.0), place(0.0), place(2.0), place(2.0)], [1, 1, 1, 2]),  # those of unknown length alone
        ([place(0.0, with_audio=False)] * 3, [3]),  # without audio there is nothing unknown
        ([], []),
    ],
)
def test_chunks(places: Sequence[Place], lengths: Sequence[int]) -> None:
    found = list(loaded_together(places, TOGETHER))
    assert [len(chunk) for chunk in found] == lengths
    assert [item for chunk in found for item in chunk] == places
    assert [[item] for item in places] == list(loaded_together(places, 1))


def test_a_chunk_is_there_before_the_headers_of_the_next_window_are() -> None:
    may_read = threading.Event()

    def expected_seconds(tasks: Sequence[Task]) -> list[float]:
        assert may_read.wait(10)
        return [1.0] * len(tasks)

    known, unknown = [[place(seconds).task for seconds in lengths] for lengths in ((1.0, 2.0), (0.0, 0.0))]
    windows = iter([unknown, None, None])
    with ThreadPoolExecutor(1) as pool:
        chunks = in_loading_order(known, lambda _wait: next(windows), expected_seconds, pool, TOGETHER)
        assert [item.task for item in next(chunks) or ()] == known[::-1]
        may_read.set()
        assert [item.task for item in next(chunks) or ()] == unknown
        assert next(chunks) is None
