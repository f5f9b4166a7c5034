"""Records which samples a worker is loading or computing, in a file that survives it: one of them may have killed it.

`InHand` is the worker's side, `in_hand` the driver's. The file is memory-mapped, so updates need no system call.
"""

import threading
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np

from hfprep.pipeline.observing import Moment
from hfprep.schema import Utterance

NAME = "in-hand"
SLOTS = 4096  # more than are ever loaded or computed at a time


class InHand:
    """Records manifest lines when work on them begins and ends; an observer (see `observing`)."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._lines = np.memmap(folder / NAME, np.int64, mode="w+", shape=(SLOTS,))
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
        lines = np.fromfile(folder / NAME, np.int64)
    except OSError:
        return None
    return set(lines[lines > 0].tolist())
