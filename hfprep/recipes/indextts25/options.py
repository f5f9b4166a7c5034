"""The options for the files of IndexTTS-2.5, and for the length of audio that its vectors are computed from."""

from dataclasses import dataclass
from pathlib import Path

from hfprep.recipes.base import option


@dataclass(frozen=True, kw_only=True)
class IndexTTS25Options:
    """Paths of the model files. They are required unless `models` is given."""

    models: Path | None = option(None, "Folder with all model files; used for model paths that are not given.")
    tokenizer: Path | None = option(None, "Vocabulary (multilingual_zh_ja_yue_char_del.tiktoken).")
    config: Path | None = option(None, "config.yaml of the IndexTTS-2.5 checkpoint.")
    gpt_checkpoint: Path | None = option(None, "gpt.pth of the IndexTTS-2.5 checkpoint.")
    semantic_model: str | None = option(None, "w2v-bert-2.0: a folder or hub id (default: facebook/w2v-bert-2.0).")
    semantic_codec: str | None = option(None, "Semantic codec: codec.pth.")
    campplus: str | None = option(None, "IndexTTS-2.5: speaker network, a file or hub id (default: funasr/campplus).")
    reference_seconds: float = option(
        0.0, "IndexTTS-2.5: compute speaker and emotion vectors from the first N seconds of a clip (0: all of it)."
    )
