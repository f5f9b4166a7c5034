"""The options that name the files of IndexTTS-2.5, and how long a piece of a clip its vectors are of."""

from dataclasses import dataclass
from pathlib import Path

from hfprep.recipes.base import option


@dataclass(frozen=True, kw_only=True)
class IndexTTS25Options:
    """Where the model files are. They are needed unless `models` names a folder of them."""

    models: Path | None = option(None, "Folder with all model files; used for model paths that are not given.")
    tokenizer: Path | None = option(None, "Vocabulary (multilingual_zh_ja_yue_char_del.tiktoken).")
    config: Path | None = option(None, "config.yaml of the IndexTTS-2.5 checkpoint.")
    gpt_checkpoint: Path | None = option(None, "gpt.pth of the IndexTTS-2.5 checkpoint.")
    semantic_model: str | None = option(None, "w2v-bert-2.0: a folder or hub id (default: facebook/w2v-bert-2.0).")
    semantic_codec: str | None = option(None, "Semantic codec: codec.pth.")
    campplus: str | None = option(None, "IndexTTS-2.5: speaker network, a file or hub id (default: funasr/campplus).")
    reference_seconds: float = option(
        0.0, "IndexTTS-2.5: take speaker and emotion vector from the first so many seconds (0: the whole clip)."
    )
