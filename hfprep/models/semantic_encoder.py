"""The semantic encoder: the first 17 layers of w2v-bert-2.0, and the normalisation of what they give.

Gives `SemanticEncoderConfig` (what config.json must say) and `SemanticEncoder`: input features (B, T, 160) to semantic
features (B, T, D). The model is the library's Wav2Vec2BertModel cut to 17 layers, with the parts in which time goes
(attention, convolution, feed-forward) replaced by equal, faster ones under the same parameter names.
Knows nothing of checkpoint files. Source: Seamless Communication 2023; transformers' Wav2Vec2BertModel.
"""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hfprep.errors import CheckpointError
from hfprep.models.masking import FrameMask, KeyMask
from hfprep.models.operators import DepthwiseConvolution, Linear, PointwiseConvolution, by_rows, join_heads, split_heads
from hfprep.models.precision import attend

if TYPE_CHECKING:
    from transformers import Wav2Vec2BertConfig

NUM_LAYERS = 17


def bias_piece(device: torch.device) -> int:
    """How many numbers of the positional bias (clips x heads x queries x keys) exist at once: 400 MB for all of a
    clip of 50 s. On a CPU a piece stays in the cache; elsewhere larger pieces keep a device busy.
    """
    return 1 << 21 if device.type == "cpu" else 1 << 27


# What the published models have, and the only thing that is computed here.
_REQUIRED: dict[str, tuple[Any, ...]] = {
    "model_type": ("wav2vec2-bert",),
    "position_embeddings_type": ("relative_key",),
    "hidden_act": ("swish", "silu"),
    "add_adapter": (False,),
    "use_intermediate_ffn_before_adapter": (False,),
}


@dataclass(frozen=True)
class SemanticEncoderConfig:
    """w2v-bert-2.0's config.json, checked; `values` are the library's own configuration values, cut to 17 layers."""

    path: Path | None
    values: dict[str, Any]

    @classmethod
    def read(cls, path: str | Path) -> SemanticEncoderConfig:
        """Read config.json. Raises CheckpointError naming the file, the key, its value and what is computed."""
        path = Path(path)
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as exc:
            raise CheckpointError(f"{path}: cannot be read as JSON ({exc}); it must be the semantic model's") from exc
        if not isinstance(values, dict):
            raise CheckpointError(f"{path}: holds {type(values).__name__}, not an object")
        return cls.from_values(values, path)

    @classmethod
    def from_values(cls, values: dict[str, Any], path: Path | None = None) -> SemanticEncoderConfig:
        """Check the values of a config.json; what it leaves out has the library's default."""
        from transformers import Wav2Vec2BertConfig

        where = path or "semantic model config"
        defaults = Wav2Vec2BertConfig()
        for key, allowed in _REQUIRED.items():
            value = values.get(key, getattr(defaults, key))
            if value not in allowed:
                wanted = " or ".join(repr(item) for item in allowed)
                raise CheckpointError(f"{where}: {key} is {value!r}; hfprep computes {wanted} only")
        layers = values.get("num_hidden_layers", defaults.num_hidden_layers)
        if not isinstance(layers, int) or layers < NUM_LAYERS:
            raise CheckpointError(
                f"{where}: num_hidden_layers is {layers!r}; the features are those after layer {NUM_LAYERS}, "
                f"so it must be at least {NUM_LAYERS}"
            )
        # No masking while training, so no embedding for it; and never any dropout of a layer.
        fixed = {"num_hidden_layers": NUM_LAYERS, "mask_time_prob": 0.0, "mask_feature_prob": 0.0, "layerdrop": 0.0}
        return cls(path, {**values, **fixed})

    def library_config(self) -> Wav2Vec2BertConfig:
        """The library's configuration object."""
        from transformers import Wav2Vec2BertConfig

        return Wav2Vec2BertConfig(**self.values)

    @property
    def hidden_size(self) -> int:
        return int(self.library_config().hidden_size)


def relative_bias(query: Tensor, table: Tensor, *, left: int, first: int, num_keys: int) -> Tensor:
    """The positional part of the scores of a run of queries against all keys, unscaled.

    `query` (B, H, Q, d) are the queries first, first + 1, ...; `table` (left + right + 1, d) has a row for each clamped
    distance key - query. Gives a view (B, H, Q, num_keys) of a buffer that is num_keys + Q - 1 wide: going down one
    query moves every distance by one place, so each row of the bias is a shifted window of (q @ table^T) with its ends
    repeated, and nothing of size (Q, num_keys) needs to be gathered.
    """
    batch, heads, queries, _ = query.shape
    products = query @ table.t()  # (B, H, Q, left + right + 1)
    lowest, highest = -(first + queries - 1), num_keys - 1 - first  # distances that occur
    right = table.shape[0] - 1 - left
    inner = products[..., max(lowest, -left) + left : min(highest, right) + left + 1]
    parts = [
        products[..., :1].expand(-1, -1, -1, max(0, -left - lowest)),
        inner,
        products[..., -1:].expand(-1, -1, -1, max(0, highest - right)),
    ]
    row = torch.cat(parts, dim=-1)  # (B, H, Q, num_keys + Q - 1)
    width = row.shape[-1]
    strides = (heads * queries * width, queries * width, width - 1, 1)
    return row.as_strided((batch, heads, queries, num_keys), strides, queries - 1)


class RelativeKeyAttention(nn.Module):
    """Self-attention with `relative_key` positions: score(i, j) = q_i . (k_j + table[clamp(j - i)]) / sqrt(d)."""

    def __init__(self, config: Wav2Vec2BertConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.num_heads = config.num_attention_heads
        self.left = config.left_max_position_embeddings
        self.linear_q = Linear(width, width)
        self.linear_k = Linear(width, width)
        self.linear_v = Linear(width, width)
        self.linear_out = Linear(width, width)
        distances = self.left + config.right_max_position_embeddings + 1
        self.distance_embedding = nn.Embedding(distances, width // self.num_heads)
        self.key_mask = KeyMask()

    def forward(self, hidden_states: Tensor, attention_mask: FrameMask, **_: object) -> tuple[Tensor, None]:
        """(B, T, D) to (B, T, D); the signature is the library's, in which a mask of ours is handed through."""
        table = self.distance_embedding.weight / math.sqrt(self.distance_embedding.weight.shape[-1])
        key_bias = self.key_mask(attention_mask)
        attended = attention_mask.over_clips(
            lambda query, key, value: self._attend(query, key, value, table, key_bias),
            self.linear_q(hidden_states),
            self.linear_k(hidden_states),
            self.linear_v(hidden_states),
        )
        return self.linear_out(attended), None

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, table: Tensor, key_bias: Tensor | None) -> Tensor:
        """(B, T, D) each to (B, T, D)."""
        batch, frames, _width = query.shape
        query, key, value = (split_heads(x, self.num_heads) for x in (query, key, value))
        attended = torch.empty_like(query)  # keeps the strides of a view of (B, T, D)
        clips, queries = self._piece(query)
        for clip, first in itertools.product(range(0, batch, clips), range(0, frames, queries)):
            these = slice(clip, clip + clips)
            piece = query[these, :, first : first + queries]
            bias = relative_bias(piece, table, left=self.left, first=first, num_keys=frames)
            if key_bias is not None:
                bias = bias + key_bias[these]
            elif bias.device.type != "cpu":  # a window's rows start anywhere, and a GPU's kernels want them aligned
                bias = bias.contiguous()
            attended[these, :, first : first + queries] = attend(piece, key[these], value[these], bias)
        return join_heads(attended)

    def _piece(self, query: Tensor) -> tuple[int, int]:
        """How many clips, and how many of their queries, attend at once."""
        batch, heads, frames, _ = query.shape
        piece = bias_piece(query.device)
        clips = min(batch, max(1, piece // (heads * frames * frames)))
        return clips, min(frames, max(1, piece // (clips * heads * frames)))


class CausalConvolution(nn.Module):
    """LayerNorm, 1x1 convolution, GLU, depthwise convolution over the past, LayerNorm, Swish, 1x1 convolution.

    It looks at a frame and those before it only, so padding after an utterance never reaches its frames: no mask.
    """

    def __init__(self, config: Wav2Vec2BertConfig) -> None:
        super().__init__()
        width, kernel_size = config.hidden_size, config.conv_depthwise_kernel_size
        self.layer_norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.pointwise_conv1 = PointwiseConvolution(width, 2 * width, bias=False)
        self.depthwise_conv = DepthwiseConvolution(width, kernel_size, left=kernel_size - 1, bias=False)
        self.depthwise_layer_norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.pointwise_conv2 = PointwiseConvolution(width, width, bias=False)

    def forward(self, hidden_states: Tensor, attention_mask: FrameMask) -> Tensor:
        """(B, T, D) to (B, T, D); the signature is the library's."""
        gated = by_rows(self._gate, hidden_states)
        return by_rows(self._project, attention_mask.over_clips(self.depthwise_conv, gated))

    def _gate(self, rows: Tensor) -> Tensor:
        return F.glu(self.pointwise_conv1(self.layer_norm(rows)), dim=-1)

    def _project(self, rows: Tensor) -> Tensor:
        return self.pointwise_conv2(F.silu(self.depthwise_layer_norm(rows), inplace=True))


class FeedForward(nn.Module):
    """Linear, Swish, Linear."""

    def __init__(self, config: Wav2Vec2BertConfig) -> None:
        super().__init__()
        self.intermediate_dense = Linear(config.hidden_size, config.intermediate_size)
        self.output_dense = Linear(config.intermediate_size, config.hidden_size)

    def forward(self, hidden_states: Tensor) -> Tensor:
        return by_rows(self._rows, hidden_states)

    def _rows(self, rows: Tensor) -> Tensor:
        return self.output_dense(F.silu(self.intermediate_dense(rows), inplace=True))


class SemanticEncoder(nn.Module):
    """The 17 layers and the normalisation by `mean` (D,) and `std` (D,)."""

    def __init__(self, config: SemanticEncoderConfig) -> None:
        super().__init__()
        from transformers import Wav2Vec2BertModel

        library_config = config.library_config()
        with torch.device("meta"):
            self.model = Wav2Vec2BertModel(library_config)
            for layer in self.model.encoder.layers:
                layer.self_attn = RelativeKeyAttention(library_config)
                layer.conv_module = CausalConvolution(library_config)
                layer.ffn1 = FeedForward(library_config)
                layer.ffn2 = FeedForward(library_config)
            self.mean = nn.Parameter(torch.empty(library_config.hidden_size))
            self.std = nn.Parameter(torch.empty(library_config.hidden_size))

    def forward(self, input_features: Tensor, mask: FrameMask) -> Tensor:
        """Input features (B, T, 160) float32 to normalised semantic features (B, T, D) float32."""
        hidden = self.model.feature_projection(input_features)[0]
        for layer in self.model.encoder.layers:
            output = layer(hidden, attention_mask=mask, conv_attention_mask=mask)
            hidden = output[0] if isinstance(output, tuple) else output
        return (hidden - self.mean) / self.std
