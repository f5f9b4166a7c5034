"""Progress display: a bar in a terminal or a notebook, elsewhere a log line every 30 s.

Takes counts as batches complete, and the progress within a batch; knows nothing about where they come from.
"""

import contextlib
import html
import importlib
import logging
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rich.progress import BarColumn, Progress, ProgressColumn, Task
from rich.progress_bar import ProgressBar
from rich.table import Column
from rich.text import Text

from hfprep.io.record import record
from hfprep.pipeline.console import above_the_bar, console, in_notebook
from hfprep.pipeline.engines.messages import Underway

log = logging.getLogger(__name__)

SECONDS_BETWEEN_LINES = 30.0
SECONDS_BETWEEN_UPDATES = 0.5  # of a notebook's bar


@dataclass
class Tally:
    """What a run has done so far."""

    done: int = 0
    rejected: int = 0
    audio_seconds: float = 0.0
    frames: int = 0
    padded_frames: int = 0


class BuildProgress:
    """Progress of one run, a context manager: shows the current stage, or how much is done.

    With `shown` false only the result is logged.
    """

    def __init__(self, *, shown: bool = True) -> None:
        self.tally = Tally()
        self.total = 0
        self._shown = shown
        self._display: _Display | None = None
        self._stage: Callable[[], str] | None = lambda: "starting"
        self._lock = threading.Lock()
        self._work = self._work_done = 0.0
        self._underway: dict[int, float] = {}
        self._began = self._ended = time.monotonic()
        self._measured_from: tuple[float, float] | None = None  # time and work of the first update

    def __enter__(self) -> "BuildProgress":
        if self._shown:
            self._display = _display(self)
        return self

    def __exit__(self, *_: object) -> None:
        self._stage = None
        if self._display is not None:
            self._display.close()
            self._display = None

    def stage(self, words: str | Callable[[], str]) -> None:
        """Set what the run does now; a function is called whenever the line is drawn."""
        self._stage = words if callable(words) else lambda: words
        self._update()

    def begin(self, total: int, work: float) -> None:
        """Start computing `total` samples, with this much work in total."""
        self.total, self._work = total, work
        self._began = time.monotonic()
        self.stage("loading the models")

    def end(self) -> None:
        """Stop computing samples."""
        self._ended, self._stage = time.monotonic(), None
        (record if isinstance(self._display, _Bar | _NotebookBar) else log).info("%s", self.counts())

    def underway(self, worker: int, news: Underway | None) -> None:
        """Update a worker's progress within its batch; None: the batch is finished or lost."""
        with self._lock:
            self._underway.pop(worker, None)
            if news is not None:
                self._underway[worker] = news.work * news.share
                self._measure()
        self._update()

    def advance(
        self, *, done: int, rejected: int, audio_seconds: float, num_frames: int, padded_frames: int, work: float
    ) -> None:
        """Count one batch, with the work of its `done` samples; for rejected ones the mean is assumed."""
        tally = self.tally
        with self._lock:
            tally.done += done
            tally.rejected += rejected
            tally.audio_seconds += audio_seconds
            tally.frames += num_frames
            tally.padded_frames += padded_frames
            self._work_done += work + rejected * self._work / max(1, self.total)
            self._measure()
        self._update()

    @property
    def finished(self) -> int:
        """Number of samples with an outcome."""
        return self.tally.done + self.tally.rejected

    @property
    def share(self) -> float | None:
        """Share of the work that is done, from 0 to 1; None while unknown."""
        if self._measured_from is None:
            return None
        return 1.0 if self.finished >= self.total else min(0.99, self._worked() / max(self._work, 1e-9))

    @property
    def seconds_left(self) -> float | None:
        """Estimated seconds for the rest, by the speed so far; None while unknown."""
        if self._measured_from is None:
            return None
        since, before = self._measured_from
        worked, elapsed = self._worked() - before, time.monotonic() - since
        return max(0.0, self._work - self._worked()) * elapsed / worked if worked > 0 else None

    def line(self) -> str:
        """The text beside the bar."""
        return f"{self.share or 0:4.0%} {self.counts()}" if self._stage is None else self._stage()

    def counts(self) -> str:
        """Counts, speed, and elapsed or remaining time."""
        tally, over = self.tally, self._ended > self._began
        elapsed = (self._ended if over else time.monotonic()) - self._began
        parts = [f"{self.finished:,}/{self.total:,}"]
        if tally.audio_seconds:
            parts.append(f"{tally.audio_seconds / max(elapsed, 1e-9):.1f}x real time")
        if tally.rejected:
            parts.append(f"{tally.rejected:,} rejected")
        if over:
            parts.append(f"{_clock(elapsed)} elapsed")
        elif (left := self.seconds_left) is not None:
            parts.append(f"{_clock(left)} left")
        return ", ".join(parts)

    def _worked(self) -> float:
        return self._work_done + sum(self._underway.values())

    def _measure(self) -> None:
        self._stage = None
        if self._measured_from is None:
            self._measured_from = time.monotonic(), self._worked()

    def _update(self) -> None:
        if self._display is not None:
            self._display.update()


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"


class _Display:
    """Where progress is shown."""

    def __init__(self, progress: BuildProgress) -> None:
        self._progress = progress
        self._updated = time.monotonic()

    def update(self) -> None:
        """Show the current progress."""

    def close(self) -> None:
        """Show the final progress."""


def _display(progress: BuildProgress) -> _Display:
    """The display for the current environment."""
    if console().is_terminal and not console().is_dumb_terminal:
        return _Bar(progress)
    return _NotebookBar(progress) if in_notebook() else _Lines(progress)


class _ShareColumn(BarColumn):
    """The share of the work that is done at the moment, as a bar."""

    def __init__(self, progress: BuildProgress) -> None:
        super().__init__(bar_width=None, table_column=Column(ratio=1))  # as wide as the rest of the line
        self._progress = progress

    def render(self, task: Task) -> ProgressBar:
        share = self._progress.share
        task.total, task.completed = None if share is None else 1.0, share or 0.0
        return super().render(task)


class _StatusColumn(ProgressColumn):
    """The line beside the bar."""

    def __init__(self, progress: BuildProgress) -> None:
        super().__init__(Column(no_wrap=True))
        self._progress = progress

    def render(self, task: Task) -> Text:  # noqa: ARG002 - as Rich calls it
        return Text(self._progress.line())


class _Bar(_Display):
    """A bar at the bottom of a terminal, which Rich draws ten times a second; it remains if samples were computed."""

    def __init__(self, progress: BuildProgress) -> None:
        super().__init__(progress)
        columns = (_ShareColumn(progress), _StatusColumn(progress))
        self._live = Progress(*columns, console=console(), expand=True)
        self._live.add_task("", total=None)
        stderr = sys.stderr
        with contextlib.ExitStack() as stack:
            stack.enter_context(self._live)
            stack.enter_context(above_the_bar(stderr))
            self._open = stack.pop_all()

    def close(self) -> None:
        self._live.live.transient = not self._progress.total  # remove a bar that only showed stages
        self._open.close()


class _NotebookBar(_Display):
    """A bar in the output of a notebook's cell."""

    def __init__(self, progress: BuildProgress) -> None:
        super().__init__(progress)
        self._ipython: Any = importlib.import_module("IPython.display")  # installed: this runs in a notebook
        self._handle = self._ipython.display(self._bar(), display_id=True)

    def update(self) -> None:
        if time.monotonic() - self._updated >= SECONDS_BETWEEN_UPDATES:
            self.close()

    def close(self) -> None:
        self._updated = time.monotonic()
        self._handle.update(self._bar())

    def _bar(self) -> Any:
        share = self._progress.share
        value = "" if share is None else f' value="{share:.3f}"'
        return self._ipython.HTML(f"<progress{value}></progress> {html.escape(self._progress.line())}")


class _Lines(_Display):
    """A log line from time to time."""

    def update(self) -> None:
        if self._progress.share is not None and time.monotonic() - self._updated >= SECONDS_BETWEEN_LINES:
            self._updated = time.monotonic()
            log.info("%s", self._progress.line())
