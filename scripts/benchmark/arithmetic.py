"""How much arithmetic the features of a clip need, from the shapes alone.

Gives `needed_flops`: floating-point operations (two for each multiply and add) of the products, attentions and
convolutions, for the real frames of a clip and nothing else: no padding, no layer after the 17th, no table of
positions. Norms, activations and what is the same for every clip are left out. Takes configs; knows nothing of time.
"""

from __future__ import annotations

from dataclasses import dataclass

from hfprep.models import conformer, perceiver, semantic_codec
from hfprep.models.conditioner import NUM_LATENTS
from hfprep.models.configs import ConditionConfig
from hfprep.models.input_features import FEATURE_DIM
from hfprep.models.semantic_config import NUM_LAYERS, SemanticEncoderConfig
from hfprep.recipes.indextts2.config import ModelConfig

STAGES = ("semantic encoder", "codec", "conditioners")


@dataclass(frozen=True)
class Flops:
    """Operations of matrix products and attention, and of the depthwise convolutions."""

    products: int
    depthwise: int = 0

    def __add__(self, other: Flops) -> Flops:
        return Flops(self.products + other.products, self.depthwise + other.depthwise)

    @property
    def all(self) -> int:
        return self.products + self.depthwise


def needed_flops(num_frames: int, config: ModelConfig, semantic: SemanticEncoderConfig) -> dict[str, Flops]:
    """What one clip of `num_frames` frames (50 a second) needs, for each of `STAGES`."""
    width = semantic.hidden_size
    condition = _branch(num_frames, config.condition, width, latents=NUM_LATENTS, latent_width=config.model_dim)
    emotion = _branch(num_frames, config.emotion, width, latents=1, latent_width=width)
    projection = Flops(2 * (width + config.model_dim) * config.model_dim)
    return {
        "semantic encoder": _encoder(num_frames, semantic),
        "codec": _codec(num_frames, config),
        "conditioners": condition + emotion + projection,
    }


def _encoder(frames: int, semantic: SemanticEncoderConfig) -> Flops:
    width, inner = semantic.hidden_size, semantic.intermediate_size
    positions = semantic.left_max_position_embeddings + 1 + semantic.right_max_position_embeddings
    weights = 4 * width * inner + 4 * width**2 + 3 * width**2  # two feed-forwards, attention, the 1x1 convolutions
    attention = 2 * frames * width + positions * width  # scores and values, positional scores
    layer = 2 * frames * (weights + attention)
    depthwise = 2 * frames * width * semantic.conv_depthwise_kernel_size
    return Flops(2 * frames * FEATURE_DIM * width + NUM_LAYERS * layer, NUM_LAYERS * depthwise)


def _codec(frames: int, config: ModelConfig) -> Flops:
    codec, kernel = config.semantic_codec, semantic_codec.KERNEL_SIZE
    width, channels = codec.hidden_size, codec.vocos_dim
    blocks = codec.vocos_num_layers * 2 * channels * codec.vocos_intermediate_dim
    quantizer = codec.codebook_dim * (width + codec.codebook_size)
    products = 2 * frames * (kernel * width * channels + blocks + channels * width + quantizer)
    return Flops(products, 2 * frames * codec.vocos_num_layers * kernel * channels)


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
