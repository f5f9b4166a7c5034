"""Work units of pending rows, and how to find the sample that kills its workers.

Takes positions of rows in the plan. Knows nothing about processes or what is computed.
"""

from collections import deque
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

UNITS_WANTED = 64
MIN_UNIT_ROWS, MAX_UNIT_ROWS = 4, 2048
DEATHS_PER_UNIT = 3
DEATHS_ALONE = 2  # that a separated sample causes before it is rejected
FEW_SUSPECTS = 8  # up to this many are tried one by one

Left = dict[int, tuple[str, int]]  # id and position of rows that have no outcome yet, by manifest line


@dataclass(eq=False)
class WorkUnit:
    """Rows that are assigned together.

    `rows` are positions in the plan. Once assigned, `left` has the id and the position of those not yet reported, by
    manifest line. A unit that is `alone` is the only unit of its worker, so that it is known to cause a death.
    """

    number: int
    rows: Sequence[int] | np.ndarray
    left: Left = field(default_factory=dict)
    deaths: int = 0
    progressed: bool = False
    alone: bool = False

    def report(self, lines: Iterable[int]) -> list[int]:
        """Record samples that have an outcome; returns those that had none before."""
        new = [line for line in lines if self.left.pop(line, None) is not None]
        self.progressed = self.progressed or bool(new)
        return new


@dataclass(frozen=True, slots=True)
class Culprit:
    """The sample that repeatedly kills its workers."""

    line: int
    id: str
    deaths: int


def cut(rows: np.ndarray, num_workers: int) -> list[WorkUnit]:
    """Cut the pending rows into units: long ones for one worker, otherwise independent of the number of workers.

    Batches are formed within a unit, so long units have less padding; many units keep all workers busy to the end.
    """
    wanted = UNITS_WANTED if num_workers > 1 else 1
    length = min(MAX_UNIT_ROWS, max(MIN_UNIT_ROWS, -(-len(rows) // wanted)))
    return [WorkUnit(number, rows[start : start + length]) for number, start in enumerate(range(0, len(rows), length))]


class WorkQueue:
    """Units waiting for a worker; `read(positions)` returns line, id and position of these rows of the plan.

    A unit whose worker died is queued again. If it is known which samples the worker had in hand, these are tried
    separately from the rest; otherwise three deaths in a row without any outcome split the unit. A single sample that
    still kills its workers is returned as the culprit. Units that are `alone` come first: otherwise workers that die
    whatever they get would make new suspects faster than culprits are found.
    """

    def __init__(
        self,
        units: Iterable[WorkUnit],
        read: Callable[[Sequence[int] | np.ndarray], Iterable[tuple[int, str, int]]],
    ) -> None:
        self._waiting = deque(units)
        self._alone: deque[WorkUnit] = deque()
        self._read = read
        self._next_number = len(self._waiting)

    def __len__(self) -> int:
        return len(self._alone) + len(self._waiting)

    def next_alone(self) -> bool:
        """Whether the next unit is for a worker without other units."""
        return bool(self._alone)

    def take(self) -> WorkUnit:
        """The next unit, with its rows read: waiting units only have positions."""
        unit = (self._alone or self._waiting).popleft()
        if not unit.left:
            unit.left = {line: (sample_id, position) for line, sample_id, position in self._read(unit.rows)}
        unit.progressed = False
        return unit

    def give_back(self, unit: WorkUnit, in_hand: Collection[int] | None = None, *, only: bool = True) -> Culprit | None:
        """Queue the rest of a unit whose worker died; returns the sample at fault once it is known.

        `in_hand` are the manifest lines that the worker was loading or computing, None if unknown. `only`: the worker
        had no other unit; without that and without `in_hand`, another unit may have caused the death.
        """
        if not unit.left:
            return None
        if in_hand is None and not only:
            self._try_alone(unit)
            return None
        suspects = {line: item for line, item in unit.left.items() if in_hand is None or line in in_hand}
        if not suspects:  # not started
            self._put(unit)
            return None
        unit.deaths = 1 if unit.progressed else unit.deaths + 1
        if len(unit.left) == 1 and unit.deaths >= DEATHS_PER_UNIT:
            ((line, (sample_id, _)),) = unit.left.items()
            return Culprit(line, sample_id, unit.deaths)
        if len(unit.left) == 1 or (in_hand is None and unit.deaths < DEATHS_PER_UNIT):
            self._try_alone(unit)
            return None
        others = {line: item for line, item in unit.left.items() if line not in suspects}
        if others:
            self._push(others, alone=False)
        self._split(suspects, whole=bool(others))
        return None

    def _try_alone(self, unit: WorkUnit) -> None:
        unit.alone = True
        self._put(unit)

    def _put(self, unit: WorkUnit) -> None:
        (self._alone if unit.alone else self._waiting).appendleft(unit)

    def _split(self, suspects: Left, *, whole: bool) -> None:
        """Queue suspects one by one, or in halves if they are many; `whole`: they have not been tried together."""
        items = list(suspects.items())
        if len(items) <= FEW_SUSPECTS and whole:
            parts = [[item] for item in items]
        elif whole:
            parts = [items]
        else:
            middle = len(items) // 2
            parts = [items[:middle], items[middle:]]
        for part in reversed(parts):
            self._push(dict(part), alone=True)

    def _push(self, left: Left, *, alone: bool) -> None:
        """Queue rows as a new unit, in front; a single row is the culprit after `DEATHS_ALONE` deaths."""
        deaths = 0 if not alone else DEATHS_PER_UNIT - (DEATHS_ALONE if len(left) == 1 else 1)
        rows = [position for _, position in left.values()]
        self._put(WorkUnit(self._next_number, rows, left, deaths, alone=alone))
        self._next_number += 1
