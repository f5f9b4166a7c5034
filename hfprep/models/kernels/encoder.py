"""The semantic encoder on a GPU: `hfprep.models.semantic_encoder` with the steps between matmuls fused.

Provides `FusedSemanticEncoder`, made from a `SemanticEncoder`. The queries' products with the distance table are extra
columns of the matmul for queries, keys and values: x W_q^T table^T = x (table W_q)^T.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from hfprep.models.kernels.operators import (
    FLOAT,
    LOG2E,
    Depthwise,
    Form,
    Heads,
    Norm,
    Product,
    Rows,
    activated,
    added,
    attend,
    finished,
    in_form,
    normed,
)
from hfprep.models.masking import FrameMask, KeyMask
from hfprep.models.semantic_encoder import SemanticEncoder

SLOTS = 8  # the number of distance columns per head is a multiple of this, so that rows are aligned


class _Attention(nn.Module):
    def __init__(self, attention: Any, form: Form) -> None:
        super().__init__()
        self.num_heads, self.left = attention.num_heads, attention.left
        self.width = attention.linear_q.weight.shape[0] // self.num_heads
        self.right = len(attention.distance_embedding.weight) - 1 - self.left
        table = attention.distance_embedding.weight * (LOG2E / math.sqrt(self.width))
        self.slots = -(-len(table) // SLOTS) * SLOTS
        table = nn.functional.pad(table, (0, 0, 0, self.slots - len(table)))  # (slots, d)
        projections = [attention.linear_q, attention.linear_k, attention.linear_v]
        query = projections[0]
        heads = query.weight.unflatten(0, (self.num_heads, self.width))
        weights = [part.weight for part in projections] + [torch.einsum("pd,hdi->hpi", table, heads).flatten(0, 1)]
        biases = [part.bias for part in projections]
        biases += [(query.bias.view(self.num_heads, self.width) @ table.t()).flatten()]
        self.project = Product(torch.cat(weights), torch.cat(biases), form)
        self.out = Product.of(attention.linear_out, form)
        self.key_mask = KeyMask()

    def forward(self, rows: Rows, mask: FrameMask, form: Form) -> Any:
        values = finished(self.project(rows)).unflatten(0, (-1, mask.num_frames))
        query, key, value = Heads.thirds(values, self.num_heads, self.width)
        products = Heads(values, 3 * self.num_heads * self.width, self.slots)
        attended = attend(
            query, key, value, self.key_mask.lengths(mask), num_heads=self.num_heads,
            distances=(products, self.left, self.right),
        )  # fmt: skip
        return self.out(in_form(attended, form))


class _FeedForward(nn.Module):
    def __init__(self, feed_forward: Any, form: Form) -> None:
        super().__init__()
        self.expand = Product.of(feed_forward.intermediate_dense, form)
        self.contract = Product.of(feed_forward.output_dense, form)

    def forward(self, rows: Rows, form: Form) -> Any:
        return self.contract(activated(self.expand(rows), "silu", form))


class _Layer(nn.Module):
    """One layer: x (rows, D) float32 to the same."""

    def __init__(self, layer: Any, form: Form) -> None:
        super().__init__()
        self.form = form
        self.ffn1_norm, self.ffn2_norm = Norm(layer.ffn1_layer_norm), Norm(layer.ffn2_layer_norm)
        self.attention_norm, self.final_norm = Norm(layer.self_attn_layer_norm), Norm(layer.final_layer_norm)
        self.ffn1, self.ffn2 = _FeedForward(layer.ffn1, form), _FeedForward(layer.ffn2, form)
        self.attention = _Attention(layer.self_attn, form)
        convolution = layer.conv_module
        self.convolution_norm = Norm(convolution.layer_norm)
        self.gate = Product.of(convolution.pointwise_conv1, form)
        self.depthwise = Depthwise(convolution.depthwise_conv, convolution.depthwise_layer_norm, silu=True)
        self.project = Product.of(convolution.pointwise_conv2, form)

    def forward(self, x: Tensor, mask: FrameMask) -> Tensor:
        form = self.form
        branch = self.ffn1(normed(x, self.ffn1_norm, form), form)
        x, rows = added(x, branch, self.attention_norm, form, share=0.5)
        x, rows = added(x, self.attention(rows, mask, form), self.convolution_norm, form)
        gated = activated(self.gate(rows), "glu", Form(form.result)).values.unflatten(0, (-1, mask.num_frames))
        # The convolution is causal, so padding does not affect the clip: no mask.
        branch = self.project(self.depthwise(gated, mask.all_frames, form))
        x, rows = added(x, branch, self.ffn2_norm, form)
        return added(x, self.ffn2(rows, form), self.final_norm, FLOAT, share=0.5, keep=False)[1].values


class FusedSemanticEncoder(nn.Module):
    """Input features (B, T, 160) float32 to normalised semantic features (B, T, D) float32."""

    mean: Tensor
    std: Tensor

    def __init__(self, encoder: SemanticEncoder, form: Form) -> None:
        super().__init__()
        self.feature_projection = encoder.feature_projection
        self.layers = nn.ModuleList(_Layer(layer, form) for layer in encoder.layers)
        self.register_buffer("mean", encoder.mean.detach())
        self.register_buffer("std", encoder.std.detach())

    def forward(self, input_features: Tensor, mask: FrameMask) -> Tensor:
        hidden = self.feature_projection(input_features).flatten(0, 1)
        for layer in self.layers:
            hidden = layer(hidden, mask)
        return ((hidden - self.mean) / self.std).unflatten(0, (-1, mask.num_frames))
