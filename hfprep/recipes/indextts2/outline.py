"""What is known about IndexTTS-2 without its weights: its files on the hub and its limits."""

from __future__ import annotations

from pathlib import Path

from hfprep.models.configs import ConditionConfig, SemanticCodecConfig
from hfprep.recipes.base import Download
from hfprep.recipes.finding import CONFIG_FILE, SEMANTIC_FOLDER, SEMANTIC_MODEL, models_folder
from hfprep.recipes.indextts2.config import ModelConfig
from hfprep.recipes.indextts2.locate import CODEC_FILE, GPT_FILE, SEMANTIC_CODEC
from hfprep.recipes.indextts2.options import IndexTTS2Options

GPT_REPOSITORY = "IndexTeam/IndexTTS-2"
DOWNLOADS = (
    Download(GPT_REPOSITORY, (CONFIG_FILE, "bpe.model", "wav2vec2bert_stats.pt", GPT_FILE), 3_480_000_000),
    Download(
        SEMANTIC_MODEL, ("config.json", "preprocessor_config.json", "model.safetensors"), 2_320_000_000, SEMANTIC_FOLDER
    ),
    Download(SEMANTIC_CODEC, (CODEC_FILE,), 177_000_000),
)


def _published() -> ModelConfig:
    """The parts of the published checkpoint's config that features depend on."""

    def branch(linear_units: int, num_blocks: int, heads: int) -> ConditionConfig:
        return ConditionConfig(
            output_size=512, linear_units=linear_units, attention_heads=heads, num_blocks=num_blocks, perceiver_mult=2
        )

    codec = SemanticCodecConfig(
        codebook_size=8192,
        hidden_size=1024,
        codebook_dim=8,
        vocos_dim=384,
        vocos_intermediate_dim=2048,
        vocos_num_layers=12,
    )
    return ModelConfig(
        path=Path(CONFIG_FILE),
        model_dim=1280,
        max_mel_tokens=1815,
        max_text_tokens=600,
        number_text_tokens=12000,
        condition=branch(2048, 6, 8),
        emotion=branch(1024, 4, 4),
        semantic_codec=codec,
        w2v_stat="wav2vec2bert_stats.pt",
        gpt_checkpoint=GPT_FILE,
    )


PUBLISHED_CONFIG = _published()


def config_of(options: IndexTTS2Options) -> ModelConfig:
    """The config.yaml in the options, or that of the published model if there is none."""
    if options.config is not None:
        return ModelConfig.read(options.config)
    folder = models_folder(options.models)
    return PUBLISHED_CONFIG if folder is None else ModelConfig.read(folder / CONFIG_FILE)
