"""The tensors of gpt.pth with a row for each text id, and whether a tokenizer goes beyond them."""

import logging
from pathlib import Path

from hfprep.models.tensor_shapes import read_shapes

log = logging.getLogger(__name__)

TEXT_EMBEDDING = "text_embedding.weight"
TEXT_ROWS = (TEXT_EMBEDDING, "text_head.weight", "text_head.bias")
"""The tensors with a row for each text id, and one row more."""
LANGUAGE_EMBEDDING = "lang_embedding.weight"
"""Of IndexTTS-2.5: a row for each language, and one more."""


def warn_of_larger(tokenizer: Path, size: int, checkpoint: Path, configured: int) -> None:
    """Say where a tokenizer has more pieces than the checkpoint has rows: features do not depend on them.

    `configured` is what config.yaml says, for a checkpoint without a text embedding.
    """
    embedding = read_shapes(checkpoint).get(TEXT_EMBEDDING)
    known = embedding[0] - 1 if embedding else configured
    if size > known:
        log.warning(
            "the tokenizer %s has %d pieces, but the checkpoint %s has rows for %d: features are unaffected, but "
            "the trainer will have to grow text_embedding and text_head (or use `extend-checkpoint`)",
            tokenizer, size, checkpoint, known,
        )  # fmt: skip
