"""How long a build will take on this machine: some of the manifest's own clips are computed as a build computes them.

The extractor of a build reads and computes them, so every recipe can be timed. On a CPU the time is counted in CPU
seconds of one thread, by the number of threads that a build has. On a busy machine the clock goes up to ten times as
far for the same clips, and threads that share a computation burn up to twenty times the CPU time while they wait for
each other; one thread does neither. Writing the features is left out.
"""

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass

import torch

from hfprep.models.precision import candidates
from hfprep.pipeline.config import AUTO, PLAIN
from hfprep.pipeline.devices import torch_threads_kept
from hfprep.pipeline.engines.spec import ExtractorSpec
from hfprep.pipeline.features import FeatureExtractor
from hfprep.pipeline.intake import Task
from hfprep.recipes.base import ModelSet
from hfprep.schema import Utterance

# Frames to compute: first so many, and where that is quick, the second number, which fills the batches of a build.
FRAMES = {"cpu": (300, 3000), "cuda": (2000, 20_000)}
QUICK_SECONDS = 0.5
LONG_FRAMES = 1500  # longer clips are computed only where there are no others
# What is not measured: the imports of the program and of its worker.
IMPORT_SECONDS = 6.0
BUSY = 0.5  # other programs' share of the cores from which they are worth a remark


@dataclass(frozen=True, slots=True)
class Work:
    """What there is to compute: model frames in all, and some rows with their frames, drawn at random."""

    num_frames: int
    drawn: Sequence[tuple[Utterance, int]]


@dataclass(frozen=True, slots=True)
class Estimate:
    """Seconds that a build is expected to take on `device`, if nothing else runs there: to start, and for all samples.

    `timed` is how many clips were computed. `load` is how many other programs wanted each core before.
    """

    device: str
    precision: str
    starting_seconds: float
    working_seconds: float
    timed: int
    load: float = 0.0

    @property
    def seconds(self) -> float:
        return self.starting_seconds + self.working_seconds

    @property
    def busy(self) -> bool:
        """Whether other programs keep the machine busy, so that a build would take longer now."""
        return self.load > BUSY


def load_of_others() -> float:
    """How many programs want each core at the moment, as long as this one has not begun to work."""
    return os.getloadavg()[0] / (os.cpu_count() or 1)


def estimate(work: Work, spec: ExtractorSpec, load: float = 0.0) -> Estimate:
    """Open the extractor of a build and compute some of the clips. Raises what `ExtractorSpec.open` raises."""
    device, threads = torch.device(spec.device), torch.get_num_threads()
    on_cpu = device.type == "cpu"
    clock = _Clock(on_cpu=on_cpu)
    drawn = sorted(work.drawn, key=lambda pair: pair[1] > LONG_FRAMES)
    with torch_threads_kept(), ExitStack() as stack:
        if on_cpu:
            torch.set_num_threads(1)  # ahead of the threads that load samples
        extractor = stack.enter_context(closing(spec.open()))
        starting = clock.seconds()
        for num_frames in FRAMES[device.type]:
            rows = list(_first(drawn, num_frames))
            # The first time grammars are read, weights come from the disk and kernels are made ready.
            first, seconds = (_compute(extractor, spec, rows, clock) for _ in range(2))
            starting += max(0.0, first - seconds)
            if seconds > QUICK_SECONDS:
                break
    frames = sum(frames for _, frames in rows)
    working = seconds / (threads if on_cpu else 1) / frames * work.num_frames
    return Estimate(str(device), spec.precision, IMPORT_SECONDS + starting, working, len(rows), load)


def precision_to_time(models: ModelSet, device: torch.device, precision: str) -> str:
    """The precision that a build computes in; of auto, which a build measures, the first that it may choose."""
    if precision != AUTO:
        return precision
    return next((name for name in candidates(device) if name in models.precisions), PLAIN)


class _Clock:
    """Seconds since the last call: CPU seconds of this process, or on a GPU those of the clock."""

    def __init__(self, *, on_cpu: bool) -> None:
        self._now = time.process_time if on_cpu else time.perf_counter
        self._before = self._now()

    def seconds(self) -> float:
        before, self._before = self._before, self._now()
        return self._before - before


def _first(drawn: Sequence[tuple[Utterance, int]], num_frames: int) -> Iterator[tuple[Utterance, int]]:
    """The first of the rows, until they have so many frames."""
    for row, frames in drawn:
        yield row, frames
        num_frames -= frames
        if num_frames <= 0:
            return


def _compute(
    extractor: FeatureExtractor, spec: ExtractorSpec, rows: Sequence[tuple[Utterance, int]], clock: _Clock
) -> float:
    clock.seconds()
    for _ in extractor.extract([Task.of(extractor.schema, row, spec.need) for row, _ in rows]):
        pass
    return clock.seconds()
