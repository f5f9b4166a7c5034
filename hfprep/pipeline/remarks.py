"""What a build should say of its own accord: texts with a grammar nobody wants, empty splits, pairs that changed."""

import logging

from hfprep.formats.pair_files import renew_pairs
from hfprep.inputs.text.scripts import LANGUAGE_NAMES
from hfprep.pipeline.plan import PlanCounts
from hfprep.pipeline.summary import Summary
from hfprep.store.layout import NpyOutput

log = logging.getLogger(__name__)


def warn_of_doubtful(counts: PlanCounts) -> None:
    """Warn about texts that get a grammar only because of their script."""
    if not counts.doubtful:
        return
    kinds = (
        f"{LANGUAGE_NAMES[item.language]} for {item.script}: {count}" for item, count in counts.doubtful.most_common()
    )
    log.warning(
        "%d of %d rows have no language and get a grammar by their script alone (%s; the first is line %d). The "
        "published front end does so, but it is rarely intended: give them a language, in the manifest or --language",
        counts.doubtful.total(), counts.rows, ", ".join(kinds), counts.doubtful_line,
    )  # fmt: skip


def warn_of_empty_split(summary: Summary, val_ratio: float) -> None:
    """Say where a split that was asked for has no sample; trainers fail on an empty file."""
    if summary.accepted and not summary.val and val_ratio:
        log.warning(
            "no sample is in validation: %d samples are few for --val-ratio %g; use --val-count N to take N of them",
            summary.accepted, val_ratio,
        )  # fmt: skip
    if summary.accepted and not summary.train:
        log.warning("no sample is in train: all %d are in validation (--val-ratio %g)", summary.accepted, val_ratio)


def close_remarks(summary: Summary, val_ratio: float, output: NpyOutput, *, remote: bool) -> None:
    """What is to be said, and done about pairs, when a build is complete."""
    warn_of_empty_split(summary, val_ratio)
    for line in [] if remote else renew_pairs(output.root):
        log.warning("pairs: %s", line)
