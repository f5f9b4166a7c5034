"""`python -m hfprep merge`: joins the outputs of `build --shard`."""

from pathlib import Path
from typing import Annotated

import typer

from hfprep.cli.output import say


def merge(
    parts: Annotated[list[Path], typer.Argument(metavar="PART...", help="Output directories of all the parts.")],
    output_dir: Annotated[Path, typer.Option(help="Folder for the result; a rerun continues there.")],
    copy: Annotated[bool, typer.Option("--copy", help="Copy files instead of making hard links.")] = False,
) -> None:
    """Join the outputs of `build --shard` into the output of one build; run it again to continue."""
    from hfprep.pipeline.merging import merge as run

    done = run(parts, output_dir, copy=copy)
    say(
        f"{done.output_dir}: {done.train + done.val} samples ({done.train} train, {done.val} val, {done.hours:.3f} h) "
        f"from {done.parts} parts, {done.rejected} lines rejected; files: {done.linked} linked, {done.copied} copied; "
        f"{done.reused} samples were already merged"
    )
