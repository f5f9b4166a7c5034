"""A turn of a comparison, in a separate process: the baseline or a build.

`python -m scripts.benchmark.turn JOB RESULT` reads a `Job` from one JSON file and writes its measurements to another:
samples, frames, padded_frames, seconds (since the process was requested), startup_seconds (until the first batch could
start), processor_seconds, stages (seconds by stage, summed over threads), peak_memory_bytes (with memory-mapped files),
peak_private_memory_bytes (without them), matrix_rate.
"""

import contextlib
import dataclasses
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

from hfprep.pipeline.config import BuildConfig
from scripts.benchmark.config import BASELINE


@dataclass(frozen=True, kw_only=True)
class Job:
    """What to run, and when it was requested (seconds since 1970)."""

    kind: str
    recipe: str
    models: str
    manifest: str
    output: str
    batch_size: int
    device: str
    precision: str
    threads: int
    asked: float


@dataclass
class _Start:
    """When the first batch could start."""

    asked: float
    seconds: float | None = None

    def done(self) -> None:
        if self.seconds is None:
            self.seconds = time.time() - self.asked


def run_turn(job: Job) -> dict[str, Any]:
    """Run the job in this process and measure it."""
    if job.kind == BASELINE:
        return _measured(job, partial(_run_baseline, job))
    config = BuildConfig(
        manifest=Path(job.manifest),
        output_dir=Path(job.output),
        recipe=job.recipe,
        models=Path(job.models),
        batch_size=job.batch_size,
        device=job.device,
        precision=job.precision,
        engine="inline",  # so that its steps can be timed
    )
    return _measured(job, partial(_run_build, job, config))


def _measured(job: Job, run: Callable[[Any, Any, _Start], dict[str, int]]) -> dict[str, Any]:
    """The counts returned by `run(device, watch, start)`, with time and memory."""
    import torch

    from hfprep.pipeline.devices import choose_device
    from scripts.benchmark.measuring import PrivateMemory, Stopwatch, clock_for, matrix_rate, peak_memory

    device = choose_device(job.device)
    if job.threads:
        torch.set_num_threads(job.threads)
    clock = clock_for(job.threads)
    watch, start = Stopwatch(device, clock), _Start(job.asked)
    with PrivateMemory() as private_memory:
        counts = run(device, watch, start)
    seconds = time.time() - job.asked
    processor_seconds = time.process_time()
    stages = watch.seconds()
    memory = peak_memory()
    device_memory = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
    rates = {"fp32": matrix_rate(device, clock)}
    if device.type == "cuda":
        rates["bf16"] = matrix_rate(device, clock, torch.bfloat16)
    return {
        **dataclasses.asdict(job),
        **counts,
        "seconds": seconds,
        "processor_seconds": processor_seconds,
        "startup_seconds": start.seconds,
        "stages": stages,
        "peak_memory_bytes": memory,
        "peak_private_memory_bytes": private_memory.peak,
        "peak_device_memory_bytes": device_memory,
        "threads": torch.get_num_threads(),
        "matrix_rate": rates,
    }


def _run_baseline(job: Job, device: Any, watch: Any, start: _Start) -> dict[str, int]:
    from scripts.benchmark.baseline import run_baseline
    from scripts.benchmark.families import FAMILIES

    baseline = FAMILIES[job.recipe].baseline(Path(job.models), device)
    return run_baseline(
        baseline, Path(job.manifest), Path(job.output), batch_size=job.batch_size, watch=watch, loaded=start.done
    )


def _run_build(job: Job, config: BuildConfig, device: Any, watch: Any, start: _Start) -> dict[str, int]:
    from hfprep.pipeline.building import build
    from hfprep.pipeline.engines.choice import ENGINES, InlineEngine
    from scripts.benchmark.families import FAMILIES

    ENGINES["inline"] = InlineEngine(own_process=True)
    with timed_build(FAMILIES[job.recipe].places(), watch, start.done, on_gpu=device.type == "cuda"):
        summary = build(config)
    tally = summary.tally
    return {"samples": summary.accepted, "frames": tally.frames, "padded_frames": tally.padded_frames}


@contextlib.contextmanager
def timed_build(places: Any, watch: Any, loaded: Callable[[], None], *, on_gpu: bool) -> Iterator[None]:
    """Time the steps of builds inside the block; `loaded` is called when models are loaded."""
    from hfprep.io.file_hashes import FileHashes
    from hfprep.pipeline import intake
    from hfprep.pipeline.intake_processes import IntakeProcesses
    from hfprep.pipeline.precision_trial import Trial
    from hfprep.store.layout import Publisher, Stage

    load, run_trial = places.model.load, Trial.run
    # With a GPU, processes decode and tokenize, and the device computes the input features.
    reading: list[tuple[Any, str, str]] = [(IntakeProcesses, "load", "decode")] if on_gpu else [
        (intake, "load_waveform", "decode"),
        (*places.text, "text"),
        *((*place, "features") for place in places.beside),
    ]  # fmt: skip

    def load_watched(*args: Any, **options: Any) -> Any:
        with watch.measuring("loading"):
            model = load(*args, **options)
        for name, stage in places.networks.items():
            watch.watch(stage, getattr(model, name))
        loaded()
        return model

    def run_unwatched(trial: Trial) -> Any:
        with watch.measuring("choosing the precision"), mock.patch.object(places.model, "load", load):
            return run_trial(trial)

    steps: tuple[tuple[Any, str, str], ...] = (
        *reading,
        (Stage, "write", "writing"),
        (Publisher, "publish", "writing"),
        (FileHashes, "sha256", "hashing"),
    )
    with contextlib.ExitStack() as stack:
        for owner, name, stage in steps:
            stack.enter_context(mock.patch.object(owner, name, watch.timed(stage, getattr(owner, name))))
        for owner, name in places.features:
            watched = watch.watched("features", getattr(owner, name))
            stack.enter_context(mock.patch.object(owner, name, watched))
        stack.enter_context(mock.patch.object(places.model, "load", load_watched))
        stack.enter_context(mock.patch.object(Trial, "run", run_unwatched))
        yield


if __name__ == "__main__":
    asked = Job(**json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
    Path(sys.argv[2]).write_text(json.dumps(run_turn(asked)), encoding="utf-8")
