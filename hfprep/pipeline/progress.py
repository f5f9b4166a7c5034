"""What a run shows while it works: one live line in a terminal, a log line every 30 s elsewhere.

Takes counts as batches complete; knows nothing of where they come from.
"""

import logging
import time
from dataclasses import dataclass
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

log = logging.getLogger(__name__)

SECONDS_BETWEEN_LINES = 30.0
SECONDS_PER_HOUR = 3600.0


@dataclass
class Tally:
    """What a run has done so far."""

    done: int = 0
    rejected: int = 0
    audio_seconds: float = 0.0
    batch_rows: int = 0
    batch_frames: int = 0
    frames: int = 0
    padded_frames: int = 0


class BuildProgress:
    """Progress of one run over `total` samples; a context manager."""

    def __init__(self, total: int, console: Console | None = None) -> None:
        self.total = total
        self.tally = Tally()
        self._console = console or Console(stderr=True)
        self._live: Progress | None = None
        self._task: TaskID | None = None
        self._started = self._last_line = time.monotonic()

    def __enter__(self) -> "BuildProgress":
        if self._console.is_terminal:
            self._live = Progress(
                TextColumn("[bold]features"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[status]}"),
                TextColumn("left"),
                TimeRemainingColumn(elapsed_when_finished=True),
                console=self._console,
            )
            self._task = self._live.add_task("features", total=self.total, status="loading the first batch")
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()
        log.info("%s", self._line())

    def advance(self, *, done: int, rejected: int, audio_seconds: float, num_frames: int, padded_frames: int) -> None:
        """Count one batch."""
        tally = self.tally
        tally.done += done
        tally.rejected += rejected
        tally.audio_seconds += audio_seconds
        tally.frames += num_frames
        tally.padded_frames += padded_frames
        tally.batch_rows, tally.batch_frames = done + rejected, padded_frames
        if self._live is not None and self._task is not None:
            self._live.update(self._task, completed=tally.done + tally.rejected, status=self._status())
        elif time.monotonic() - self._last_line >= SECONDS_BETWEEN_LINES:
            self._last_line = time.monotonic()
            log.info("%s", self._line())

    @property
    def seconds(self) -> float:
        """Seconds since the run began computing."""
        return max(time.monotonic() - self._started, 1e-9)

    def _status(self) -> str:
        tally = self.tally
        rate = tally.audio_seconds / self.seconds
        hours = tally.audio_seconds / SECONDS_PER_HOUR
        return f"{hours:.2f} h, {rate:.1f}x real time, {tally.rejected} rejected, batch {tally.batch_rows}"

    def _line(self) -> str:
        finished = self.tally.done + self.tally.rejected
        rate = finished / self.seconds
        left = f", {(self.total - finished) / rate:.0f} s left" if rate and finished < self.total else ""
        return f"{finished}/{self.total} samples, {self._status()}{left}"
