"""Measures what needs a GPU, in a few minutes: `python -m scripts.benchmark.gpu_check`.

For each model family: the golden set in every precision of the device, a build with limited memory, the speed and codes
of the precisions with models of the published sizes, and whole builds to arrow and npy. Prints a table and JSON. A step
that fails is a fault, and the others continue; steps without time left are reported.
"""

import contextlib
import json
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer

from hfprep.models.precision import candidates
from hfprep.pipeline.building import build
from hfprep.pipeline.config import PLAIN, BuildConfig
from hfprep.pipeline.devices import choose_device
from hfprep.pipeline.engines.choice import Shared
from hfprep.pipeline.summary import Summary
from hfprep.recipes.registry import recipe
from scripts.benchmark.config import RECIPES, BenchConfig

GOLDEN = dict(zip(RECIPES, ("golden-small", "golden25-small"), strict=True))
TESTS = Path(__file__).resolve().parents[2] / "tests"
SAME_CODES = 0.998  # fraction of codes equal to float32's, for the precisions that guarantee it
PROMISING = (PLAIN, "exact")
LATENTS_ERROR = 1e-3
MEMORY_SHARE = 0.6  # fraction of a build's memory with which it must run out of memory
END_FORMATS = ("arrow", "npy")
SECONDS = (2.0, 14.0)

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@dataclass
class Check:
    """The settings and results of the measurements."""

    device: torch.device
    folder: Path
    published: bool
    clips: int
    end_clips: int
    until: float
    found: dict[str, Any] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)

    @property
    def precisions(self) -> list[str]:
        return [PLAIN, *candidates(self.device)]

    @contextlib.contextmanager
    def step(self, name: str, family: str) -> Iterator[dict[str, Any]]:
        """Yield the figures of a step; exceptions become faults."""
        figures = self.found.setdefault(family, {}).setdefault(name, {})
        print(f"{family}: {name}", file=sys.stderr, flush=True)
        started = time.monotonic()
        try:
            yield figures
        except Exception as error:  # noqa: BLE001 - the other steps must run anyway
            self.faults.append(f"{family}, {name}: {type(error).__name__}: {error}")
        figures["seconds"] = time.monotonic() - started

    def build(self, **options: Any) -> Callable[[Shared], Summary]:
        """A build on the device, as a function of shared workers."""
        config = BuildConfig(**{"device": str(self.device), **options})
        return lambda shared: build(config, shared=shared)


def golden(check: Check, family: str, figures: dict[str, Any]) -> None:
    """Codes and latents of the golden set in every precision."""
    folder = TESTS / GOLDEN[family]
    for precision in check.precisions:
        output = check.folder / f"golden-{family}-{precision}"
        with Shared() as shared:
            summary = check.build(
                manifest=folder / "manifest.jsonl",
                output_dir=output,
                models=folder / "checkpoints",
                precision=precision,
            )(shared)
        same, codes, error = _held_against(folder / "expected", output, family)
        figures[precision] = {"samples": summary.accepted, "codes": codes, "same_codes": same / codes, "error": error}
        lines = len((folder / "manifest.jsonl").read_bytes().splitlines())
        if summary.accepted != lines:
            check.faults.append(f"{family}, golden, {precision}: {summary.accepted} of {lines} samples")
        if precision in PROMISING and (same < SAME_CODES * codes or error > LATENTS_ERROR):
            check.faults.append(f"{family}, golden, {precision}: {same} of {codes} codes, latents off by {error:.1e}")


def _held_against(expected: Path, output: Path, family: str) -> tuple[int, int, float]:
    """The number of equal codes, the number of codes, and the largest relative error of the other columns."""
    same, codes, error = 0, 0, 0.0
    schema = recipe(family).published
    for path in sorted((output / "codes").rglob("*.npy")):
        sample_id = path.relative_to(output / "codes").as_posix().removesuffix(".npy")
        with np.load(expected / f"{sample_id}.npz") as wanted:
            for column in schema.columns_of(schema.audio_groups):
                found = np.load(output / column.name / f"{sample_id}.npy")
                if column.kind == "codes":
                    same += int((found == wanted[column.name]).sum())
                    codes += found.size
                else:
                    value = wanted[column.name].reshape(found.shape).astype(np.float64)
                    error = max(error, float(np.linalg.norm(found - value) / np.linalg.norm(value)))
    return same, codes, error


def out_of_memory(check: Check, family: str, figures: dict[str, Any]) -> None:
    """A build with a fraction of the memory that it needs: it splits batches and loses nothing."""
    if check.device.type != "cuda":
        figures["left_out"] = "only a GPU's memory can be limited"
        return
    folder = TESTS / GOLDEN[family]
    peak = 0
    for name in ("whole", "limited"):
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(check.device)
        if name == "limited":
            total = torch.cuda.get_device_properties(check.device).total_memory
            torch.cuda.set_per_process_memory_fraction(MEMORY_SHARE * peak / total, check.device)
        try:
            with Shared() as shared:
                summary = check.build(
                    manifest=folder / "manifest.jsonl",
                    output_dir=check.folder / f"memory-{family}-{name}",
                    models=folder / "checkpoints",
                    engine="inline",
                    batch_size=64,
                )(shared)
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0, check.device)
        peak = torch.cuda.max_memory_reserved(check.device)
        figures[name] = {"samples": summary.accepted, "events": summary.out_of_memory_events, "bytes": peak}
    if figures["limited"]["samples"] != figures["whole"]["samples"] or not figures["limited"]["events"]:
        check.faults.append(f"{family}, out of memory: {figures}")


def models(check: Check, family: str, figures: dict[str, Any]) -> None:
    """The models' speed and codes in every precision, at the published sizes."""
    from scripts.benchmark.comparing import compare

    config = BenchConfig(
        recipe=family,
        folder=check.folder,
        quick=not check.published,
        clips=check.clips,
        min_seconds=SECONDS[0],
        max_seconds=SECONDS[1],
        baseline_batch_sizes="",
        precision=",".join(check.precisions),
        device=str(check.device),
    )
    found = compare(config, lambda line: print(line, file=sys.stderr, flush=True))
    figures["matrix_rate"] = found["matrix_rate"]
    for turn in found["turns"]:
        names = ("model_seconds", "model_share_of_peak", "times_real_time", "padding_share", "codes_as_in_fp32")
        own = {name: turn.get(name) for name in names}
        figures[turn["precision"]] = own | {"microseconds_a_frame": 1e6 * turn["model_seconds"] / turn["frames"]}
        if turn["samples"] != found["needs"]["samples"]:
            check.faults.append(f"{family}, models, {turn['precision']}: {turn['samples']} samples")


def end_to_end(check: Check, family: str, figures: dict[str, Any]) -> None:
    """Whole builds, one after another with the same workers, in the fastest precision with float32's codes."""
    from scripts.benchmark.families import FAMILIES
    from scripts.benchmark.host import make_manifest

    size = "published" if check.published else "small"
    folder = FAMILIES[family].make_models(check.folder / f"{family}-{size}", size=size)
    manifest, seconds = make_manifest(check.folder / "end", check.end_clips, SECONDS)
    precision = "exact" if "exact" in check.precisions else PLAIN
    with Shared() as shared:
        for name in END_FORMATS:
            summary = check.build(
                manifest=manifest,
                output_dir=check.folder / f"end-{family}-{name}",
                models=folder,
                format=name,
                precision=precision,
            )(shared)
            elapsed = summary.elapsed_seconds
            figures[name] = {
                "precision": precision,
                "clips": summary.accepted,
                "wall_seconds": elapsed,
                "clips_a_second": summary.accepted / elapsed,
                "times_real_time": seconds / elapsed,
            }
            if summary.accepted != check.end_clips:
                check.faults.append(f"{family}, end to end, {name}: {summary.accepted} of {check.end_clips} clips")


STEPS = {"golden": golden, "out of memory": out_of_memory, "models": models, "end to end": end_to_end}


@app.command()
def main(
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    folder: Annotated[Path, typer.Option(help="Working folder; new, or with the models of an earlier run.")] = Path(
        "gpu-check"
    ),
    small: Annotated[bool, typer.Option("--small", help="Small models and few clips, to check the steps.")] = False,
    clips: Annotated[int, typer.Option(help="Clips for the models' speed.")] = 400,
    end_clips: Annotated[int, typer.Option(help="Clips for the whole builds.")] = 3000,
    minutes: Annotated[float, typer.Option(help="No step starts after this many minutes.")] = 6.5,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the JSON to this file, too.")] = None,
) -> None:
    """Measure precisions, memory and speed on a GPU; the exit status is 1 if something is wrong."""
    started = time.monotonic()
    place = choose_device(device)
    folder.mkdir(parents=True, exist_ok=True)
    check = Check(
        device=place,
        folder=folder.absolute(),
        published=not small,
        clips=clips,
        end_clips=end_clips,
        until=started + 60 * minutes,
    )
    for name, run in STEPS.items():
        for family in RECIPES:
            if time.monotonic() > check.until:
                check.faults.append(f"{family}, {name}: no time was left; --minutes {minutes:g}")
                continue
            with check.step(name, family) as figures:
                run(check, family, figures)
    result = {
        "device": torch.cuda.get_device_name(place) if place.type == "cuda" else platform.processor() or "cpu",
        "date": time.strftime("%Y-%m-%d"),
        "torch": torch.__version__,
        "commit": _commit(),
        "recipes": check.found,
        "faults": check.faults,
        "seconds": time.monotonic() - started,
    }
    _show(result)
    print(json.dumps(result))
    if json_file is not None:
        json_file.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    raise typer.Exit(1 if check.faults else 0)


def _commit() -> str | None:
    """The checkout's commit; None if it is not a clone."""
    command = ["git", "-C", str(TESTS.parent), "rev-parse", "--short", "HEAD"]
    with contextlib.suppress(OSError):
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or None
    return None


def _show(result: dict[str, Any]) -> None:
    """Print the table and the faults."""
    from rich.console import Console
    from rich.table import Table

    table = Table("recipe", "step", "of", "figures", title=f"{result['device']}, torch {result['torch']}")
    for family, steps in result["recipes"].items():
        for step, figures in steps.items():
            for name, values in figures.items():
                shown = values
                if isinstance(values, dict):
                    shown = ", ".join(f"{key} {_short(value)}" for key, value in values.items() if value is not None)
                table.add_row(family, step, name, _short(shown))
    Console(width=None if sys.stdout.isatty() else 160, stderr=True).print(table)
    for fault in result["faults"]:
        print(f"gpu-check: {fault}", file=sys.stderr)


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    app()
