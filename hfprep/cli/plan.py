"""`build --dry-run`: what a build would do, as a table."""

from typing import TYPE_CHECKING

from rich.table import Table

from hfprep.cli.output import PlainTable, show
from hfprep.io.object_storage import url_of
from hfprep.io.words import count, size
from hfprep.pipeline.config import BuildConfig

if TYPE_CHECKING:  # it loads torch
    from hfprep.pipeline.dry_run import Preview

SHOWN_PROCESSES = 16


def show_plan(config: BuildConfig) -> int:
    """Print what a build with this config would do; returns the exit status."""
    from hfprep.pipeline.dry_run import preview

    found = preview(config)
    show(plan_table(found))
    return 0


def plan_table(found: "Preview") -> Table:
    """The plan as a table."""
    table = PlainTable(f"hfprep build --dry-run: {url_of(found.output_dir) or found.output_dir}", show_header=False)
    table.add_column("what")
    table.add_column("count", justify="right")
    table.add_column("details")
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
