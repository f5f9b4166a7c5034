"""`bench`: compares hfprep with a straightforward pipeline, on random models of the published sizes."""

import json
import sys
from collections.abc import Callable
from typing import Any

import typer

from scripts.benchmark.config import BenchConfig

KEY_FIGURES = (
    "speedup", "speedup_without_startup", "speedup_in_processor_time", "model_speedup", "model_share_of_peak",
    "memory_ratio", "private_memory_ratio", "startup_seconds", "padding_share", "times_real_time",
)  # fmt: skip


def bench(context: typer.Context, **options: Any) -> None:
    """Measure hfprep against a straightforward pipeline, on RANDOM models of the published sizes."""
    from scripts.benchmark.comparing import compare
    from scripts.benchmark.host import compare_host

    del context
    config = BenchConfig(**options)
    found = (compare_host if config.host else compare)(config, lambda line: print(line, file=sys.stderr, flush=True))
    if config.json is not None:
        config.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    if config.host:
        _show_host(found)
        return
    _show(found)
    wrong = count_faults(found)
    for line in wrong:
        print(f"bench: {line}", file=sys.stderr)
    raise typer.Exit(1 if wrong else 0)


def count_faults(found: dict[str, Any]) -> list[str]:
    """Turns whose counts differ from those of the clips, one line each."""
    return [
        f"{turn['kind']} at batch size {turn['batch_size']}: {turn[name]} {name}, not {found['needs'][name]}"
        for turn in found["turns"]
        for name in ("samples", "frames")
        if turn[name] != found["needs"][name]
    ]


def _show_host(found: dict[str, Any]) -> None:
    """Print the figures of both sides of a host comparison."""
    from rich.console import Console
    from rich.table import Table

    from scripts.benchmark.host import TURN_FIGURES

    how = f"{found['format']}, fed as on a GPU" if found["as_for_gpu"] else found["format"]
    title = f"{found['recipe']}, {how}, {found['clips']} clips, {found['audio_seconds']:.0f} s of audio"
    table = Table("", title=title)
    for name in ("plain", "hfprep"):
        table.add_column(name, justify="right")
    for name in TURN_FIGURES:
        table.add_row(name, *(f"{found[key]:.2f}" for key in (f"plain_{name}", name)))
    Console(width=None if sys.stdout.isatty() else 110).print(table)
    print(f"ratio: {found['ratio']:.2f} in processor time, {found['wall_ratio']:.2f} in wall time")


def _show(found: dict[str, Any]) -> None:
    """Print the tables of stages and turns."""
    from rich.console import Console

    console = Console(width=None if sys.stdout.isatty() else 110)
    console.print(_stage_table(found))
    console.print(_turn_table(found))
    console.print(_model_table(found))
    needs = found["needs"]
    print(f"{needs['samples']} clips, {needs['audio_seconds']:.1f} s, {needs['frames']} frames, "
          f"{sum(needs['flops'].values()) / 1e12:.3f} TFLOP needed; matrix products: "
          f"{found['matrix_rate'] / 1e9:.0f} GFLOP/s")  # fmt: skip
    for name in KEY_FIGURES:
        if found.get(name) is not None:
            print(f"{name}: {found[name]:.3f}")


def _stage_table(found: dict[str, Any]) -> Any:
    from rich.table import Table

    ours, theirs = found["hfprep"], found["baseline"]
    table = Table(
        title="Stages (in hfprep text, decode, writing and IndexTTS-2's features run in threads beside the models)"
    )
    for name in ("stage", "TFLOP needed", "baseline s", "of rate", "hfprep s", "of rate", "ratio"):
        table.add_column(name, justify="left" if name == "stage" else "right")
    needs = found["needs"]["flops"]
    for stage in ("text", "decode", "features", *needs, "writing"):
        flops = needs.get(stage)
        before = theirs["stages"].get(stage) if theirs else None
        after = ours["stages"].get(stage, 0.0)
        table.add_row(
            stage,
            f"{flops / 1e12:.3f}" if flops else "",
            _unless_none("{:.2f}", before),
            f"{found['baseline_share_of_peak'][stage]:.0%}" if flops and theirs else "",
            f"{after:.2f}",
            f"{found['stage_share_of_peak'][stage]:.0%}" if flops else "",
            f"{before / after:.2f}" if before is not None and after else "",
        )
    return table


def _turn_table(found: dict[str, Any]) -> Any:
    return _table_of_turns("Turns", found["turns"], {
        "seconds": lambda turn: f"{turn['seconds']:.1f}",
        "start-up s": lambda turn: f"{turn['startup_seconds']:.1f}",
        "padding": lambda turn: f"{turn['padding_share']:.1%}",
        "peak memory GB": lambda turn: f"{turn['peak_memory_bytes'] / 1e9:.2f}",
        "private GB": lambda turn: _unless_none("{:.2f}", turn["peak_private_memory_bytes"], 1e9),
        "matrix GFLOP/s": lambda turn: f"{max(turn['matrix_rate'].values()) / 1e9:.0f}",
    })  # fmt: skip


def _model_table(found: dict[str, Any]) -> Any:
    title = "Model stages (times real time: all stages, without start-up)"
    return _table_of_turns(title, found["turns"], {
        "models s": lambda turn: f"{turn['model_seconds']:.2f}",
        "of rate": lambda turn: f"{turn['model_share_of_peak']:.0%}",
        "ratio": lambda turn: _unless_none("{:.2f}", turn["model_speedup"]),
        "times real time": lambda turn: f"{turn['times_real_time']:.1f}",
        "codes as in fp32": lambda turn: _unless_none("{:.2%}", turn.get("codes_as_in_fp32")),
    })  # fmt: skip


def _table_of_turns(
    title: str, turns: list[dict[str, Any]], columns: dict[str, Callable[[dict[str, Any]], str]]
) -> Any:
    from rich.table import Table

    table = Table("turn", "precision", title=title)
    for name in ("batch", *columns):
        table.add_column(name, justify="right")
    for turn in turns:
        batch = str(turn["batch_size"] or "auto")
        table.add_row(turn["kind"], turn["precision"], batch, *(cell(turn) for cell in columns.values()))
    return table


def _unless_none(form: str, value: float | None, unit: float = 1.0) -> str:
    return "" if value is None else form.format(value / unit)
