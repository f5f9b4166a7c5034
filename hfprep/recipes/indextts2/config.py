"""The part of IndexTTS-2's config.yaml that features depend on.

Provides `ModelConfig`, frozen and validated, with a section for each network. Keys that hfprep does not use are
ignored; unsupported values raise an error with the name of the key.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from hfprep.models.configs import ConditionConfig, SemanticCodecConfig
from hfprep.recipes.config_file import Section, codec_config, condition_config, read_config

CONDITION_TYPE = "conformer_perceiver"


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The validated parts of config.yaml that features depend on.

    `model_dim` is the width of the latents; `max_mel_tokens` and `max_text_tokens` are the GPT's code and text
    positions; `number_text_tokens` bounds the tokenizer. `w2v_stat` and `gpt_checkpoint` are file names as written in
    the config, relative to its folder (`gpt_checkpoint` is None if it is absent).
    """

    path: Path
    model_dim: int
    max_mel_tokens: int
    max_text_tokens: int
    number_text_tokens: int
    condition: ConditionConfig
    emotion: ConditionConfig
    semantic_codec: SemanticCodecConfig
    w2v_stat: str
    gpt_checkpoint: str | None = None

    @classmethod
    def read(cls, path: str | Path) -> ModelConfig:
        """Read and check a config.yaml.

        Raises ConfigError with the file, the key, its value and what is allowed.
        """
        path = Path(path)
        root = read_config(path)
        gpt = root.section("gpt")
        gpt.require("condition_type", CONDITION_TYPE)
        return cls(
            path=path,
            model_dim=gpt.count("model_dim"),
            max_mel_tokens=gpt.count("max_mel_tokens"),
            max_text_tokens=gpt.count("max_text_tokens"),
            number_text_tokens=gpt.count("number_text_tokens"),
            condition=condition_config(gpt.section("condition_module")),
            emotion=condition_config(gpt.section("emo_condition_module")),
            semantic_codec=_codec_config(root.section("semantic_codec")),
            w2v_stat=root.text("w2v_stat"),
            gpt_checkpoint=root.text("gpt_checkpoint") if root.has("gpt_checkpoint") else None,
        )


def _codec_config(section: Section) -> SemanticCodecConfig:
    # The published code downsamples only for values above 1, which no published IndexTTS-2 config has.
    if section.values.get("downsample_scale") not in (None, 1):
        raise section.error(
            "downsample_scale",
            f"is {str(section.values['downsample_scale'])[:60]!r}; hfprep supports codecs that do not downsample "
            "(1 or absent)",
        )
    return codec_config(section)
