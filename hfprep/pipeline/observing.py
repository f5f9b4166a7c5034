"""Named moments of a run, for observers: a worker's record of the samples in hand, and tests.

`observe` does nothing without observers. `InHand` records which samples a worker is loading or computing, in a file
that survives it: one of them may have killed it. The driver reads it with `in_hand`.
"""

import contextlib
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from hfprep.schema import Utterance

IN_HAND = "in-hand"  # name of the file
SLOTS = 4096  # more than are ever loaded or computed at a time

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


class InHand:
    """Records manifest lines when work on them begins and ends. An observer.

    The file is memory-mapped, so updates need no system call, and it survives its process.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._lines = np.memmap(folder / IN_HAND, np.int64, mode="w+", shape=(SLOTS,))
        self._slots: dict[tuple[str, int], int] = {}
        self._free = list(range(SLOTS))
        self._lock = threading.Lock()

    def __call__(self, moment: Moment, utterances: Sequence[Utterance]) -> None:
        """Record a moment."""
        what, how = moment.split()
        with self._lock:
            for utterance in utterances:
                key = what, utterance.line
                if how == "begins" and key not in self._slots and self._free:
                    slot = self._slots[key] = self._free.pop()
                    self._lines[slot] = utterance.line
                elif how != "begins" and key in self._slots:
                    slot = self._slots.pop(key)
                    self._lines[slot] = 0
                    self._free.append(slot)


def in_hand(folder: Path) -> Collection[int] | None:
    """The lines that the worker of this folder had in hand when it ended; None if there is no file."""
    try:
        lines = np.fromfile(folder / IN_HAND, np.int64)
    except OSError:
        return None
    return set(lines[lines > 0].tolist())
