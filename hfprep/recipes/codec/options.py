"""The options for a neural codec and its number of codebooks."""

from dataclasses import dataclass
from pathlib import Path

from hfprep.recipes.base import option


@dataclass(frozen=True, kw_only=True)
class CodecOptions:
    """The codec, and the tokenizer if text ids are wanted."""

    tokenizer: Path | None = option(None, "Codec: SentencePiece model or tokenizer.json; default: no text ids.")
    codec_model: str | None = option(None, "Neural codec from transformers (Mimi, EnCodec, DAC): a folder or hub id.")
    num_codebooks: int | None = option(None, "Codec: only the first N codebooks; default: all.")
