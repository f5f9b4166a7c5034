"""How long a build will take on this machine, from short measurements of its own parts.

The recipe runs a part of its models on the device, over clips as long as the manifest's are on average; reading audio
and encoding text are measured on a few of the rows themselves. Starting is counted by the size of what is loaded;
writing is left out.
"""

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from hfprep.errors import RejectedSample
from hfprep.models.precision import candidates
from hfprep.pipeline.config import AUTO, PLAIN
from hfprep.pipeline.intake import read_clip
from hfprep.recipes.base import Outline
from hfprep.schema import Utterance

MOST_FRAMES = 300  # of a clip that is measured: enough for the full rate, and half a second on a slow CPU
FRAMES_AT_ONCE = {"cpu": 1, "cuda": 8000}  # a CPU takes one clip at a time
STARTING_SECONDS = {"cpu": 4.0, "cuda": 15.0}  # imports, finding and mapping the models; moving them to a GPU
BUSY = 0.5  # other programs' share of the cores from which they are worth a remark


@dataclass(frozen=True, slots=True)
class Work:
    """What there is to compute: clips, model frames and seconds of audio in all, and some of the rows."""

    clips: int
    num_frames: int
    audio_seconds: float
    rows: Sequence[Utterance]


@dataclass(frozen=True, slots=True)
class Estimate:
    """Seconds that a build is expected to take: computing on `device`, reading in `workers` threads, starting.

    `compute_seconds` is None where the recipe cannot say. `timed_frames` and `timed_rows` are what was measured.
    `load` is how many other programs wanted each core while that was done.
    """

    device: str
    precision: str
    compute_seconds: float | None
    reading_seconds: float
    workers: int
    timed_frames: int
    timed_rows: int
    load: float = 0.0

    @property
    def starting_seconds(self) -> float:
        return STARTING_SECONDS[self.device.partition(":")[0]]

    @property
    def seconds(self) -> float:
        """A GPU computes while the CPU reads; on a CPU both take turns on the same cores."""
        compute = self.compute_seconds or 0.0
        alone = self.device.startswith("cpu")
        return self.starting_seconds + (compute + self.reading_seconds if alone else max(compute, self.reading_seconds))

    @property
    def busy(self) -> bool:
        """Whether other programs kept the machine busy, so that the estimate is of a machine that is busy."""
        return self.load > BUSY


def estimate(outline: Outline, work: Work, *, device: torch.device, precision: str, workers: int) -> Estimate:
    """Expect the time for this work. Raises ConfigError where the device cannot compute in that precision."""
    load = os.getloadavg()[0] / (os.cpu_count() or 1)
    if precision == AUTO:  # by measuring, from what may be faster: the first that may be chosen
        precision = next(iter(candidates(device)), PLAIN)
    length = max(1, min(MOST_FRAMES, round(work.num_frames / work.clips)))
    rows = max(1, FRAMES_AT_ONCE[device.type] // length)
    compute = None
    if outline.seconds_of_batch is not None:
        compute = outline.seconds_of_batch(rows, length, device, precision) * work.num_frames / (rows * length)
    reading = reading_seconds(work.rows, outline, on_gpu=device.type == "cuda")
    read = len(work.rows)
    total = reading / read * work.clips / workers if read else 0.0
    return Estimate(str(device), precision, compute, total, workers, rows * length, read, load)


def reading_seconds(rows: Sequence[Utterance], outline: Outline, *, on_gpu: bool) -> float:
    """Seconds that one thread takes to read the audio and encode the text of these rows."""
    spent = 0.0
    for row in rows:
        try:
            # The first time a filter is made for the rate, and the file comes from a slow disk.
            read_clip(row.path, outline.audio, segment=row.segment, on_gpu=on_gpu)
            started = time.perf_counter()
            read_clip(row.path, outline.audio, segment=row.segment, on_gpu=on_gpu)
            if outline.text_encoder is not None:
                outline.text_encoder.encode(row.text, row.language)
        except RejectedSample:
            continue
        spent += time.perf_counter() - started
    return spent
