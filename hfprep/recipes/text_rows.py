"""The tensors of gpt.pth with a row per text id, and a check whether a tokenizer has more ids."""

import logging
from pathlib import Path

from hfprep.models.tensor_shapes import read_shapes

log = logging.getLogger(__name__)

TEXT_EMBEDDING = "text_embedding.weight"
TEXT_ROWS = (TEXT_EMBEDDING, "text_head.weight", "text_head.bias")
"""The tensors with a row per text id, plus one row."""
LANGUAGE_EMBEDDING = "lang_embedding.weight"
"""IndexTTS-2.5 only: a row per language, plus one."""


def warn_of_larger(tokenizer: Path, size: int, checkpoint: Path, configured: int) -> None:
    """Warn if a tokenizer has more pieces than the checkpoint has rows. Features do not depend on these rows.

    `configured` is the number in config.yaml, used for a checkpoint without a text embedding.
    """
    embedding = read_shapes(checkpoint).get(TEXT_EMBEDDING)
    known = embedding[0] - 1 if embedding else configured
    if size > known:
        log.warning(
            "the tokenizer %s has %d pieces, but the checkpoint %s has rows for %d: features are unaffected, but "
            "the trainer will have to grow text_embedding and text_head (or use `extend-checkpoint`)",
            tokenizer, size, checkpoint, known,
        )  # fmt: skip
