"""What a build costs apart from its models: the real build with models that answer at once, beside a plain pipeline.

Gives `compare_host`. Both run in turns, each turn in a separate process (`python -m scripts.benchmark.host JOB
RESULT`), on the same clips: twenty recordings under many names.
"""

import contextlib
import dataclasses
import json
import os
import resource
import shutil
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from scripts.benchmark.comparing import run_in_process
from scripts.benchmark.config import BASELINE, BUILD, BenchConfig

RECORDINGS = 20
KIB_IN_MB = 1024
TURN_FIGURES = ("clips_a_second", "cpu_ms_a_clip", "driver_ms_a_clip", "times_real_time", "peak_mb")


@dataclass(frozen=True, kw_only=True)
class HostJob:
    """One turn: a build, or the plain pipeline."""

    kind: str
    recipe: str
    options: dict[str, Any]  # of a build: those that name the models
    manifest: str
    output: str
    format: str
    as_for_gpu: bool


def compare_host(config: BenchConfig, say: Callable[[str], None]) -> dict[str, Any]:
    """Measure both sides in turns; `say` is told what happens. Gives what `--json` keeps.

    The figures of a side are those of its turn with the least processor time. Raises HfprepError where a turn fails.
    """
    from hfprep.tools.demo.model_sets import make_models

    say("making models and clips")
    folder = config.folder / "host"
    models = (folder / f"models-{config.recipe}").absolute()
    options = {name: str(value) for name, value in make_models(config.recipe, models).items()}
    count = config.corpus[0]
    manifest, seconds = make_manifest(folder, count, config.corpus[1])
    turns: list[dict[str, Any]] = []
    for number in range(config.rounds):
        for kind in (BASELINE, BUILD):
            say(f"round {number + 1} of {config.rounds}: {kind}, {config.format}")
            output = folder / "output"
            job = HostJob(
                kind=kind,
                recipe=config.recipe,
                options=options,
                manifest=str(manifest),
                output=str(output),
                format=config.format,
                as_for_gpu=config.as_for_gpu,
            )
            turns.append(_take_turn(job, folder, seconds))
            shutil.rmtree(output)
    ours, theirs = (_cheapest(turns, kind) for kind in (BUILD, BASELINE))
    return {
        "recipe": config.recipe,
        "format": config.format,
        "as_for_gpu": config.as_for_gpu,
        "clips": count,
        "audio_seconds": seconds,
        **{name: ours[name] for name in TURN_FIGURES},
        **{f"plain_{name}": theirs[name] for name in TURN_FIGURES},
        "ratio": theirs["cpu_ms_a_clip"] / ours["cpu_ms_a_clip"],
        "wall_ratio": theirs["wall_seconds"] / ours["wall_seconds"],
        "machine": {"processor": _processor(), "cores": len(os.sched_getaffinity(0))},
        "turns": turns,
    }


def make_manifest(folder: Path, count: int, seconds: tuple[float, float]) -> tuple[Path, float]:
    """A manifest of `count` clips, and the seconds of audio in them."""
    import soundfile

    from scripts.benchmark.corpus import make_corpus

    recorded = make_corpus(folder / "clips", num_clips=min(count, RECORDINGS), seconds=seconds)
    rows = [json.loads(line) for line in recorded.read_text(encoding="utf-8").splitlines()]
    for row in rows:
        row["duration"] = round(soundfile.info(recorded.parent / row["audio"]).duration, 3)
    manifest, total = recorded.with_name("many.jsonl"), 0.0
    with open(manifest, "w", encoding="utf-8") as stream:
        for number in range(count):
            row = rows[number % len(rows)]
            total += row["duration"]
            own = {"id": f"{number // 1000:04d}/clip_{number:07d}", "speaker": f"speaker_{number % 7}"}
            stream.write(json.dumps(row | own, ensure_ascii=False) + "\n")
    return manifest, total


def _take_turn(job: HostJob, folder: Path, seconds: float) -> dict[str, Any]:
    shutil.rmtree(job.output, ignore_errors=True)
    found = run_in_process("scripts.benchmark.host", dataclasses.asdict(job), folder, job.kind)
    return found | {"times_real_time": seconds / found["wall_seconds"]}


def _cheapest(turns: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    return min((turn for turn in turns if turn["kind"] == kind), key=lambda turn: turn["cpu_ms_a_clip"])


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return "unknown"
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


def run_host_turn(job: HostJob) -> dict[str, Any]:
    """Do a job here and measure it, from when the libraries that its driver needs are imported."""
    from hfprep.pipeline.building import build
    from hfprep.pipeline.config import BuildConfig
    from hfprep.pipeline.engines.choice import ENGINES, Shared
    from hfprep.pipeline.inputs import find_inputs
    from hfprep.recipes.registry import recipe
    from hfprep.store.layout import OutputFolder
    from scripts.benchmark.host_plain import run_plain
    from scripts.benchmark.stand_in import AsForGpu, StandInModels, stand_in

    config = BuildConfig(
        manifest=Path(job.manifest),
        output_dir=Path(job.output),
        format=job.format,
        recipe=job.recipe,
        device="cpu",
        **job.options,
    )
    inputs = stand_in(find_inputs(config, OutputFolder(config.output_dir)), recipe(job.recipe).published)
    started, driver, everything = time.perf_counter(), time.process_time(), _processor_seconds()
    with _Unawaited() as unawaited:
        if job.kind == BASELINE:
            assert isinstance(inputs.models, StandInModels)
            count = run_plain(inputs.models, config.manifest, config.output_dir / "plain", job.format)
        else:
            if job.as_for_gpu:
                ENGINES["local"] = AsForGpu()
            with Shared(inputs=inputs) as shared:
                count = build(config, shared=shared).accepted
    seconds = time.perf_counter() - started
    everything -= unawaited.seconds
    return {
        "kind": job.kind,
        "samples": count,
        "wall_seconds": seconds,
        "clips_a_second": count / seconds,
        "driver_ms_a_clip": 1000 * (time.process_time() - driver) / count,
        "cpu_ms_a_clip": 1000 * (_processor_seconds() - everything) / count,
        "peak_mb": sum(resource.getrusage(who).ru_maxrss for who in _ALL) / KIB_IN_MB,
    }


class _Unawaited:
    """Processor time of the processes that load samples: nobody waits for them, so the system adds them to no other.

    A context manager. Looks at the children of this process's children every 0.2 s, so it may miss as much of each.
    """

    INTERVAL = 0.2

    def __init__(self) -> None:
        self._seen: dict[str, float] = {}
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    @property
    def seconds(self) -> float:
        return sum(self._seen.values())

    def _watch(self) -> None:
        while not self._done.wait(self.INTERVAL):
            for child in _children(str(os.getpid())):
                waiting = _children(child)
                while waiting:
                    number = waiting.pop()
                    waiting += _children(number)
                    with contextlib.suppress(OSError):  # it has just ended
                        fields = Path(f"/proc/{number}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
                        self._seen[number] = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _children(number: str) -> list[str]:
    """The processes that a process has started and that run."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{number}/task/{number}/children").read_text(encoding="utf-8").split()
    return []


_ALL = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)


def _processor_seconds() -> float:
    """Processor time of this process, and of those that it started and that have ended."""
    found = [resource.getrusage(who) for who in _ALL]
    return sum(usage.ru_utime + usage.ru_stime for usage in found)


if __name__ == "__main__":
    asked = HostJob(**json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
    Path(sys.argv[2]).write_text(json.dumps(run_host_turn(asked)), encoding="utf-8")
