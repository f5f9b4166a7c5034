"""Named moments of a run, for observers: a worker's record of the samples in hand, and tests.

`observe` does nothing without observers. Light to import.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

from hfprep.schema import Utterance

Moment = Literal["load begins", "load ended", "batch begins", "batch computed"]
Observer = Callable[[Moment, Sequence[Utterance]], None]

_observers: list[Observer] = []


def observe(moment: Moment, utterances: Sequence[Utterance]) -> None:
    """Report a moment for these utterances, from any thread. Exceptions of observers are raised here."""
    for observer in list(_observers):
        observer(moment, utterances)


def add_observer(observer: Observer) -> None:
    """Call `observer(moment, utterances)` at every moment until this process ends."""
    _observers.append(observer)


@contextlib.contextmanager
def observing(observer: Observer) -> Iterator[None]:
    """Call `observer(moment, utterances)` at every moment inside the context."""
    _observers.append(observer)
    try:
        yield
    finally:
        _observers.remove(observer)
