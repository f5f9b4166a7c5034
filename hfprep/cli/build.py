"""`python -m hfprep build`: builds one data set or several; prints the plan (--dry-run) or what was done, as tables.

The flags, their defaults and their help come from `BuildConfig`.
"""

import contextlib
import dataclasses
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from hfprep.cli.options import NO_DEFAULT, RunOptions, options_of, read_options
from hfprep.cli.options import write_options as keep_options
from hfprep.cli.output import PlainTable, cell, say, show
from hfprep.io.object_storage import url_of
from hfprep.io.words import count, duration, size
from hfprep.pipeline.config import BuildConfig, flag
from hfprep.pipeline.data_sets import ManyOptions, config_of_each

if TYPE_CHECKING:  # they load torch
    from hfprep.pipeline.building_many import DataSetResult, ManySummary
    from hfprep.pipeline.dry_run import Preview
    from hfprep.pipeline.engines.choice import Shared
    from hfprep.pipeline.summary import Summary

# Default paths without --models, as in the older scripts.
USUAL_FILES = {"config": Path("checkpoints/config.yaml"), "gpt_checkpoint": Path("checkpoints/gpt.pth")}
SHOWN_PROCESSES = 16


@options_of(BuildConfig, ManyOptions, RunOptions)
def build(context: typer.Context, options: Path | None, write_options: Path | None, **values: Any) -> None:
    """Compute the features of a manifest, or of several; run the same command again to continue."""
    if options is not None:
        values = read_options(options, values, context)
    dry_run = values.pop("dry_run")
    if write_options is not None:
        defaults = {item.name: item.default for kind in (BuildConfig, ManyOptions) for item in dataclasses.fields(kind)}
        keep_options(write_options, values, defaults)
    dataset, output_root = values.pop("dataset"), Path(values.pop("output_root"))
    log_to_stderr(as_json=values["log_json"])
    values |= _usual_files(values)
    if dataset:
        configs = config_of_each(dataset, output_root, **values)
    else:
        if output_root != Path():
            raise typer.BadParameter(
                "it is only for --dataset; with --manifest, use --output-dir", param_hint="--output-root"
            )
        for name in NO_DEFAULT:
            if values[name] is None:
                raise typer.BadParameter(
                    "it is missing (or use --dataset, for several data sets)", param_hint=flag(name)
                )
        configs = [BuildConfig(**values)]
    if dry_run:
        for config in configs:
            show_plan(config)
        raise typer.Exit(0)
    raise typer.Exit(run_many(configs) if dataset else run_build(configs[0]))


def log_to_stderr(*, as_json: bool) -> None:
    """Show the log of a build."""
    from hfprep.pipeline.logs import log_handler

    logging.basicConfig(level=logging.WARNING, handlers=[log_handler(as_json=as_json)])
    logging.getLogger("hfprep").setLevel(logging.INFO)


def _usual_files(options: dict[str, Any]) -> dict[str, Path]:
    """The config and checkpoint in checkpoints/, if they exist and no others are given."""
    if options["models"] is not None:
        return {}
    found = {name: path for name, path in USUAL_FILES.items() if options[name] is None and path.is_file()}
    for name, path in found.items():
        logging.getLogger("hfprep").info("%s is not given: using %s", flag(name), path)
    return found


def run_build(config: BuildConfig) -> int:
    """Run a build and print its summary; returns the exit status."""
    with shared_workers(config.engine) as shared:
        from hfprep.pipeline.building import build as build_features

        summary = build_features(config, shared=shared)
    show(_summary_table(summary))
    rejected = summary.output_dir / "rejected.jsonl"
    if summary.interrupted_by is not None:
        say(f"Interrupted with {summary.pending} lines left. Run the same command again to continue.")
        return 128 + summary.interrupted_by
    if _accepted_none(summary, config):
        say(f"No sample was accepted; see {rejected}.", error=True)
        return 1
    if config.strict and summary.rejected:
        say(f"--strict: lines were rejected; see {rejected}.", error=True)
        return 1
    return 0


def run_many(configs: Sequence[BuildConfig]) -> int:
    """Build the data sets and print one summary; returns the exit status."""
    with shared_workers(configs[0].engine) as shared:
        from hfprep.pipeline.building_many import build_many

        found = build_many(configs, shared=shared)
    show(_many_table(found))
    for item in found.data_sets:
        if item.error is not None:
            say(f"{item.config.output_dir} was not built: {item.error}", error=True)
        elif item.summary is not None and item.summary.rejected:
            say(f"Rejected lines: {item.summary.output_dir / 'rejected.jsonl'}")
    if found.interrupted_by is not None:
        say("Interrupted. Run the same command again to continue.")
        return 128 + found.interrupted_by
    return int(any(_failed(item) for item in found.data_sets))


def _failed(item: "DataSetResult") -> bool:
    """Whether a build of this data set alone would have ended with status 1."""
    if item.summary is None:
        return True
    if _accepted_none(item.summary, item.config):
        say(f"{item.summary.output_dir}: no sample was accepted.", error=True)
        return True
    return item.config.strict and bool(item.summary.rejected)


@contextlib.contextmanager
def shared_workers(engine: str) -> "Iterator[Shared]":
    """Workers for builds, whose imports run in parallel to those of this process."""
    from hfprep.pipeline.engines.pool import WorkerPool

    with WorkerPool() as pool:
        if engine == "local":
            pool.prepare(1)
        from hfprep.pipeline.engines.choice import Shared

        yield Shared(pool=pool)


def _accepted_none(summary: "Summary", config: BuildConfig) -> bool:
    """Whether a build has no sample; a part of a manifest may have no line."""
    return not summary.accepted and bool(summary.lines_read or config.part is None)


def show_plan(config: BuildConfig) -> None:
    """Print what a build with this config would do."""
    from hfprep.pipeline.dry_run import preview

    show(_plan_table(preview(config)))


def _plan_table(found: "Preview") -> PlainTable:
    table = _counts_table(f"hfprep build --dry-run: {url_of(found.output_dir) or found.output_dir}")
    table.add_row("lines read", f"{found.lines_read:,}", f"{found.capped:,} capped" if found.capped else "")
    reasons = ", ".join(f"{reason} {number:,}" for reason, number in found.rejected.items())
    table.add_row("already rejected", f"{sum(found.rejected.values()):,}", reasons)
    table.add_row("finished", f"{found.reused:,}", "")
    unreadable = f"; {found.unreadable:,} whose header cannot be read" if found.unreadable else ""
    table.add_row("to compute", f"{found.pending:,}", f"{found.hours:.3f} h{unreadable}")
    table.add_row("batches", f"{found.batches:,}", f"padding {found.padding:.1%}")
    table.add_row("new features", size(found.num_bytes), f"{size(found.disk_bytes)} on disk in blocks of 4 KiB")
    for share in found.shares[:SHOWN_PROCESSES]:
        what = f"{count(share.shards, 'work unit')}, {count(share.samples, 'sample')}, {share.hours:.3f} h"
        table.add_row(f"  process {share.process}", share.device, what)
    if len(found.shares) > SHOWN_PROCESSES:
        table.add_row("", "", f"and {len(found.shares) - SHOWN_PROCESSES} more processes with the same amount each")
    return table


def _summary_table(summary: "Summary") -> PlainTable:
    """Counts of a build: lines read, outcomes, speed."""
    tally = summary.tally
    table = _counts_table(f"hfprep build: {summary.url or summary.output_dir}")
    table.add_row("lines read", f"{summary.lines_read:,}", "")
    splits = f"{summary.train:,} train, {summary.val:,} val, {summary.hours:.3f} h"
    table.add_row("accepted", f"{summary.accepted:,}", splits)
    notes = {
        "adopted from artifacts on disk": summary.adopted,
        "recomputed (codes of a wrong length)": summary.repaired,
        "recomputed (changed)": summary.changed,
    }
    table.add_row("  reused", f"{summary.reused:,}", ", ".join(f"{n} {what}" for what, n in notes.items() if n))
    rate = tally.audio_seconds / summary.elapsed_seconds
    padding = 1 - tally.frames / tally.padded_frames if tally.padded_frames else 0.0
    speed = f"{summary.elapsed_seconds:.1f} s in all, {rate:.1f}x real time, padding {padding:.1%}"
    table.add_row("  computed", f"{tally.done:,}", speed)
    table.add_row("rejected", f"{sum(summary.rejected.values()):,}", "see rejected.jsonl" if summary.rejected else "")
    for reason, number in summary.rejected.items():
        table.add_row(f"  {reason}", f"{number:,}", "")
    over = {f"over-long {what}": number for what, number in summary.overlong.items()}
    beyond = "beyond the model's positions; --drop-overlong rejects them"
    optional = [
        ("capped", summary.capped, "by --max-samples"),
        ("left to do", summary.pending, ""),
        *((what, number, beyond) for what, number in over.items()),
        ("out of memory", summary.out_of_memory_events, "batches that were split; no sample was lost"),
    ]
    for what, number, details in optional:
        if number:
            table.add_row(what, f"{number:,}", details)
    return table


def _counts_table(title: str) -> PlainTable:
    return PlainTable(title, "what", "count", "details", numbers={"count"}, show_header=False)


def _many_table(found: "ManySummary") -> PlainTable:
    """A table with a row per data set, and the total."""
    numbers = ("lines", "accepted", "rejected", "hours", "time")
    table = PlainTable(f"hfprep build: {len(found.data_sets)} data sets", "data set", *numbers, numbers=numbers)
    for item in found.data_sets:
        summary, config = item.summary, item.config
        name = f"{config.output_dir} ({config.language})" if config.language else str(config.output_dir)
        if summary is None:
            table.add_row(cell(name, "not started" if item.error is None else "failed"))
            continue
        done = {"train": summary.train, "val": summary.val, "computed": summary.tally.done, "reused": summary.reused}
        done |= {"capped": summary.capped, "left to do": summary.pending}
        details = ", ".join(f"{number:,} {what}" for what, number in done.items() if number) or "nothing"
        table.add_row(cell(name, details), *_totals([summary], summary.elapsed_seconds))
    table.add_section()
    table.add_row("total", *_totals(found.summaries, found.elapsed_seconds))
    return table


def _totals(summaries: "Sequence[Summary]", elapsed_seconds: float) -> list[str]:
    lines = sum(summary.lines_read for summary in summaries)
    accepted = sum(summary.accepted for summary in summaries)
    rejected = sum(sum(summary.rejected.values()) for summary in summaries)
    hours = sum(summary.hours for summary in summaries)
    return [f"{lines:,}", f"{accepted:,}", f"{rejected:,}", f"{hours:.3f}", duration(elapsed_seconds)]
