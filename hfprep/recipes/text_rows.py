"""The tensors of gpt.pth with a row for each text id, and whether a tokenizer goes beyond them."""

import logging
from pathlib import Path

from hfprep.models.tensor_files import read_torch_file

log = logging.getLogger(__name__)

TEXT_EMBEDDING = "text_embedding.weight"
TEXT_ROWS = (TEXT_EMBEDDING, "text_head.weight", "text_head.bias")
"""The tensors with a row for each text id, and one row more."""
LANGUAGE_EMBEDDING = "lang_embedding.weight"
"""Of IndexTTS-2.5: a row for each language, and one more."""


def count_text_ids(path: Path) -> int | None:
    """For how many text ids gpt.pth has rows, None where it has no text embedding."""
    embedding = read_torch_file(path).get(TEXT_EMBEDDING)
    return None if embedding is None else len(embedding) - 1


def warn_of_larger(tokenizer: Path, size: int, checkpoint: Path, configured: int) -> None:
    """Say where a tokenizer has more pieces than the checkpoint has rows: features do not depend on them.

    `configured` is what config.yaml says, for a checkpoint without a text embedding.
    """
    found = count_text_ids(checkpoint)
    known = configured if found is None else found
    if size > known:
        log.warning(
            "the tokenizer %s has %d pieces, but the checkpoint %s has rows for %d: features are unaffected, but "
            "the trainer will have to grow text_embedding and text_head (or use `extend-checkpoint`)",
            tokenizer, size, checkpoint, known,
        )  # fmt: skip
