"""Widths and depths of the networks: those that config.yaml sets, and the config.json of w2v-bert-2.0.

transformers' Wav2Vec2BertConfig is not used itself because importing it takes longer than mapping the weights.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from hfprep.errors import CheckpointError
from hfprep.models.input_features import FEATURE_DIM

NUM_LATENTS = 32  # queries of the Perceiver, and rows of `condition`
POSITION_ROWS = 5000  # of the Conformer's position table
NUM_LAYERS = 17  # of the semantic encoder: features are the output of the last of them

# The values of the published models, the only supported ones; the library's default is first.
_REQUIRED: dict[str, tuple[Any, ...]] = {
    "model_type": ("wav2vec2-bert",),
    "position_embeddings_type": ("relative_key",),
    "hidden_act": ("swish", "silu"),
    "feature_projection_input_dim": (FEATURE_DIM,),
    "add_adapter": (False,),
    "use_intermediate_ffn_before_adapter": (False,),
}
_PUBLISHED_LAYERS = 24
MAX_WIDTH = 1 << 20  # of a layer, so that no huge layer fills memory before the weights are checked


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


@dataclass(frozen=True, kw_only=True)
class SemanticEncoderConfig:
    """The validated parts of w2v-bert-2.0's config.json that features depend on; the defaults are the library's."""

    hidden_size: int = 1024
    intermediate_size: int = 4096
    num_attention_heads: int = 16
    conv_depthwise_kernel_size: int = 31
    left_max_position_embeddings: int = 64
    right_max_position_embeddings: int = 8
    layer_norm_eps: float = 1e-5

    @classmethod
    def read(cls, path: str | Path) -> SemanticEncoderConfig:
        """Read config.json. Raises CheckpointError with the file, the key, its value and what is supported."""
        path = Path(path)
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as exc:
            raise CheckpointError(f"{path}: cannot be read as JSON ({exc}); it must be the semantic model's") from exc
        if not isinstance(values, dict):
            raise CheckpointError(f"{path}: contains a {type(values).__name__}, not an object")
        return cls.from_values(values, path)

    @classmethod
    def from_values(cls, values: dict[str, Any], path: Path | None = None) -> SemanticEncoderConfig:
        """Check the values of a config.json; missing ones have the library's defaults."""
        where = path or "semantic model config"
        for key, allowed in _REQUIRED.items():
            value = values.get(key, allowed[0])
            if value not in allowed:
                wanted = " or ".join(repr(item) for item in allowed)
                raise CheckpointError(f"{where}: {key} is {value!r}; hfprep supports {wanted} only")
        layers = values.get("num_hidden_layers", _PUBLISHED_LAYERS)
        if not isinstance(layers, int) or layers < NUM_LAYERS:
            raise CheckpointError(
                f"{where}: num_hidden_layers is {layers!r}; features are the output of layer {NUM_LAYERS}, "
                f"so it must be at least {NUM_LAYERS}"
            )
        config = cls(**{field.name: values[field.name] for field in fields(cls) if field.name in values})
        config._check(where)
        return config

    def _check(self, where: str | Path) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            whole = isinstance(field.default, int)
            if type(value) not in ((int,) if whole else (int, float)) or not 0 < value <= MAX_WIDTH:
                wanted = f"a whole number from 1 to {MAX_WIDTH}" if whole else "a number above 0"
                raise CheckpointError(f"{where}: {field.name} is {value!r}; it must be {wanted}")
        if self.hidden_size % self.num_attention_heads:
            raise CheckpointError(
                f"{where}: num_attention_heads is {self.num_attention_heads!r}; "
                f"it must divide hidden_size ({self.hidden_size})"
            )
