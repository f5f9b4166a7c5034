"""`python -m hfprep extend-checkpoint`: a checkpoint with rows for an extended tokenizer."""

from pathlib import Path
from typing import Annotated

import typer

from hfprep.cli.output import say


def extend_checkpoint(
    gpt_checkpoint: Annotated[Path, typer.Option(help="gpt.pth of the checkpoint.")],
    config: Annotated[Path, typer.Option(help="Its config.yaml.")],
    output_dir: Annotated[Path, typer.Option(help="Folder for the new files; not the checkpoint's folder.")],
    base: Annotated[Path | None, typer.Option(help="IndexTTS-2: the tokenizer of the checkpoint.")] = None,
    tokenizer: Annotated[Path | None, typer.Option(help="IndexTTS-2: the extended one (`tokenizer extend`).")] = None,
    language: Annotated[str | None, typer.Option(help="IndexTTS-2.5: the language without a trained row.")] = None,
    like: Annotated[str | None, typer.Option(help="IndexTTS-2.5: the language whose row is copied.")] = None,
) -> None:
    """Add rows to a checkpoint for an extended tokenizer (IndexTTS-2) or a language (IndexTTS-2.5)."""
    from hfprep.tools.extend_checkpoint import CheckpointOptions
    from hfprep.tools.extend_checkpoint import extend_checkpoint as run

    options = CheckpointOptions(
        gpt_checkpoint=gpt_checkpoint,
        config=config,
        output_dir=output_dir,
        base=base,
        tokenizer=tokenizer,
        language=language,
        like=like,
    )
    found = run(options)
    if language is None:
        say(f"{found.text_ids} text ids (before: {found.text_ids_before}), {found.new_rows} rows initialised")
    else:
        say(f"the row of {language} is initialised from that of {like}")
    for path in found.files:
        say(path)
