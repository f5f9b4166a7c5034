"""`build --dataset ... --dataset ...`: builds several data sets in one run, with one table and exit status."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from rich.table import Table

from hfprep.cli.output import PlainTable, cell, say, show
from hfprep.io.words import duration
from hfprep.pipeline.config import BuildConfig

if TYPE_CHECKING:  # it loads torch
    from hfprep.pipeline.building_many import DataSetResult, ManySummary
    from hfprep.pipeline.engines.choice import Shared
    from hfprep.pipeline.summary import Summary


def run_many(configs: Sequence[BuildConfig]) -> int:
    """Build the data sets and print one summary; returns the exit status."""
    with shared_workers(configs[0].engine) as shared:
        from hfprep.pipeline.building_many import build_many

        found = build_many(configs, shared=shared)
    show(many_table(found))
    for item in found.data_sets:
        if item.error is not None:
            say(f"{item.config.output_dir} was not built: {item.error}", error=True)
        elif item.summary is not None and item.summary.rejected:
            say(f"Rejected lines: {item.summary.output_dir / 'rejected.jsonl'}")
    if found.interrupted_by is not None:
        say("Interrupted. Run the same command again to continue.")
        return 128 + found.interrupted_by
    return int(any(_failed(item) for item in found.data_sets))


@contextlib.contextmanager
def shared_workers(engine: str) -> "Iterator[Shared]":
    """Workers for builds, whose imports run in parallel to those of this process."""
    from hfprep.pipeline.engines.pool import WorkerPool

    with WorkerPool() as pool:
        if engine == "local":
            pool.prepare(1)
        from hfprep.pipeline.engines.choice import Shared

        yield Shared(pool=pool)


def _failed(item: "DataSetResult") -> bool:
    """Whether a build of this data set alone would have ended with status 1."""
    if item.summary is None:
        return True
    if not item.summary.accepted and (item.summary.lines_read or item.config.part is None):
        say(f"{item.summary.output_dir}: no sample was accepted.", error=True)
        return True
    return item.config.strict and bool(item.summary.rejected)


def many_table(found: "ManySummary") -> Table:
    """A table with a row per data set, and the total."""
    table = PlainTable(f"hfprep build: {len(found.data_sets)} data sets")
    table.add_column("data set")
    for name in ("lines", "accepted", "rejected", "hours", "time"):
        table.add_column(name, justify="right")
    for item in found.data_sets:
        summary, config = item.summary, item.config
        name = f"{config.output_dir} ({config.language})" if config.language else str(config.output_dir)
        if summary is None:
            table.add_row(cell(name, "not started" if item.error is None else "failed"))
        else:
            table.add_row(cell(name, _details(summary)), *_counts([summary], summary.elapsed_seconds))
    table.add_section()
    table.add_row("total", *_counts(found.summaries, found.elapsed_seconds))
    return table


def _counts(summaries: "Sequence[Summary]", elapsed_seconds: float) -> list[str]:
    lines = sum(summary.lines_read for summary in summaries)
    accepted = sum(summary.accepted for summary in summaries)
    rejected = sum(sum(summary.rejected.values()) for summary in summaries)
    hours = sum(summary.hours for summary in summaries)
    return [f"{lines:,}", f"{accepted:,}", f"{rejected:,}", f"{hours:.3f}", duration(elapsed_seconds)]


def _details(summary: "Summary") -> str:
    counts = {"train": summary.train, "val": summary.val, "computed": summary.tally.done, "reused": summary.reused}
    counts |= {"capped": summary.capped, "left to do": summary.pending}
    return ", ".join(f"{number:,} {name}" for name, number in counts.items() if number) or "nothing"
