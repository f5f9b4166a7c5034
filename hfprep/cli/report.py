"""`python -m hfprep report`: a finished output as one page to look at."""

from pathlib import Path
from typing import Annotated

import typer

from hfprep.cli.output import say


def report(
    output_dir: Annotated[Path, typer.Argument(metavar="OUT", help="A build's output directory, or an export.")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="The file; default: OUT/report.html.")] = None,
    audio: Annotated[
        bool, typer.Option("--audio", help="Add players for the source audio; look for silence and clipping.")
    ] = False,
) -> None:
    """Write one self-contained HTML file: hours, lengths, codebook, voices, rejects, batches, provenance."""
    from hfprep.io.atomic import check_writable
    from hfprep.tools.report.writing import write_report

    if output is None:
        check_writable(output_dir, "name the report's file: --output FILE")
    target = output or output_dir / "report.html"
    size = write_report(output_dir, target, with_audio=audio)
    say(f"{target}: {size / 1e6:.1f} MB; open it in a browser")
