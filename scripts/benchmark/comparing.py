"""Compares hfprep with the baseline: makes models and clips, runs both in turns, and computes the figures.

Provides `compare`. Every turn is a separate process, so that turns share no loaded data or memory. Shares are relative
to the best matmul rate measured at the end of any turn. The codes of each precision are compared with hfprep's first
turn in float32, if any.
"""

import dataclasses
import json
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from hfprep.errors import HfprepError
from hfprep.models.input_features import num_input_frames
from hfprep.pipeline.config import PLAIN
from scripts.benchmark.config import BASELINE, BUILD, BenchConfig, Turn
from scripts.benchmark.corpus import make_corpus
from scripts.benchmark.families import FAMILIES, Needed
from scripts.benchmark.turn import Job

TARGET_RATE = 16_000
TAIL = 2000  # characters shown of a failed turn's output


def compare(config: BenchConfig, say: Callable[[str], None]) -> dict[str, Any]:
    """Run the comparison; `say` is called with progress messages. Returns the content for `--json`.

    Raises HfprepError, with the end of the turn's output, if a turn fails.
    """
    say("making models and clips")
    family, size = FAMILIES[config.recipe], "small" if config.quick else "published"
    models = family.make_models(config.folder / f"{config.recipe}-{size}", size=size)
    num_clips, seconds = config.corpus
    manifest = make_corpus(config.folder / "clips", num_clips=num_clips, seconds=seconds)
    results = []
    for number in range(config.rounds):
        for turn in config.turns():
            say(f"round {number + 1} of {config.rounds}: {turn}")
            results.append(_take_turn(config, turn, models, manifest))
    _compare_codes(results)
    return evaluate(config, results, needed(family.needed(models, size), manifest))


def needed(needed_of: Needed, manifest: Path) -> dict[str, Any]:
    """Totals of a manifest's clips: samples, frames, seconds of audio, FLOPs by model stage."""
    import soundfile

    rows = [json.loads(line) for line in manifest.read_text(encoding="utf-8").splitlines()]
    headers = [soundfile.info(manifest.parent / row["audio"]) for row in rows]
    lengths = [-(-header.frames * TARGET_RATE // header.samplerate) for header in headers]
    flops = [needed_of(length) for length in lengths]
    return {
        "samples": len(rows),
        "frames": sum(map(num_input_frames, lengths)),
        "audio_seconds": sum(header.duration for header in headers),
        "flops": {stage: sum(clip[stage].all for clip in flops) for stage in flops[0]},
    }


def _take_turn(config: BenchConfig, turn: Turn, models: Path, manifest: Path) -> dict[str, Any]:
    number = len(list(config.folder.glob("turn-*")))
    folder = config.folder / f"turn-{time.strftime('%Y%m%d-%H%M%S')}-{number:03d}"
    folder.mkdir()
    job = Job(
        **dataclasses.asdict(turn),
        recipe=config.recipe,
        models=str(models),
        manifest=str(manifest),
        output=str(folder / "output"),
        device=config.device,
        threads=config.threads,
        asked=time.time(),
    )
    return run_in_process("scripts.benchmark.turn", dataclasses.asdict(job), folder, str(turn))


def run_in_process(module: str, job: dict[str, Any], folder: Path, turn: str) -> dict[str, Any]:
    """Run a turn as `python -m MODULE JOB RESULT`, with files and log in `folder`; returns its result.

    Raises HfprepError, with the name `turn`, if it fails.
    """
    job_file, result_file, log_file = folder / "job.json", folder / "result.json", folder / "log.txt"
    result_file.unlink(missing_ok=True)
    job_file.write_text(json.dumps(job), encoding="utf-8")
    command = [sys.executable, "-m", module, str(job_file), str(result_file)]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    log_file.write_text(done.stdout + done.stderr, encoding="utf-8")
    if done.returncode or not result_file.is_file():
        raise HfprepError(
            f"the turn of {turn} failed with status {done.returncode}; its end (the rest is in {log_file}):\n"
            f"{(done.stdout + done.stderr)[-TAIL:]}"
        )
    result: dict[str, Any] = json.loads(result_file.read_text(encoding="utf-8"))
    return result


def _compare_codes(results: list[dict[str, Any]]) -> None:
    """Add to every turn of hfprep the fraction of codes equal to those of the first turn in float32."""
    ours = [result for result in results if result["kind"] == BUILD]
    plain = next((result for result in ours if result["precision"] == PLAIN), None)
    if plain is None:
        return
    expected = _codes(plain)
    for result in ours:
        codes = expected if result is plain else _codes(result)
        same = sum(int((codes[name] == expected[name]).sum()) for name in expected.keys() & codes.keys())
        result["codes_as_in_fp32"] = same / sum(map(len, expected.values()))


def _codes(result: dict[str, Any]) -> dict[str, np.ndarray]:
    return {path.stem: np.load(path) for path in (Path(result["output"]) / "codes").glob("*.npy")}


def evaluate(config: BenchConfig, turns: list[dict[str, Any]], needs: dict[str, Any]) -> dict[str, Any]:
    """The figures of a comparison from its turns and the clips' totals; the fastest turn of each kind counts."""
    rate = max(max(turn["matrix_rate"].values()) for turn in turns)  # on a GPU, the rate of bf16
    baseline = _fastest(turns, BASELINE)
    turns = [_with_figures(turn, baseline, needs, rate) for turn in turns]
    ours, theirs = _fastest(turns, BUILD), _fastest(turns, BASELINE)
    assert ours is not None  # a BenchConfig has at least one
    found = {
        "machine": {"processor": platform.processor() or platform.machine(), "threads": ours["threads"]},
        "config": {name: str(value) for name, value in dataclasses.asdict(config).items() if name != "folder"},
        "needs": needs,
        "matrix_rate": rate,
        "model_share_of_peak": ours["model_share_of_peak"],
        "stage_share_of_peak": ours["stage_share_of_peak"],
        "startup_seconds": ours["startup_seconds"],
        "padding_share": ours["padding_share"],
        "times_real_time": ours["times_real_time"],
        "hfprep": ours,
        "baseline": theirs,
        "turns": turns,
    }
    if theirs is not None:
        found |= {
            "speedup": theirs["seconds"] / ours["seconds"],
            "speedup_without_startup": _computing(theirs) / _computing(ours),
            "model_speedup": ours["model_speedup"],
            "speedup_in_processor_time": theirs["processor_seconds"] / ours["processor_seconds"],
            "memory_ratio": ours["peak_memory_bytes"] / theirs["peak_memory_bytes"],
            "private_memory_ratio": _ratio(ours["peak_private_memory_bytes"], theirs["peak_private_memory_bytes"]),
            "baseline_share_of_peak": theirs["stage_share_of_peak"],
            "baseline_padding_share": theirs["padding_share"],
        }
    return found


def _fastest(turns: list[dict[str, Any]], kind: str) -> dict[str, Any] | None:
    return min((turn for turn in turns if turn["kind"] == kind), key=lambda turn: turn["seconds"], default=None)


def _with_figures(
    turn: dict[str, Any], baseline: dict[str, Any] | None, needs: dict[str, Any], rate: float
) -> dict[str, Any]:
    """A turn with derived figures, some relative to the fastest baseline."""
    shares = _shares(turn, needs, rate)
    return turn | {
        "model_seconds": _model_seconds(turn, needs),
        "model_share_of_peak": shares["model"],
        "stage_share_of_peak": shares,
        "model_speedup": None if baseline is None else _model_seconds(baseline, needs) / _model_seconds(turn, needs),
        "padding_share": 1 - turn["frames"] / turn["padded_frames"],
        "times_real_time": needs["audio_seconds"] / _computing(turn),
    }


def _shares(turn: dict[str, Any], needs: dict[str, Any], rate: float) -> dict[str, float]:
    """Needed operations per second as a fraction of the matmul rate, by model stage and in total."""
    shares = {stage: flops / turn["stages"][stage] / rate for stage, flops in needs["flops"].items()}
    return shares | {"model": sum(needs["flops"].values()) / _model_seconds(turn, needs) / rate}


def _ratio(ours: int | None, theirs: int | None) -> float | None:
    return ours / theirs if ours and theirs else None


def _model_seconds(turn: dict[str, Any], needs: dict[str, Any]) -> float:
    seconds: float = sum(turn["stages"][stage] for stage in needs["flops"])
    return seconds


def _computing(turn: dict[str, Any]) -> float:
    seconds: float = turn["seconds"] - turn["startup_seconds"]
    return seconds
