"""`python -m hfprep report`: writes an HTML report on a finished output."""

from pathlib import Path
from typing import Annotated

import typer

from hfprep.cli.output import say


def report(
    output_dir: Annotated[Path, typer.Argument(metavar="OUT", help="A build's output directory, or an export.")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="The file; default: OUT/report.html.")] = None,
    audio: Annotated[
        bool, typer.Option("--audio", help="Add players for the source audio; measure silence and clipping.")
    ] = False,
) -> None:
    """Write a self-contained HTML file: hours, lengths, codebook, voices, rejections, batches, provenance."""
    from hfprep.io.atomic import check_writable
    from hfprep.tools.report.writing import write_report

    if output is None:
        check_writable(output_dir, "give the report's file: --output FILE")
    target = output or output_dir / "report.html"
    size = write_report(output_dir, target, with_audio=audio)
    say(f"{target}: {size / 1e6:.1f} MB; open it in a browser")
