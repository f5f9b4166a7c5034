"""The options that name a neural codec, and how many of its codebooks are wanted."""

from dataclasses import dataclass
from pathlib import Path

from hfprep.recipes.base import option


@dataclass(frozen=True, kw_only=True)
class CodecOptions:
    """Which codec, and the tokenizer where text ids are wanted as well."""

    tokenizer: Path | None = option(None, "Of a codec build: SentencePiece model or tokenizer.json; none: no text ids.")
    codec_model: str | None = option(None, "Neural codec of transformers (Mimi, EnCodec, DAC): a folder or hub id.")
    num_codebooks: int | None = option(None, "Codec: its first N codebooks; default: all of them.")
