"""`python -m hfprep verify`: is a finished output whole and right."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hfprep.cli.output import say

if TYPE_CHECKING:
    from hfprep.tools.verify.checking import Verdict


def verify(
    output_dir: Annotated[Path, typer.Argument(metavar="OUT", help="A build's output directory, or an export.")],
    parity: Annotated[int, typer.Option(min=0, help="Compute this many samples again, alone, and compare.")] = 0,
    repair: Annotated[
        bool, typer.Option("--repair", help="Move what is broken aside; a build redoes just that.")
    ] = False,
    workers: Annotated[int, typer.Option(min=0, help="Threads that read; 0: one a CPU core.")] = 0,
    device: Annotated[str, typer.Option(help="For --parity: auto, cpu, cuda or cuda:N.")] = "auto",
    seed: Annotated[int, typer.Option(help="Which samples --parity draws.")] = 0,
    manifest: Annotated[Path | None, typer.Option(help="The manifest, if it has moved since.")] = None,
    models: Annotated[Path | None, typer.Option(help="For --parity: folder with all model files.")] = None,
    tokenizer: Annotated[Path | None, typer.Option(help="SentencePiece model (bpe.model).")] = None,
    config: Annotated[Path | None, typer.Option(help="For --parity: config.yaml.")] = None,
    gpt_checkpoint: Annotated[Path | None, typer.Option(help="For --parity: gpt.pth.")] = None,
    semantic_model: Annotated[str | None, typer.Option(help="For --parity: w2v-bert-2.0.")] = None,
    semantic_codec: Annotated[str | None, typer.Option(help="For --parity: its codec.")] = None,
) -> None:
    """Check a finished output: every array, every record, every count; exit status 1 and one line a fault."""
    from hfprep.tools.verify.checking import VerifyOptions
    from hfprep.tools.verify.checking import verify as run

    verdict = run(
        VerifyOptions(
            output_dir=output_dir,
            parity=parity,
            repair=repair,
            workers=workers,
            device=device,
            seed=seed,
            manifest=manifest,
            models=models,
            tokenizer=tokenizer,
            config=config,
            gpt_checkpoint=gpt_checkpoint,
            semantic_model=semantic_model,
            semantic_codec=semantic_codec,
        )
    )
    show(verdict, output_dir)
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
            f"parity: {found.samples} samples computed again alone: {found.codes_differing} of {found.codes} codes "
            f"differ, largest relative difference of a vector {found.largest_difference:.1e}"
        )
    say(f"{output_dir}: {verdict.format}, {verdict.samples} samples, {len(verdict.faults)} faults")
    if verdict.repairs:
        say("Now run the build command again: it makes what was moved aside, and only that.")
