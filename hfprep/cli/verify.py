"""`python -m hfprep verify`: checks whether a finished output is complete and correct."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from hfprep.cli.options import options_of
from hfprep.cli.output import say
from hfprep.io.words import count
from hfprep.tools.verify.options import VerifyOptions

if TYPE_CHECKING:
    from hfprep.tools.verify.checking import Verdict


@options_of(VerifyOptions, arguments={"output_dir": "OUT"}, with_context=False)
def verify(**options: Any) -> None:
    """Check every array, record and count of a finished output; prints a line per fault, with exit status 1."""
    from hfprep.tools.verify.checking import verify as run

    verdict = run(VerifyOptions(**options))
    show(verdict, options["output_dir"])
    raise typer.Exit(1 if verdict.faults else 0)


def show(verdict: "Verdict", output_dir: Path) -> None:
    """Print a line for each fault, then what was done, noted and compared."""
    for fault in verdict.faults:
        say(fault.line())
    for action in verdict.repairs:
        say(f"repair: {action}")
    for note in verdict.notes:
        say(f"note: {note}")
    found = verdict.parity
    if found is not None:
        say(
            f"parity: {count(found.samples, 'sample')} computed again alone: {found.codes_differing} of {found.codes} "
            f"codes differ; the largest relative difference of a vector is {found.largest_difference:.1e}"
        )
    reference = verdict.reference
    if reference is not None:
        say(
            f"reference: {count(reference.samples, 'sample')} computed with the published library: "
            f"{reference.codes_differing:,} of {reference.codes:,} codes differ ({reference.agreement:.2%} agree)"
        )
    samples, faults = count(verdict.samples, "sample"), count(len(verdict.faults), "fault")
    say(f"{output_dir}: {verdict.format}, {samples}, {faults}")
    if verdict.repairs:
        say("Run the build command again: it computes only what was moved aside.")
