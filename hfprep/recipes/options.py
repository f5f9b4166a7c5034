"""The options for the files of all recipes, for the command line; each recipe uses the ones that it knows."""

from dataclasses import dataclass
from pathlib import Path

from hfprep.recipes.base import option


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """The model files of a build. Paths are required unless `models` is given."""

    tokenizer: Path | None = option(None, "SentencePiece model (bpe.model).")
    codec_model: str | None = option(None, "Neural codec from transformers (Mimi, EnCodec, DAC): a folder or hub id.")
    num_codebooks: int | None = option(None, "Codec: only the first N codebooks; default: all.")
    models: Path | None = option(None, "Folder with all model files; used for model paths that are not given.")
    config: Path | None = option(None, "config.yaml of the IndexTTS-2 checkpoint.")
    gpt_checkpoint: Path | None = option(None, "gpt.pth of the IndexTTS-2 checkpoint.")
    semantic_model: str | None = option(None, "w2v-bert-2.0: a folder or hub id (default: facebook/w2v-bert-2.0).")
    semantic_codec: str | None = option(
        None, "Semantic codec: a .safetensors file or hub id (default: amphion/MaskGCT)."
    )
    campplus: str | None = option(None, "IndexTTS-2.5: speaker network, a file or hub id (default: funasr/campplus).")
    reference_seconds: float = option(
        0.0, "IndexTTS-2.5: compute speaker and emotion vectors from the first N seconds of a clip (0: all of it)."
    )
