"""Checks pair files against the records of their utterances."""

from pathlib import Path

from hfprep.formats.pair_files import pair_files, pair_problems
from hfprep.tools.verify.faults import FaultKind, Findings


def verify_pairs(output: Path, findings: Findings) -> None:
    """Check every pair file of an npy output; an invalid file is one fault."""
    for name in pair_files(output):
        problems = pair_problems(output, name)
        first = next(problems, None)
        if first is None:
            continue
        others = sum(1 for _ in problems)
        more = f", and {others} other pairs are wrong" if others else ""
        message = f"{first.message}{more}; make the pairs again: python -m hfprep pairs {output}"
        findings.add(FaultKind.PAIRS_DISAGREE, f"{name}:{first.line}", message, sample_id=first.id)
