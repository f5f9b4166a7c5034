"""What is known of IndexTTS-2 before its weights are here: its files on the hub, its limits, how long it computes.

The time of a batch is that of one encoder layer with made-up weights of the right shapes, which is run on the device:
seventeen of them are most of the arithmetic. What the other models need is counted in multiplications, and taken to run
as fast.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hfprep.models.configs import ConditionConfig, SemanticCodecConfig
from hfprep.models.semantic_config import NUM_LAYERS, SemanticEncoderConfig
from hfprep.recipes.base import Download
from hfprep.recipes.finding import CONFIG_FILE, SEMANTIC_FOLDER, SEMANTIC_MODEL, models_folder
from hfprep.recipes.indextts2.config import ModelConfig
from hfprep.recipes.indextts2.locate import CODEC_FILE, GPT_FILE, SEMANTIC_CODEC
from hfprep.recipes.indextts2.options import IndexTTS2Options

if TYPE_CHECKING:
    import torch

    from hfprep.models.kernels.encoder import FusedSemanticEncoder
    from hfprep.models.semantic_encoder import SemanticEncoder

MEASURE_SECONDS, LEAST_ROUNDS, MOST_ROUNDS = 1.0, 4, 30
GPT_REPOSITORY = "IndexTeam/IndexTTS-2"
DOWNLOADS = (
    Download(GPT_REPOSITORY, (CONFIG_FILE, "bpe.model", "wav2vec2bert_stats.pt", GPT_FILE), 3_480_000_000),
    Download(
        SEMANTIC_MODEL, ("config.json", "preprocessor_config.json", "model.safetensors"), 2_320_000_000, SEMANTIC_FOLDER
    ),
    Download(SEMANTIC_CODEC, (CODEC_FILE,), 177_000_000),
)


def _published() -> ModelConfig:
    """The config of the published checkpoint, as far as features depend on it."""

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
    """The config.yaml that the options name, or that of the published model where they name none."""
    if options.config is not None:
        return ModelConfig.read(options.config)
    folder = models_folder(options.models)
    return PUBLISHED_CONFIG if folder is None else ModelConfig.read(folder / CONFIG_FILE)


def semantic_config_of(options: IndexTTS2Options) -> SemanticEncoderConfig:
    """The encoder's config where its file is here, or the published one's."""
    folders = [options.semantic_model, options.models and options.models / SEMANTIC_FOLDER]
    for folder in folders:
        if folder is not None and (path := Path(folder) / "config.json").is_file():
            return SemanticEncoderConfig.read(path)
    return SemanticEncoderConfig()


@dataclass(frozen=True)
class BatchTimer:
    """Seconds of a batch of these models: see the module's docstring. Called as `Outline.seconds_of_batch` is."""

    config: ModelConfig
    semantic: SemanticEncoderConfig

    def __call__(self, rows: int, frames: int, device: torch.device, precision: str) -> float:
        layer = layer_seconds(self.semantic, rows, frames, device, precision)
        return NUM_LAYERS * layer * (1 + self.rest / self.encoder)

    @property
    def encoder(self) -> float:
        """Multiplications a frame in the encoder's layers."""
        width, inner = self.semantic.hidden_size, self.semantic.intermediate_size
        return float(NUM_LAYERS * (4 * width * inner + 7 * width**2))

    @property
    def rest(self) -> float:
        """Multiplications a frame outside the encoder; what attention adds with the length is left out."""
        codec, width = self.config.semantic_codec, self.semantic.hidden_size
        blocks = codec.vocos_num_layers * 2 * codec.vocos_dim * codec.vocos_intermediate_dim
        quantizer = codec.codebook_size * codec.codebook_dim
        conditioners = sum(_conformer(branch, width) for branch in (self.config.condition, self.config.emotion))
        return 7 * width * codec.vocos_dim + blocks + quantizer + conditioners / 2  # Conformers: every second frame


def _conformer(branch: ConditionConfig, width: int) -> float:
    size, bands = branch.output_size, (width - 1) // 2
    subsampling = 9 * size * bands + size**2 * bands
    return subsampling + branch.num_blocks * (2 * size * branch.linear_units + 8 * size**2)


def timed_encoder(config: SemanticEncoderConfig, device: torch.device) -> SemanticEncoder:
    """An encoder of a single layer, with anything in its weights that stays within reach of 16 bits."""
    import torch

    from hfprep.models.semantic_encoder import SemanticEncoder

    encoder = SemanticEncoder(config)
    encoder.layers = encoder.layers[:1]
    encoder.to_empty(device=device).requires_grad_(False)
    with torch.no_grad():
        for weight in encoder.parameters():
            weight.fill_(1 / config.hidden_size)
    return encoder


def in_precision(
    encoder: SemanticEncoder, device: torch.device, precision: str
) -> SemanticEncoder | FusedSemanticEncoder:
    """The encoder as a build computes with it."""
    from hfprep.models.precision import lower_weights

    if device.type == "cpu" and precision != "fp32":
        lower_weights([encoder])
    elif device.type == "cuda" and precision != "fp32":
        from hfprep.models.kernels.encoder import FusedSemanticEncoder
        from hfprep.models.kernels.operators import FORMS

        if (form := FORMS.get(precision)) is not None:
            return FusedSemanticEncoder(encoder, form)
    return encoder


def layer_seconds(config: SemanticEncoderConfig, rows: int, length: int, device: torch.device, precision: str) -> float:
    """Seconds of one encoder layer over a batch of `rows` clips of `length` frames. ConfigError as `require` raises."""
    import torch

    from hfprep.models.input_features import FEATURE_DIM
    from hfprep.models.masking import FrameMask, packs
    from hfprep.models.precision import computing, require

    require(precision, device)
    encoder = in_precision(timed_encoder(config, device), device, precision)
    lengths = torch.full((rows,), length)
    packed = packs(device)
    shape = (1, rows * length) if packed else (rows, length)
    seconds: list[float] = []
    with torch.inference_mode(), computing(precision, device):
        features = torch.rand(*shape, FEATURE_DIM, device=device)
        mask = FrameMask.of_packed(lengths, device) if packed else FrameMask.from_lengths(lengths, length, device)
        while len(seconds) < LEAST_ROUNDS or (sum(seconds[1:]) < MEASURE_SECONDS and len(seconds) < MOST_ROUNDS):
            started = time.perf_counter()
            encoder(features, mask).flatten()[0].item()
            seconds.append(time.perf_counter() - started)
    return min(seconds[1:])  # the first time kernels are made ready; other times something else may want the machine
