"""`build --dataset ... --dataset ...`: several data sets in one run, one table, one exit status."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.table import Table

from hfprep.cli.output import PlainTable, say, show
from hfprep.pipeline.config import BuildConfig

if TYPE_CHECKING:  # it loads torch
    from hfprep.pipeline.building_many import DataSetResult, ManySummary

COUNTS = ("lines read", "accepted", "train", "val", "reused", "computed", "rejected", "capped", "left to do")


def run_many(configs: Sequence[BuildConfig]) -> int:
    """Build the data sets, print one summary, and give the exit status."""
    from hfprep.pipeline.engines.pool import WorkerPool

    with WorkerPool() as pool:
        if configs[0].engine == "local":
            pool.prepare(1)  # its imports run beside those of this process
        from hfprep.pipeline.building import Shared
        from hfprep.pipeline.building_many import build_many
        from hfprep.pipeline.engines.choice import Workers

        found = build_many(configs, shared=Shared(workers=Workers(pool)))
    show(many_table(found), 140)
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
    if not item.summary.accepted and (item.summary.lines_read or item.config.part is None):
        say(f"{item.summary.output_dir}: no sample was accepted.", error=True)
        return True
    return item.config.strict and bool(item.summary.rejected)


def many_table(found: "ManySummary") -> Table:
    """A row for each data set, and their sum."""
    table = PlainTable(f"hfprep build: {len(found.data_sets)} data sets")
    table.add_column("language")
    table.add_column("output", overflow="fold")
    for name in (*COUNTS, "hours", "seconds"):
        table.add_column(name, justify="right")
    totals, hours = [0] * len(COUNTS), 0.0
    for item in found.data_sets:
        summary, first = item.summary, (item.config.language or "", str(item.config.output_dir))
        if summary is None:
            table.add_row(*first, "not begun" if item.error is None else "failed")
            continue
        rejected = sum(summary.rejected.values())
        counts = [summary.lines_read, summary.accepted, summary.train, summary.val, summary.reused]
        counts += [summary.tally.done, rejected, summary.capped, summary.pending]
        totals, hours = [a + b for a, b in zip(totals, counts, strict=True)], hours + summary.hours
        table.add_row(*first, *map(str, counts), f"{summary.hours:.3f}", f"{summary.elapsed_seconds:.1f}")
    table.add_section()
    table.add_row("total", "", *map(str, totals), f"{hours:.3f}", f"{found.elapsed_seconds:.1f}")
    return table
