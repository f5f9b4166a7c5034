"""Progress within a batch on a CPU, where a large batch takes minutes.

Provides `work_of` and `pending_work`, estimates of the work before audio has been read, and `Watch`.
"""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from hfprep.pipeline.intake import GUESSED_BYTES_PER_SECOND, Loaded, Task
from hfprep.pipeline.plan import Plan
from hfprep.recipes.base import Layered
from hfprep.store.layout import PlannedRow

TEXT_WORK = 0.01  # of a row whose audio is not read
SECONDS_BETWEEN_NEWS = 0.5

Tell = Callable[[Sequence[Task], float], None]


def work_of(row: PlannedRow, audio_groups: frozenset[str]) -> float:
    """Estimated work of a row, in seconds of audio, by its duration or else by the size of its file."""
    if not row.need & audio_groups:
        return TEXT_WORK
    duration = row.utterance.duration
    return row.audio.size / GUESSED_BYTES_PER_SECOND if duration is None else duration


def pending_work(plan: Plan, audio_groups: frozenset[str]) -> float:
    """Total `work_of` of the pending rows of a plan."""
    import pyarrow.compute as pc  # slow to import, and workers need only `Watch`

    total = 0.0
    for batch in plan.table.to_batches():
        need = batch.column("need")
        wanted = pc.is_in(need.flatten(), pa.array(sorted(audio_groups), pa.string()))
        with_audio = np.zeros(len(need), bool)
        with_audio[pc.list_parent_indices(need).filter(wanted).to_numpy()] = True
        sizes = pc.divide(pc.cast(batch.column("audio_bytes"), pa.float64()), float(GUESSED_BYTES_PER_SECOND))
        work = pc.coalesce(batch.column("duration"), sizes, 0.0).to_numpy(zero_copy_only=False)
        pending = pc.list_value_length(need).to_numpy() > 0
        total += float(work[with_audio].sum()) + TEXT_WORK * int((pending & ~with_audio).sum())
    return total


class Watch:
    """Calls `tell(tasks, share)` as the layers of a model compute a batch; the share goes from 0 to 1."""

    def __init__(self, model: Layered, tell: Tell) -> None:
        self._hooks = [layer.register_forward_hook(self._count) for layer in model.layers]
        self._tell = tell
        self._lock = threading.Lock()
        self._tasks: list[Task] = []
        self._frames = self._left = 0
        self._last_update = 0.0

    @contextlib.contextmanager
    def batch(self, batch: Sequence[Loaded]) -> Iterator[None]:
        """A context in which this batch is computed."""
        self._frames = self._left = sum(item.num_frames for item in batch) * len(self._hooks)
        self._tasks, self._last_update = [item.task for item in batch], time.monotonic()
        self._tell(self._tasks, 0.0)
        try:
            yield
        finally:
            self._tasks = []

    def close(self) -> None:
        """Remove the hooks from the model."""
        for hook in self._hooks:
            hook.remove()

    def _count(self, layer: Any, inputs: tuple[Any, ...], output: Any) -> None:
        del layer, output
        with self._lock:  # parts of a batch may be computed in parallel
            if not self._tasks:
                return
            self._left = max(0, self._left - inputs[0].shape[:-1].numel())
            if (now := time.monotonic()) - self._last_update >= SECONDS_BETWEEN_NEWS:
                self._last_update = now
                self._tell(self._tasks, 1 - self._left / self._frames)
