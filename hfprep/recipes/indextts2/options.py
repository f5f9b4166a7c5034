"""The options for the files of IndexTTS-2."""

from dataclasses import dataclass
from pathlib import Path

from hfprep.errors import ConfigError
from hfprep.recipes.base import option

TOKENIZER_FILE = "bpe.model"


@dataclass(frozen=True, kw_only=True)
class IndexTTS2Options:
    """Paths of the model files. They are required unless `models` is given."""

    models: Path | None = option(None, "Folder with all model files; used for model paths that are not given.")
    tokenizer: Path | None = option(None, "SentencePiece model (bpe.model).")
    config: Path | None = option(None, "config.yaml of the IndexTTS-2 checkpoint.")
    gpt_checkpoint: Path | None = option(None, "gpt.pth of the IndexTTS-2 checkpoint.")
    semantic_model: str | None = option(None, "w2v-bert-2.0: a folder or hub id (default: facebook/w2v-bert-2.0).")
    semantic_codec: str | None = option(
        None, "Semantic codec: a .safetensors file or hub id (default: amphion/MaskGCT)."
    )

    @property
    def tokenizer_path(self) -> Path:
        """The tokenizer's path: `tokenizer`, or else bpe.model in the folder `models`."""
        if self.tokenizer is not None:
            return self.tokenizer
        if self.models is None:
            raise ConfigError("--tokenizer is missing: give it, or a folder with all model files as --models DIR")
        return self.models / TOKENIZER_FILE
