"""The number of operations that the features of a clip need, from shapes.

Provides `needed_flops` for IndexTTS-2 and `needed_flops25` for IndexTTS-2.5: floating-point operations (two per
multiply-add) of matmuls, attention and convolutions, by model stage, for the real frames of a clip only: no padding, no
layers after the 17th. Norms, activations, means and terms that are the same for all clips (such as position tables) are
not counted.
"""

from __future__ import annotations

from dataclasses import dataclass

from hfprep.models import campplus, conformer, downsampled_codec, perceiver, semantic_codec
from hfprep.models.campplus import CampplusConfig
from hfprep.models.configs import NUM_LATENTS, NUM_LAYERS, ConditionConfig, SemanticCodecConfig, SemanticEncoderConfig
from hfprep.models.input_features import FEATURE_DIM, HOP_LENGTH, WINDOW_LENGTH, num_input_frames
from hfprep.recipes.indextts2.config import ModelConfig
from hfprep.recipes.indextts25.config import Config

STAGES = ("semantic encoder", "codec", "conditioners")
STAGES25 = ("semantic encoder", "codec", "speaker", "emotion")


@dataclass(frozen=True)
class Flops:
    """Operations of matmuls and attention, and of depthwise convolutions."""

    products: int
    depthwise: int = 0

    def __add__(self, other: Flops) -> Flops:
        return Flops(self.products + other.products, self.depthwise + other.depthwise)

    @property
    def all(self) -> int:
        return self.products + self.depthwise


def needed_flops(num_samples: int, config: ModelConfig, semantic: SemanticEncoderConfig) -> dict[str, Flops]:
    """The operations for a clip of `num_samples` at 16 kHz, for each of `STAGES`."""
    num_frames, width = num_input_frames(num_samples), semantic.hidden_size
    condition = _branch(num_frames, config.condition, width, latents=NUM_LATENTS, latent_width=config.model_dim)
    return {
        "semantic encoder": _encoder(num_frames, semantic),
        "codec": _codec(num_frames, config.semantic_codec),
        "conditioners": condition + _emotion(num_frames, config.emotion, width, config.model_dim),
    }


def needed_flops25(
    num_samples: int, config: Config, semantic: SemanticEncoderConfig, speaker: CampplusConfig
) -> dict[str, Flops]:
    """The operations for a clip of `num_samples` at 16 kHz, for each of `STAGES25`."""
    num_frames, width = num_input_frames(num_samples), semantic.hidden_size
    num_codes = -(-num_frames // downsampled_codec.STRIDE)
    down = Flops(2 * num_codes * downsampled_codec.KERNEL_SIZE * width**2)
    return {
        "semantic encoder": _encoder(num_frames, semantic),
        "codec": down + _codec(num_codes, config.semantic_codec),
        "speaker": _speaker(1 + (num_samples - WINDOW_LENGTH) // HOP_LENGTH, speaker),
        "emotion": _emotion(num_frames, config.emotion, width, config.model_dim),
    }


def _encoder(frames: int, semantic: SemanticEncoderConfig) -> Flops:
    width, inner = semantic.hidden_size, semantic.intermediate_size
    positions = semantic.left_max_position_embeddings + 1 + semantic.right_max_position_embeddings
    weights = 4 * width * inner + 4 * width**2 + 3 * width**2  # two feed-forwards, attention, the 1x1 convolutions
    attention = 2 * frames * width + positions * width  # scores and values, positional scores
    layer = 2 * frames * (weights + attention)
    depthwise = 2 * frames * width * semantic.conv_depthwise_kernel_size
    return Flops(2 * frames * FEATURE_DIM * width + NUM_LAYERS * layer, NUM_LAYERS * depthwise)


def _codec(frames: int, codec: SemanticCodecConfig) -> Flops:
    width, channels, kernel = codec.hidden_size, codec.vocos_dim, semantic_codec.KERNEL_SIZE
    blocks = codec.vocos_num_layers * 2 * channels * codec.vocos_intermediate_dim
    quantizer = codec.codebook_dim * (width + codec.codebook_size)
    products = 2 * frames * (kernel * width * channels + blocks + channels * width + quantizer)
    return Flops(products, 2 * frames * codec.vocos_num_layers * kernel * channels)


def _emotion(frames: int, config: ConditionConfig, width: int, model_dim: int) -> Flops:
    """The emotion branch and the two projections after it."""
    branch = _branch(frames, config, width, latents=1, latent_width=width)
    return branch + Flops(2 * (width + model_dim) * model_dim)


def _branch(frames: int, config: ConditionConfig, width: int, *, latents: int, latent_width: int) -> Flops:
    """A Conformer over half the frames, and a Perceiver with `latents` latents."""
    frames, frequencies, channels = (frames - 1) // 2, (width - 1) // 2, config.output_size
    subsampling = channels * frequencies * (9 + channels)
    weights = 4 * channels**2 + 3 * channels**2 + 2 * channels * config.linear_units
    blocks = config.num_blocks * (weights + 2 * frames * channels)
    depthwise = 2 * frames * config.num_blocks * conformer.KERNEL_SIZE * channels
    project = channels * latent_width if channels != latent_width else 0
    inner = config.attention_heads * perceiver.HEAD_WIDTH
    gated = int(latent_width * config.perceiver_mult * 2 / 3)
    layer = (
        2 * latents * latent_width * inner  # queries, output
        + 2 * (frames + latents) * latent_width * inner  # keys and values
        + 2 * latents * (frames + latents) * inner  # scores and values
        + 3 * latents * latent_width * gated
    )
    return Flops(2 * frames * (subsampling + blocks + project) + 2 * perceiver.DEPTH * layer, depthwise)


def _speaker(frames: int, config: CampplusConfig) -> Flops:
    """CAM++ over `frames` of 10 ms: two-dimensional convolutions, then dense layers over half the frames."""
    head, bins = config.head_channels, campplus.NUM_MEL_BINS
    maps = bins * 9 * head  # the first convolution, from one channel
    for stride in (2, 1, 2, 1):
        bins //= stride
        maps += 2 * bins * 9 * head**2 + (bins * head**2 if stride > 1 else 0)
    bins //= 2
    maps += bins * 9 * head**2
    steps, channels = (frames + 1) // 2, config.channels
    segments = -(-steps // campplus.SEGMENT_STEPS)
    each_step = campplus.TDNN_KERNEL * bins * head * channels
    each_segment = 0
    for num_layers in config.num_layers:
        for _ in range(num_layers):
            each_step += channels * config.bottleneck + 3 * config.bottleneck * config.growth
            each_segment += config.context * (config.bottleneck + config.growth)
            channels += config.growth
        each_step += channels * (channels // 2)
        channels //= 2
    vector = 2 * channels * config.vector
    return Flops(2 * (frames * maps + steps * each_step + segments * each_segment + vector))
