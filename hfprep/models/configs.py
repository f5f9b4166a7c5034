"""Widths and depths of the networks that config.yaml sets."""

from dataclasses import dataclass

NUM_LATENTS = 32  # queries of the Perceiver, and rows of `condition`
POSITION_ROWS = 5000  # of the Conformer's position table


@dataclass(frozen=True, kw_only=True)
class ConditionConfig:
    """A Conformer and Perceiver branch: `condition_module` or `emo_condition_module`."""

    output_size: int
    linear_units: int
    attention_heads: int
    num_blocks: int
    perceiver_mult: int


@dataclass(frozen=True, kw_only=True)
class SemanticCodecConfig:
    """The RepCodec encoder and its quantizer: `semantic_codec`."""

    codebook_size: int
    hidden_size: int
    codebook_dim: int
    vocos_dim: int
    vocos_intermediate_dim: int
    vocos_num_layers: int
