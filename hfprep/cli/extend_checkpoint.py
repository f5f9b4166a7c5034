"""`python -m hfprep extend-checkpoint`: a checkpoint with rows for an extended tokenizer."""

from pathlib import Path
from typing import Annotated

import typer


def extend_checkpoint(
    gpt_checkpoint: Annotated[Path, typer.Option(help="gpt.pth of the IndexTTS-2 checkpoint.")],
    config: Annotated[Path, typer.Option(help="Its config.yaml.")],
    base: Annotated[Path, typer.Option(help="The tokenizer that it was trained with (bpe.model).")],
    tokenizer: Annotated[Path, typer.Option(help="The extended tokenizer (`tokenizer extend`).")],
    output_dir: Annotated[Path, typer.Option(help="Folder for the new files; not the checkpoint's own.")],
) -> None:
    """Give a checkpoint rows for an extended tokenizer, each the mean of the rows that stood for the same text."""
    from hfprep.tools.extend_checkpoint import CheckpointOptions
    from hfprep.tools.extend_checkpoint import extend_checkpoint as run

    options = CheckpointOptions(
        gpt_checkpoint=gpt_checkpoint, config=config, base=base, tokenizer=tokenizer, output_dir=output_dir
    )
    found = run(options)
    print(f"{found.text_ids} text ids (before: {found.text_ids_before}), {found.new_rows} rows made from others")
    for path in found.files:
        print(path)
