"""Which samples one thread loads at a time."""

from collections.abc import Iterator, Sequence

import pytest

from hfprep.pipeline.intake import Task
from hfprep.pipeline.windows import SECONDS_TOGETHER, TOGETHER, Place, loaded_together
from hfprep.schema import Utterance


def place(seconds: float, *, with_audio: bool = True) -> Place:
    utterance = Utterance(line=1, id="a", text="a", audio="a.wav", path="/a.wav")
    return Place(Task(utterance, frozenset(), with_audio), 0, seconds)


LONG = SECONDS_TOGETHER * 0.4


@pytest.mark.parametrize(
    ("places", "groups"),
    [
        ([place(1.0)] * (2 * TOGETHER + 1), [TOGETHER, TOGETHER, 1]),
        ([place(LONG)] * 5, [2, 2, 1]),  # together not longer than allowed
        ([place(10 * SECONDS_TOGETHER), place(1.0)], [1, 1]),
        ([place(2.0), place(0.0), place(0.0), place(2.0), place(2.0)], [1, 1, 1, 2]),  # those of unknown length alone
        ([place(0.0, with_audio=False)] * 3, [3]),  # without audio there is nothing unknown
        ([place(1.0), None, None, place(1.0), place(1.0), None], [1, None, None, 2, None]),
        ([], []),
    ],
)
def test_groups(places: Sequence[Place | None], groups: Sequence[int | None]) -> None:
    found = list(loaded_together(places))
    assert [None if group is None else len(group) for group in found] == groups
    assert [item for group in found if group is not None for item in group] == [item for item in places if item]


def test_a_group_is_there_before_the_places_that_do_not_exist_yet_are_asked_for() -> None:
    asked = []

    def places() -> Iterator[Place | None]:
        for number in range(4):
            asked.append(number)
            yield None if number == 1 else place(1.0)

    groups = loaded_together(places())
    assert next(groups) is not None
    assert asked == [0, 1]  # what was there is loaded as soon as there is no more
    assert next(groups) is None
