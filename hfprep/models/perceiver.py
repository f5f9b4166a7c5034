"""The Perceiver resampler: a few learned latents summarise an encoded clip of any length.

Provides `Perceiver`: frames (B, T, C) to latents (B, L, M). The FrameMask is of the frames; the latents are never
masked. Source: Jaegle et al. 2021, as published for IndexTTS-2.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hfprep.models.masking import FrameMask, KeyMask
from hfprep.models.operators import Linear, join_heads, split_heads
from hfprep.models.precision import attend

HEAD_WIDTH = 64
DEPTH = 2


class CrossAttention(nn.Module):
    """The latents attend to themselves and to the frames."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        inner = num_heads * HEAD_WIDTH
        self.query = Linear(width, inner, bias=False)
        self.key_value = Linear(width, 2 * inner, bias=False)
        self.out = Linear(inner, width, bias=False)
        self.key_mask = KeyMask()

    def forward(self, latents: Tensor, context: Tensor, mask: FrameMask) -> Tensor:
        """latents (B, L, M), context (B, T, M) to (B, L, M)."""
        bias = self.key_mask(mask)
        if bias is not None:
            bias = F.pad(bias, (latents.shape[1], 0)).expand(-1, self.num_heads, latents.shape[1], -1)
        clips = mask.clips(self.key_value(context))
        queries, own = (part.tensor_split(len(clips)) for part in (self.query(latents), self.key_value(latents)))
        attended = [
            self._attend(query, torch.cat([key_value, clip], dim=1), bias)
            for query, key_value, clip in zip(queries, own, clips, strict=True)
        ]
        return self.out(torch.cat(attended))

    def _attend(self, query: Tensor, key_value: Tensor, bias: Tensor | None) -> Tensor:
        """Queries (B, L, C) of the latents, keys and values (B, L + T, 2 C), to (B, L, C)."""
        query = split_heads(query, self.num_heads)
        key, value = (split_heads(part, self.num_heads) for part in key_value.chunk(2, dim=-1))
        return join_heads(attend(query, key, value, bias))


class GatedFeedForward(nn.Module):
    """Linear to two halves, the first times GELU of the second, Linear back."""

    def __init__(self, width: int, mult: int) -> None:
        super().__init__()
        inner = int(width * mult * 2 / 3)
        self.expand = Linear(width, 2 * inner)
        self.contract = Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.expand(x).chunk(2, dim=-1)
        return self.contract(value * F.gelu(gate))


class PerceiverLayer(nn.Module):
    """Attention and feed-forward, each added to its input."""

    def __init__(self, width: int, num_heads: int, mult: int) -> None:
        super().__init__()
        self.attention = CrossAttention(width, num_heads)
        self.feed_forward = GatedFeedForward(width, mult)

    def forward(self, latents: Tensor, context: Tensor, mask: FrameMask) -> Tensor:
        latents = latents + self.attention(latents, context, mask)
        return latents + self.feed_forward(latents)


class RootMeanSquareNorm(nn.Module):
    """x / ||x|| * sqrt(width) * gamma."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.empty(width))

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(x, dim=-1) * math.sqrt(x.shape[-1]) * self.gamma


class Perceiver(nn.Module):
    """Projects the frames to the latents' width, runs the layers, normalises."""

    def __init__(self, *, context_width: int, width: int, num_latents: int, num_heads: int, mult: int) -> None:
        super().__init__()
        self.latents = nn.Parameter(torch.empty(num_latents, width))
        self.project = Linear(context_width, width) if context_width != width else nn.Identity()
        self.layers = nn.ModuleList(PerceiverLayer(width, num_heads, mult) for _ in range(DEPTH))
        self.norm = RootMeanSquareNorm(width)

    def forward(self, context: Tensor, mask: FrameMask) -> Tensor:
        """Frames (B, T, C) float32 to latents (B, L, M) float32."""
        context = self.project(context)
        latents = self.latents.expand(len(mask.lengths), -1, -1)
        for layer in self.layers:
            latents = layer(latents, context, mask)
        return self.norm(latents)
