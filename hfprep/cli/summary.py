"""A build's summary as a table."""

from rich.table import Table

from hfprep.cli.output import PlainTable
from hfprep.pipeline.summary import Summary


def summary_table(summary: Summary) -> Table:
    """Counts of a build: lines read, outcomes, speed."""
    tally = summary.tally
    table = PlainTable(f"hfprep build: {summary.url or summary.output_dir}", show_header=False)
    table.add_column("what")
    table.add_column("count", justify="right")
    table.add_column("details")
    table.add_row("lines read", f"{summary.lines_read:,}", "")
    table.add_row(
        "accepted", f"{summary.accepted:,}", f"{summary.train:,} train, {summary.val:,} val, {summary.hours:.3f} h"
    )
    table.add_row("  reused", f"{summary.reused:,}", _reused(summary))
    rate = tally.audio_seconds / summary.elapsed_seconds
    padding = 1 - tally.frames / tally.padded_frames if tally.padded_frames else 0.0
    speed = f"{summary.elapsed_seconds:.1f} s in all, {rate:.1f}x real time, padding {padding:.1%}"
    table.add_row("  computed", f"{tally.done:,}", speed)
    table.add_row("rejected", f"{sum(summary.rejected.values()):,}", "see rejected.jsonl" if summary.rejected else "")
    for reason, count in summary.rejected.items():
        table.add_row(f"  {reason}", f"{count:,}", "")
    if summary.capped:
        table.add_row("capped", f"{summary.capped:,}", "by --max-samples")
    if summary.pending:
        table.add_row("left to do", f"{summary.pending:,}", "")
    for what, count in summary.overlong.items():
        if count:
            beyond = "beyond the model's positions; --drop-overlong rejects them"
            table.add_row(f"over-long {what}", f"{count:,}", beyond)
    if summary.out_of_memory_events:
        split = "batches that were split; no sample was lost"
        table.add_row("out of memory", f"{summary.out_of_memory_events:,}", split)
    return table


def _reused(summary: Summary) -> str:
    parts = []
    if summary.adopted:
        parts.append(f"{summary.adopted} adopted from artifacts on disk")
    if summary.repaired:
        parts.append(f"{summary.repaired} recomputed (codes of a wrong length)")
    if summary.changed:
        parts.append(f"{summary.changed} recomputed (changed)")
    return ", ".join(parts)
