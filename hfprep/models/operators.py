"""The arithmetic that every model shares: products, depthwise convolution over time, attention.

Takes and gives plain tensors, frames last but one and channels last (B, T, C). Knows nothing of masks, names or files.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x (..., I) times weight (O, I) transposed, plus bias (O,): (..., O) float32."""
    return F.linear(x, weight, bias)


class Linear(nn.Linear):
    """An affine map by `linear`; parameters `weight` (O, I) and `bias` (O,) as in torch."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


class PointwiseConvolution(nn.Module):
    """A convolution of kernel 1, computed as a product; `weight` (O, I, 1) as the checkpoints hold it."""

    def __init__(self, in_channels: int, out_channels: int, *, bias: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels, 1))
        self.bias = nn.Parameter(torch.empty(out_channels)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight[:, :, 0], self.bias)


class DepthwiseConvolution(nn.Module):
    """A convolution over time of each channel on its own; `weight` (C, 1, K) as the checkpoints hold it.

    `left` zeros are put before the first frame and K - 1 - left after the last, so that the length stays.
    """

    def __init__(self, channels: int, kernel_size: int, *, left: int, bias: bool = True) -> None:
        super().__init__()
        self.kernel_size, self.left = kernel_size, left
        self.weight = nn.Parameter(torch.empty(channels, 1, kernel_size))
        self.bias = nn.Parameter(torch.empty(channels)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        padded = F.pad(x.transpose(1, 2), (self.left, self.kernel_size - 1 - self.left))
        return F.conv1d(padded, self.weight, self.bias, groups=x.shape[-1]).transpose(1, 2)


def split_heads(x: Tensor, num_heads: int) -> Tensor:
    """(B, T, H * d) to (B, H, T, d), a view."""
    return x.unflatten(-1, (num_heads, -1)).transpose(1, 2)


def join_heads(x: Tensor) -> Tensor:
    """(B, H, T, d) to (B, T, H * d)."""
    return x.transpose(1, 2).flatten(-2)
