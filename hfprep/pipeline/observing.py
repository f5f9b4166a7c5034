"""Named moments of a run, for whoever wants to know of them: a worker's note of what it has in hand, and tests.

`observe` does nothing unless somebody listens. Light to import.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

from hfprep.schema import Utterance

Moment = Literal["load begins", "load ended", "batch begins", "batch computed"]
Observer = Callable[[Moment, Sequence[Utterance]], None]

_observers: list[Observer] = []


def observe(moment: Moment, utterances: Sequence[Utterance]) -> None:
    """Say that a moment has come for these utterances; from any thread. What an observer raises is raised here."""
    for observer in list(_observers):
        observer(moment, utterances)


def add_observer(observer: Observer) -> None:
    """Call `observer(moment, utterances)` at every moment for as long as this process lives."""
    _observers.append(observer)


@contextlib.contextmanager
def observing(observer: Observer) -> Iterator[None]:
    """While inside, call `observer(moment, utterances)` at every moment in this process."""
    _observers.append(observer)
    try:
        yield
    finally:
        _observers.remove(observer)
