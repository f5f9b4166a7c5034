"""The semantic encoder: the first 17 layers of w2v-bert-2.0, and the normalisation of their output.

Provides `SemanticEncoder`: input features (B, T, 160) to semantic features (B, T, D). The layers are the library's,
with the same names, but change the hidden states in place: on a CPU, allocating new memory for every step took 5 % of
the time.
Source: Seamless Communication 2023; transformers' Wav2Vec2BertModel.
"""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hfprep.models.configs import NUM_LAYERS, SemanticEncoderConfig
from hfprep.models.input_features import FEATURE_DIM
from hfprep.models.masking import FrameMask, KeyMask
from hfprep.models.operators import (
    DepthwiseConvolution,
    Linear,
    PointwiseConvolution,
    Scratch,
    add_by_rows,
    product,
    split_heads,
    write_by_rows,
)
from hfprep.models.precision import attend

# The fewest queries of a clip per attention call, unless it has fewer: torch's attention on a CPU uses blocks of 64
# queries, but only 32 if there are fewer than 192.
LEAST_QUERIES = 384


def bias_piece(device: torch.device) -> int:
    """How many numbers of the positional bias (clips x heads x queries x keys) are computed at once.

    It is at least the bias of `LEAST_QUERIES`; that of a whole clip of 50 s is 400 MB. On a CPU a piece stays in the
    cache; a GPU needs larger pieces.
    """
    return 1 << 21 if device.type == "cpu" else 1 << 27


def relative_bias(products: Tensor, *, left: int, first: int, num_keys: int, scratch: Scratch | None = None) -> Tensor:
    """The positional part of the scores of consecutive queries against all keys.

    `products` (B, H, Q, left + right + 1) are the inner products of the queries first, first + 1, ... with the table's
    row for each clamped distance key - query. Returns a view (B, H, Q, num_keys) of a buffer that is num_keys + Q - 1
    wide, in `scratch` if given. From one query to the next all distances shift by one, so each row of the bias is a
    shifted window of the products with their ends repeated, and no gather of size (Q, num_keys) is needed.
    """
    batch, heads, queries, distances = products.shape
    lowest, highest = -(first + queries - 1), num_keys - 1 - first  # distances that occur
    right = distances - 1 - left
    inner = products[..., max(lowest, -left) + left : min(highest, right) + left + 1]
    parts = [
        products[..., :1].expand(-1, -1, -1, max(0, -left - lowest)),
        inner,
        products[..., -1:].expand(-1, -1, -1, max(0, highest - right)),
    ]
    width = num_keys + queries - 1
    buffer = None if scratch is None else scratch.take((batch, heads, queries, width), products)
    row = torch.cat(parts, dim=-1, out=buffer)
    strides = (heads * queries * width, queries * width, width - 1, 1)
    return row.as_strided((batch, heads, queries, num_keys), strides, queries - 1)


class RelativeKeyAttention(nn.Module):
    """Self-attention with `relative_key` positions: score(i, j) = q_i . (k_j + table[clamp(j - i)]) / sqrt(d)."""

    def __init__(self, config: SemanticEncoderConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.num_heads = config.num_attention_heads
        self.left = config.left_max_position_embeddings
        self.linear_q = Linear(width, width)
        self.linear_k = Linear(width, width)
        self.linear_v = Linear(width, width)
        self.linear_out = Linear(width, width)
        distances = self.left + config.right_max_position_embeddings + 1
        # from_pretrained: drawing random weights would import torch's compiler.
        self.distance_embedding = nn.Embedding.from_pretrained(torch.empty(distances, width // self.num_heads))
        self.key_mask = KeyMask()
        self.scratch = Scratch()

    def add_to(self, hidden: Tensor, norm: nn.Module, mask: FrameMask, buffer: Tensor) -> None:
        """Add to `hidden` (B, T, D) the attention over its normalised frames; `buffer` (3, B, T, D) is overwritten."""
        queries, keys, values = buffer
        table = self.distance_embedding.weight / math.sqrt(self.distance_embedding.weight.shape[-1])
        distances, width = table.shape
        products = hidden.new_empty(*hidden.shape[:2], self.num_heads * distances)

        def project(rows: Tensor) -> tuple[Tensor, ...]:
            normed = norm(rows)
            query = self.linear_q(normed)
            of_heads = product(query.view(-1, width), table).view(len(rows), -1)
            return query, self.linear_k(normed), self.linear_v(normed), of_heads

        write_by_rows([queries, keys, values, products], project, hidden)
        key_bias = self.key_mask(mask)
        for clip in mask.every_clip(queries, keys, values, products):
            query, key, value, biases = (split_heads(part, self.num_heads) for part in clip)
            self._attend(query, key, value, biases, key_bias)
        add_by_rows(hidden, self.linear_out, queries)

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, products: Tensor, key_bias: Tensor | None) -> None:
        """Overwrite queries (B, H, T, d) with their attention output; `products` is (B, H, T, distances)."""
        batch, _heads, frames, _width = query.shape
        clips, length = self._piece(query)
        scratch = self.scratch if query.device.type == "cpu" else None  # allocating is fast on a GPU, and memory scarce
        for clip, first in itertools.product(range(0, batch, clips), range(0, frames, length)):
            these, run = slice(clip, clip + clips), slice(first, first + length)
            part = products[these, :, run]
            bias = relative_bias(part, left=self.left, first=first, num_keys=frames, scratch=scratch)
            if key_bias is not None:
                bias = bias + key_bias[these]
            elif bias.device.type != "cpu":  # rows of a window are not aligned, as GPU kernels need
                bias = bias.contiguous()
            query[these, :, run] = attend(query[these, :, run], key[these], value[these], bias)

    def _piece(self, query: Tensor) -> tuple[int, int]:
        """How many clips, and how many queries of each, are computed at once."""
        batch, heads, frames, _ = query.shape
        piece = bias_piece(query.device)
        clips = min(batch, max(1, piece // (heads * frames * frames)))
        pieces = -(-frames // max(LEAST_QUERIES, piece // (clips * heads * frames)))
        return clips, -(-frames // pieces)


class CausalConvolution(nn.Module):
    """LayerNorm, 1x1 convolution, GLU, depthwise convolution over the past, LayerNorm, Swish, 1x1 convolution.

    It is causal, so padding at the end does not affect real frames and needs no mask.
    """

    def __init__(self, config: SemanticEncoderConfig) -> None:
        super().__init__()
        width, kernel_size = config.hidden_size, config.conv_depthwise_kernel_size
        self.layer_norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.pointwise_conv1 = PointwiseConvolution(width, 2 * width, bias=False)
        self.depthwise_conv = DepthwiseConvolution(width, kernel_size, left=kernel_size - 1, bias=False)
        self.depthwise_layer_norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.pointwise_conv2 = PointwiseConvolution(width, width, bias=False)

    def add_to(self, hidden: Tensor, mask: FrameMask, buffer: Tensor) -> None:
        """Add to `hidden` (B, T, D) the convolution of its frames; `buffer` (3, B, T, D) is overwritten."""
        gated, convolved, _ = buffer
        write_by_rows([gated], lambda rows: [F.glu(self.pointwise_conv1(self.layer_norm(rows)), dim=-1)], hidden)
        for clip, to in mask.every_clip(gated, convolved):
            self.depthwise_conv(clip, to)
        add_by_rows(hidden, self._project, convolved)

    def _project(self, rows: Tensor) -> Tensor:
        return self.pointwise_conv2(F.silu(self.depthwise_layer_norm(rows), inplace=True))


class FeedForward(nn.Module):
    """Linear, Swish, Linear, of rows (n, D)."""

    def __init__(self, config: SemanticEncoderConfig) -> None:
        super().__init__()
        self.intermediate_dense = Linear(config.hidden_size, config.intermediate_size)
        self.output_dense = Linear(config.intermediate_size, config.hidden_size)

    def forward(self, rows: Tensor) -> Tensor:
        return self.output_dense(F.silu(self.intermediate_dense(rows), inplace=True))


class EncoderLayer(nn.Module):
    """Half a feed-forward, attention, convolution, half a feed-forward, each added to its input; then a norm."""

    def __init__(self, config: SemanticEncoderConfig) -> None:
        super().__init__()
        width, eps = config.hidden_size, config.layer_norm_eps
        self.ffn1_layer_norm, self.ffn1 = nn.LayerNorm(width, eps=eps), FeedForward(config)
        self.self_attn_layer_norm, self.self_attn = nn.LayerNorm(width, eps=eps), RelativeKeyAttention(config)
        self.conv_module = CausalConvolution(config)
        self.ffn2_layer_norm, self.ffn2 = nn.LayerNorm(width, eps=eps), FeedForward(config)
        self.final_layer_norm = nn.LayerNorm(width, eps=eps)

    def forward(self, hidden: Tensor, mask: FrameMask, buffer: Tensor) -> None:
        """Change `hidden` (B, T, D) in place; `buffer` (3, B, T, D) is overwritten."""
        add_by_rows(hidden, lambda rows: self.ffn1(self.ffn1_layer_norm(rows)), scale=0.5)
        self.self_attn.add_to(hidden, self.self_attn_layer_norm, mask, buffer)
        self.conv_module.add_to(hidden, mask, buffer)
        add_by_rows(hidden, lambda rows: self.ffn2(self.ffn2_layer_norm(rows)), scale=0.5)
        write_by_rows([hidden], lambda rows: [self.final_layer_norm(rows)], hidden)


class FeatureProjection(nn.Module):
    """LayerNorm and Linear: input features (B, T, 160) to hidden states (B, T, D)."""

    def __init__(self, config: SemanticEncoderConfig) -> None:
        super().__init__()
        self.layer_norm = nn.LayerNorm(FEATURE_DIM, eps=config.layer_norm_eps)
        self.projection = nn.Linear(FEATURE_DIM, config.hidden_size)

    def forward(self, input_features: Tensor) -> Tensor:
        return self.projection(self.layer_norm(input_features))


class SemanticEncoder(nn.Module):
    """The 17 layers and the normalisation by `mean` (D,) and `std` (D,)."""

    def __init__(self, config: SemanticEncoderConfig) -> None:
        super().__init__()
        with torch.device("meta"):
            self.feature_projection = FeatureProjection(config)
            layers = [EncoderLayer(config) for _ in range(NUM_LAYERS)]
            self.layers = nn.ModuleList(layers)
            self.mean = nn.Parameter(torch.empty(config.hidden_size))
            self.std = nn.Parameter(torch.empty(config.hidden_size))
        for layer in layers:  # they run one after another, so they can share a buffer
            layer.self_attn.scratch = layers[0].self_attn.scratch

    def forward(self, input_features: Tensor, mask: FrameMask) -> Tensor:
        """Input features (B, T, 160) float32 to normalised semantic features (B, T, D) float32."""
        hidden = self.feature_projection(input_features)
        buffer = hidden.new_empty(3, *hidden.shape)
        for layer in self.layers:
            layer(hidden, mask, buffer)
        return hidden.sub_(self.mean).div_(self.std)
