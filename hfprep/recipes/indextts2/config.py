"""The part of IndexTTS-2's config.yaml that features depend on.

Provides `ModelConfig`, frozen and validated, with a section for each network, and `PUBLISHED`. Keys that hfprep does
not use are ignored; unsupported values raise an error with the name of the key.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from hfprep.models.configs import ConditionConfig, SemanticCodecConfig
from hfprep.recipes.config_file import GptConfig, condition_config, gpt_config, read_config
from hfprep.recipes.finding import CONFIG_FILE, GPT_FILE, STATISTICS_FILE

SEMANTIC_CODEC = "amphion/MaskGCT"
CODEC_FILE = "semantic_codec/model.safetensors"


@dataclass(frozen=True, kw_only=True)
class ModelConfig(GptConfig):
    """The validated parts of config.yaml that features depend on; `w2v_stat` is a file name relative to its folder."""

    condition: ConditionConfig
    w2v_stat: str

    @classmethod
    def read(cls, path: str | Path) -> ModelConfig:
        """Read and check a config.yaml.

        Raises ConfigError with the file, the key, its value and what is allowed.
        """
        root = read_config(Path(path))
        codec = root.section("semantic_codec")
        # The published code downsamples only for values above 1, which no published IndexTTS-2 config has.
        if codec.values.get("downsample_scale") not in (None, 1):
            raise codec.error(
                "downsample_scale",
                f"is {str(codec.values['downsample_scale'])[:60]!r}; hfprep supports codecs that do not downsample "
                "(1 or absent)",
            )
        condition = condition_config(root.section("gpt").section("condition_module"))
        return cls(**gpt_config(root), condition=condition, w2v_stat=root.text("w2v_stat"))


PUBLISHED = ModelConfig(
    path=Path(CONFIG_FILE),
    model_dim=1280,
    max_mel_tokens=1815,
    max_text_tokens=600,
    number_text_tokens=12000,
    condition=ConditionConfig(output_size=512, linear_units=2048, attention_heads=8, num_blocks=6, perceiver_mult=2),
    emotion=ConditionConfig(output_size=512, linear_units=1024, attention_heads=4, num_blocks=4, perceiver_mult=2),
    semantic_codec=SemanticCodecConfig(
        codebook_size=8192,
        hidden_size=1024,
        codebook_dim=8,
        vocos_dim=384,
        vocos_intermediate_dim=2048,
        vocos_num_layers=12,
    ),
    w2v_stat=STATISTICS_FILE,
    gpt_checkpoint=GPT_FILE,
)
"""That of the published checkpoint."""
