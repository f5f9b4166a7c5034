"""Estimates the time of a build on this machine by computing some of the manifest's clips as a build does.

It uses the extractor of a build, so it works for every recipe. On a CPU it measures the CPU time of one thread, divided
by the number of threads of a build. On a busy machine, the wall-clock time of the same clips can be ten times longer,
and several threads can burn twenty times the CPU time while they wait for each other; a single thread avoids both.
Writing the features is not included.
"""

import os
import time
from collections.abc import Callable, Iterator, Sequence
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

# Frames to compute: first the first number and, if that is quick, the second, which fills the batches of a build.
FRAMES = {"cpu": (300, 3000), "cuda": (2000, 20_000)}
QUICK_SECONDS = 0.5
LONG_FRAMES = 1500  # longer clips are computed only if there are no others
# Assumed, not measured: the imports of the program and its worker.
IMPORT_SECONDS = 6.0
BUSY = 0.5  # load per core of other programs from which the machine counts as busy


@dataclass(frozen=True, slots=True)
class Estimate:
    """Estimated seconds of a build on an otherwise idle `device`: for starting, and for all samples.

    `timed` is the number of computed clips. `load` is the load per core of other programs before that.
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
        """Whether other programs use the machine, so that a build would take longer now."""
        return self.load > BUSY


def load_of_others() -> float:
    """The load per core, which is of other programs as long as this one is idle."""
    return os.getloadavg()[0] / (os.cpu_count() or 1)


def estimate(
    num_frames: int, drawn: Sequence[tuple[Utterance, int]], spec: ExtractorSpec, load: float = 0.0
) -> Estimate:
    """Open the extractor of a build and compute some of the clips, which `drawn` has at random with their frames.

    `num_frames` is the total of the build. Raises the errors of `ExtractorSpec.open`.
    """
    device, threads = torch.device(spec.device), torch.get_num_threads()
    on_cpu = device.type == "cpu"
    clock = time.process_time if on_cpu else time.perf_counter
    begun = clock()
    drawn = sorted(drawn, key=lambda pair: pair[1] > LONG_FRAMES)
    with torch_threads_kept(), ExitStack() as stack:
        if on_cpu:
            torch.set_num_threads(1)  # before the threads that load samples start
        extractor = stack.enter_context(closing(spec.open()))
        starting = clock() - begun
        for enough in FRAMES[device.type]:
            rows = list(_first(drawn, enough))
            # The first pass includes reading grammars and weights, and compiling kernels.
            first, seconds = (_compute(extractor, spec, rows, clock) for _ in range(2))
            starting += max(0.0, first - seconds)
            if seconds > QUICK_SECONDS:
                break
    frames = sum(frames for _, frames in rows)
    working = seconds / (threads if on_cpu else 1) / frames * num_frames
    return Estimate(str(device), spec.precision, IMPORT_SECONDS + starting, working, len(rows), load)


def precision_to_time(models: ModelSet, device: torch.device, precision: str) -> str:
    """The precision of a build; for auto, the first precision that it may choose."""
    if precision != AUTO:
        return precision
    return next((name for name in candidates(device) if name in models.precisions), PLAIN)


def _first(drawn: Sequence[tuple[Utterance, int]], num_frames: int) -> Iterator[tuple[Utterance, int]]:
    """The first rows with at least `num_frames` frames in all."""
    for row, frames in drawn:
        yield row, frames
        num_frames -= frames
        if num_frames <= 0:
            return


def _compute(
    extractor: FeatureExtractor,
    spec: ExtractorSpec,
    rows: Sequence[tuple[Utterance, int]],
    clock: Callable[[], float],
) -> float:
    """The seconds that computing the rows takes."""
    begun = clock()
    for _ in extractor.extract([Task.of(extractor.schema, row, spec.need) for row, _ in rows]):
        pass
    return clock() - begun
