"""Warnings of a build: texts with a doubtful grammar, empty splits, changed pairs."""

import logging

from hfprep.formats.pair_files import renew_pairs
from hfprep.inputs.text.scripts import LANGUAGE_NAMES
from hfprep.pipeline.plan import PlanCounts
from hfprep.pipeline.summary import Summary
from hfprep.store.layout import NpyOutput

log = logging.getLogger(__name__)


def warn_of_doubtful(counts: PlanCounts) -> None:
    """Warn about texts whose grammar is chosen by their script."""
    if not counts.doubtful:
        return
    kinds = (
        f"{LANGUAGE_NAMES[item.language]} for {item.script}: {count}" for item, count in counts.doubtful.most_common()
    )
    log.warning(
        "%d of %d rows have no language, so their grammar is chosen by script (%s; the first is line %d). This is what "
        "the published front end does, but rarely intended: set the language, in the manifest or with --language",
        counts.doubtful.total(), counts.rows, ", ".join(kinds), counts.doubtful_line,
    )  # fmt: skip


def warn_of_empty_split(summary: Summary, val_ratio: float) -> None:
    """Warn if a split has no sample; trainers fail on an empty file."""
    if summary.accepted and not summary.val and val_ratio:
        log.warning(
            "the validation split is empty: too few samples (%d) for --val-ratio %g; use --val-count N",
            summary.accepted, val_ratio,
        )  # fmt: skip
    if summary.accepted and not summary.train:
        log.warning("the train split is empty: all %d samples are in validation (--val-ratio %g)",
                    summary.accepted, val_ratio)  # fmt: skip


def close_remarks(summary: Summary, val_ratio: float, output: NpyOutput, *, remote: bool) -> None:
    """Update pairs and log warnings when a build is complete."""
    warn_of_empty_split(summary, val_ratio)
    for line in [] if remote else renew_pairs(output.root):
        log.warning("pairs: %s", line)
