"""Operators that the models share: matmuls, depthwise convolution over time, attention heads.

Tensors are (B, T, C), with channels last.
"""

from __future__ import annotations

import functools
import math
import threading
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hfprep.models.precision import half_linear

# Frames that a CPU computes at once: enough for matmuls at full rate, but few enough that the allocator reuses the
# memory of the results (larger allocations than 32 MB are mapped again each time). The number is rounded up to one of a
# few sizes, because oneDNN keeps about 1 MB of compiled code for every matmul shape: for clips of all lengths, that was
# 2 GB.
ROWS_PER_PIECE = 1024
FEW_ROWS = 256
ROUNDING = 16  # up to FEW_ROWS are rounded up to a multiple of this, more rows to a multiple of twice this


def row_pieces(rows: int, most: int = ROWS_PER_PIECE) -> tuple[int, int]:
    """Split `rows` into pieces of at most `most` rows (a multiple of 2 * ROUNDING) for a CPU.

    Returns the size of a piece, and the number of rows rounded up for the pieces.
    """
    pieces = -(-rows // most)
    quantum = ROUNDING if rows <= pieces * FEW_ROWS else 2 * ROUNDING
    size = -(-rows // (pieces * quantum)) * quantum
    return size, -(-rows // quantum) * quantum


def in_pieces(x: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """All frames of x (..., I) as rows, in pieces: the slice of a piece, and its rows (n, I).

    On a CPU a piece has one of a few sizes, so the last one may be zero-padded; elsewhere all rows are one piece.
    """
    rows = x.flatten(0, -2)
    count = rows.shape[0]
    size, rounded = row_pieces(count) if x.device.type == "cpu" else (count, count)
    for start in range(0, rounded, size):
        piece = rows[start : start + size]
        missing = min(size, rounded - start) - piece.shape[0]
        yield slice(start, min(start + size, count)), F.pad(piece, (0, 0, 0, missing)) if missing else piece


def by_rows(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Apply a function of single frames, (rows, I) to (rows, O), to all frames of x (..., I): (..., O)."""
    results = [function(rows) for _, rows in in_pieces(x)]
    joined = results[0] if len(results) == 1 else torch.cat(results)
    return joined[: math.prod(x.shape[:-1])].unflatten(0, x.shape[:-1])


def write_by_rows(targets: Sequence[Tensor], function: Callable[[Tensor], Sequence[Tensor]], source: Tensor) -> None:
    """Write the results of a function of single frames, (rows, I) to several (rows, O), to the targets (..., O).

    It is applied to source (..., I), which may be one of the targets.
    """
    written = [target.view(-1, target.shape[-1]) for target in targets]
    for these, rows in in_pieces(source):
        for target, values in zip(written, function(rows), strict=True):
            target[these] = values[: these.stop - these.start]


def add_by_rows(
    target: Tensor, function: Callable[[Tensor], Tensor], source: Tensor | None = None, *, scale: float = 1.0
) -> None:
    """target (..., O) += scale * function(source or target), a function of frames, (rows, I) to (rows, O)."""
    sums = target.view(-1, target.shape[-1])
    for these, rows in in_pieces(target if source is None else source):
        sums[these].add_(function(rows)[: these.stop - these.start], alpha=scale)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x (..., I) times weight (O, I) transposed, plus bias (O,): (..., O) float32.

    On a CPU, `weight` should be contiguous: oneDNN is extremely slow on a slice of columns.
    """
    if x.device.type != "cpu":
        return product(x, weight, bias)
    contiguous = weight.contiguous()
    return by_rows(lambda rows: product(rows, contiguous, bias), x)


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """The same without splitting, for rows that are a piece.

    On a CPU it uses oneDNN if available: torch's own float32 matmuls use MKL, which is half as fast on AMD processors
    with AVX-512, and not faster on others.
    """
    if weight.dtype == torch.bfloat16:
        return half_linear(x, weight, bias)
    if x.device.type == "cpu" and x.dtype == torch.float32 and has_onednn_linear():
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return F.linear(x, weight, bias)


@functools.cache
def has_onednn_linear() -> bool:
    """Whether torch was built with the oneDNN operator that torch.compile uses for linear layers on a CPU."""
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


class Scratch:
    """A reusable buffer for intermediate results, because allocating fresh memory is slow.

    Each thread has its own buffer.
    """

    def __init__(self) -> None:
        self._buffers: dict[int, Tensor] = {}

    def take(self, shape: tuple[int, ...], like: Tensor) -> Tensor:
        """An uninitialised tensor of this shape with the dtype and device of `like`, valid until the next call."""
        size, thread = math.prod(shape), threading.get_ident()
        buffer = self._buffers.get(thread)
        if buffer is None or buffer.numel() < size or buffer.dtype != like.dtype or buffer.device != like.device:
            buffer = self._buffers[thread] = like.new_empty(size)
        return buffer[:size].view(shape)


class Linear(nn.Linear):
    """nn.Linear that uses `linear`."""

    PRODUCT_WEIGHTS = ("weight",)

    def reset_parameters(self) -> None:
        """Draw random numbers, but none on the meta device, where torch would spend 0.2 ms on them."""
        if not self.weight.is_meta:
            super().reset_parameters()

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


class PointwiseConvolution(nn.Module):
    """A convolution of kernel size 1, computed as a matmul; `weight` (O, I, 1) as in the checkpoints."""

    PRODUCT_WEIGHTS = ("weight",)

    def __init__(self, in_channels: int, out_channels: int, *, bias: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels, 1))
        self.bias = nn.Parameter(torch.empty(out_channels)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight[:, :, 0], self.bias)


class DepthwiseConvolution(nn.Module):
    """A depthwise convolution over time; `weight` (C, 1, K) as in the checkpoints.

    Pads with `left` zeros before the first frame and K - 1 - left after the last, which keeps the length.
    """

    def __init__(self, channels: int, kernel_size: int, *, left: int, bias: bool = True) -> None:
        super().__init__()
        self.kernel_size, self.left = kernel_size, left
        self.weight = nn.Parameter(torch.empty(channels, 1, kernel_size))
        self.bias = nn.Parameter(torch.empty(channels)) if bias else None

    def forward(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        """(B, T, C) to (B, T, C), written to `out` if given, which must not be `x`."""
        if x.device.type != "cpu":
            padded = F.pad(x.transpose(1, 2), (self.left, self.kernel_size - 1 - self.left))
            result = F.conv1d(padded, self.weight, self.bias, groups=x.shape[-1]).transpose(1, 2)
            return result if out is None else out.copy_(result)
        # Channels are innermost, so summing over taps reads memory in order, which is faster than a convolution.
        padded = F.pad(x, (0, 0, self.left, self.kernel_size - 1 - self.left))
        taps = self.weight[:, 0].t().contiguous()  # (K, C)
        frames = x.shape[1]
        if self.bias is None:
            out = torch.mul(padded[:, :frames], taps[0], out=out)
        else:
            out = torch.addcmul(self.bias, padded[:, :frames], taps[0], out=out)
        for tap in range(1, self.kernel_size):
            out.addcmul_(padded[:, tap : tap + frames], taps[tap])
        return out


def split_heads(x: Tensor, num_heads: int) -> Tensor:
    """(B, T, H * d) to (B, H, T, d), a view."""
    return x.unflatten(-1, (num_heads, -1)).transpose(1, 2)


def join_heads(x: Tensor) -> Tensor:
    """(B, H, T, d) to (B, T, H * d)."""
    return x.transpose(1, 2).flatten(-2)
