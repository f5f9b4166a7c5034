"""The semantic codec on a GPU: `hfprep.models.semantic_codec` with the steps between matmuls fused.

Provides `FusedSemanticCodec`, made from a `SemanticCodec`. The quantizer is not fused, and float32.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from hfprep.models.kernels.operators import (
    FLOAT,
    Depthwise,
    Form,
    Norm,
    Product,
    activated,
    added,
    finished,
    in_form,
    normed,
)
from hfprep.models.masking import FrameMask, TimeMask
from hfprep.models.semantic_codec import KERNEL_SIZE, SemanticCodec

ROWS_PER_PIECE = 1 << 14


class _Block(nn.Module):
    """See `semantic_codec.ConvNeXtBlock`; x (rows, C) float32 to the same."""

    gamma: Tensor

    def __init__(self, block: Any, form: Form) -> None:
        super().__init__()
        self.form = form
        self.time_mask = TimeMask()
        self.depthwise = Depthwise(block.depthwise, block.norm, silu=False)
        self.expand, self.contract = Product.of(block.expand, form), Product.of(block.contract, form)
        self.register_buffer("gamma", block.gamma.detach())

    def forward(self, x: Tensor, mask: FrameMask) -> Tensor:
        frames = x.unflatten(0, (-1, mask.num_frames))
        rows = self.depthwise(frames, self.time_mask.lengths(mask), self.form)
        branch = self.contract(activated(self.expand(rows), "gelu", self.form))
        return added(x, branch, None, None, gamma=self.gamma)[0]


class _InputConvolution(nn.Module):
    """See `semantic_codec.InputConvolution`: a matmul over windows of seven frames."""

    def __init__(self, plain: Any, form: Form) -> None:
        super().__init__()
        self.form = form
        self.time_mask = TimeMask()
        self.product = Product(plain.weight.transpose(1, 2).flatten(1), plain.bias, form)  # (C, 7 * D)

    def forward(self, x: Tensor, mask: FrameMask) -> Tensor:
        """(B, T, D) to (B * T, C)."""
        margin = KERNEL_SIZE // 2
        real = torch.arange(mask.num_frames, device=x.device) < self.time_mask.lengths(mask)[:, None]
        padded = nn.functional.pad(x.where(real[:, :, None], 0.0), (0, 0, margin, margin))
        windows = padded.unfold(1, KERNEL_SIZE, 1).transpose(2, 3)  # (B, T, 7, D), a view
        clips = max(1, ROWS_PER_PIECE // mask.num_frames)
        pieces = (piece.flatten(2).flatten(0, 1) for piece in windows.split(clips))
        return torch.cat([finished(self.product(in_form(piece, self.form))) for piece in pieces])


class FusedSemanticCodec(nn.Module):
    """Normalised semantic features (B, T, D) float32 to codes (B, T) int64; codes of padding are undefined."""

    def __init__(self, codec: SemanticCodec, form: Form) -> None:
        super().__init__()
        self.form = form
        self.embed = _InputConvolution(codec.embed, form)
        self.norm, self.norm_final = Norm(codec.norm), Norm(codec.norm_final)
        self.blocks = nn.ModuleList(_Block(block, form) for block in codec.blocks)
        self.out = Product.of(codec.out, form)
        self.quantizer = codec.quantizer

    def forward(self, semantic: Tensor, mask: FrameMask) -> Tensor:
        x = normed(self.embed(semantic, mask), self.norm, FLOAT).values
        for block in self.blocks:
            x = block(x, mask)
        out = finished(self.out(normed(x, self.norm_final, self.form)))
        return self.quantizer(out.unflatten(0, (-1, mask.num_frames)))
