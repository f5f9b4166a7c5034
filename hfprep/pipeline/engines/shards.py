"""Runs of pending rows that are handed out together, and what their workers' deaths say about them.

Takes positions of rows in the plan; their number alone decides the cut, so that it does not depend on how many
processes there are. Knows nothing of processes or of what is computed.
"""

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

SHARDS_WANTED = 64
MIN_SHARD_ROWS, MAX_SHARD_ROWS = 4, 2048
DEATHS_PER_SHARD = 3
DEATHS_ALONE = 2  # that a sample which was split off causes by itself before it is rejected


@dataclass
class Shard:
    """Rows that are handed out together.

    `rows` are positions in the plan. Once handed out, `left` holds the id and the position of those not yet reported,
    by manifest line.
    """

    number: int
    rows: Sequence[int] | np.ndarray
    left: dict[int, tuple[str, int]] = field(default_factory=dict)
    deaths: int = 0
    progressed: bool = False

    def report(self, lines: Iterable[int]) -> None:
        """Note samples whose outcome has been taken."""
        for line in lines:
            del self.left[line]
            self.progressed = True


@dataclass(frozen=True, slots=True)
class Culprit:
    """The one sample that a worker dies of, again and again."""

    line: int
    id: str
    deaths: int


def cut(rows: np.ndarray) -> list[Shard]:
    """The pending rows cut into shards whose length depends on their number alone."""
    length = min(MAX_SHARD_ROWS, max(MIN_SHARD_ROWS, -(-len(rows) // SHARDS_WANTED)))
    return [Shard(number, rows[start : start + length]) for number, start in enumerate(range(0, len(rows), length))]


class ShardQueue:
    """Shards waiting for a worker; `read(positions)` gives line, id and position of these rows of the plan.

    A shard whose worker died comes back. Three deaths in a row without any outcome split it; a sample alone that
    still kills its workers is given back as the culprit.
    """

    def __init__(
        self,
        shards: Iterable[Shard],
        read: Callable[[Sequence[int] | np.ndarray], Iterable[tuple[int, str, int]]],
    ) -> None:
        self._waiting = deque(shards)
        self._read = read
        self._next_number = len(self._waiting)

    def __len__(self) -> int:
        return len(self._waiting)

    def take(self) -> Shard:
        """The next shard, its rows read: what is waiting holds positions only."""
        shard = self._waiting.popleft()
        if not shard.left:
            shard.left = {line: (sample_id, position) for line, sample_id, position in self._read(shard.rows)}
        shard.progressed = False
        return shard

    def give_back(self, shard: Shard) -> Culprit | None:
        """Queue what is left of a shard whose worker died, whole or in halves; gives the sample at fault once known."""
        shard.deaths = 1 if shard.progressed else shard.deaths + 1
        if not shard.left:
            return None
        if shard.deaths < DEATHS_PER_SHARD:
            self._waiting.appendleft(shard)
            return None
        items = list(shard.left.items())
        if len(items) == 1:
            line, (sample_id, _) = items[0]
            return Culprit(line, sample_id, shard.deaths)
        middle = len(items) // 2
        for half in (items[middle:], items[:middle]):
            allowed = DEATHS_ALONE if len(half) == 1 else 1
            rows = [position for _, (_, position) in half]
            self._waiting.appendleft(Shard(self._next_number, rows, dict(half), DEATHS_PER_SHARD - allowed))
            self._next_number += 1
        return None
