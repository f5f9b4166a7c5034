"""The part of IndexTTS-2.5's config.yaml that features depend on, and how 2.5 is recognised.

Provides `Config`, frozen and validated, and `named_file`. The config's `version` is unreliable: the first published
file says 2.0. It also names a tokenizer that 2.5 does not have, and paths of another machine.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from hfprep.models.tensor_shapes import read_shapes
from hfprep.recipes.config_file import GptConfig, gpt_config, read_config
from hfprep.recipes.indextts25.vocabulary import NUM_TOKENS

CODEC_FILE = "codec.pth"
VOCABULARY_FILE = "multilingual_zh_ja_yue_char_del.tiktoken"
CAMPPLUS_FILE = "campplus_cn_common.bin"

_SPEAKER_PROJECTION = "spk_emb_proj.weight"
_OF_INDEXTTS2 = ("conditioning_encoder.", "perceiver_encoder.", "speed_emb.")

# The model's defaults, and the only values that hfprep supports.
_CODEC_CONSTANTS = {"downsample_scale": 2, "num_quantizers": 1}


@dataclass(frozen=True, kw_only=True)
class Config(GptConfig):
    """The validated parts of config.yaml that features depend on.

    `w2v_stat` is a file name as in the config. It and that of the checkpoint may not exist.
    """

    w2v_stat: str | None = None

    @classmethod
    def read(cls, path: str | Path) -> Config:
        """Read and check a config.yaml.

        Raises ConfigError with the file, the key, its value and what is allowed.
        """
        root = read_config(Path(path))
        codec = root.section("semantic_codec")
        for key, only in _CODEC_CONSTANTS.items():
            value = codec.values.get(key)
            if value not in (None, only):
                raise codec.error(key, f"is {value!r}; hfprep supports {only} only ({only} or absent)")
        return cls(**gpt_config(root), w2v_stat=root.text("w2v_stat") if root.has("w2v_stat") else None)


def names_indextts25(path: Path) -> bool:
    """Whether a config.yaml is of IndexTTS-2.5, by its vocabulary size. Raises ConfigError as `read` does."""
    gpt = read_config(path).values.get("gpt")
    return isinstance(gpt, dict) and gpt.get("number_text_tokens") == NUM_TOKENS


def is_indextts25(gpt_checkpoint: Path) -> bool:
    """Whether a gpt.pth is of IndexTTS-2.5, by its tensor names. Raises CheckpointError if it cannot be read."""
    names = read_shapes(gpt_checkpoint)
    return _SPEAKER_PROJECTION in names and not any(name.startswith(_OF_INDEXTTS2) for name in names)


def named_file(folder: Path, named: str | None, fallback: str) -> Path:
    """The file `named` by a config in `folder`: at its path, or by its name beside the config, or else the fallback."""
    for candidate in () if named is None else (folder / named, folder / Path(named).name):
        if candidate.is_file():
            return candidate
    return folder / fallback
