"""The arithmetic that every model shares: products, depthwise convolution over time, attention.

Takes and gives plain tensors, frames last but one and channels last (B, T, C). Knows nothing of masks, names or files.
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

# Rows of frames that a CPU computes at once: enough for products of them to run at full rate, few enough for what is
# made of a piece to be memory that the process keeps (beyond 32 MB the system gives it again each time). The number of
# rows is rounded up to one of a few sizes, because oneDNN keeps about 1 MB of compiled code for every shape of a
# product that it has met: over clips of all lengths that was 2 GB.
ROWS_PER_PIECE = 1024
FEW_ROWS = 256
ROUNDING = 16  # few rows are rounded up to a multiple of it, more of them to a multiple of twice as many


def row_pieces(rows: int, most: int = ROWS_PER_PIECE) -> tuple[int, int]:
    """Into which pieces of at most `most` rows (a multiple of 2 * ROUNDING) a CPU cuts this many rows.

    Gives the size of a piece, and the rows rounded up to what the pieces need.
    """
    pieces = -(-rows // most)
    quantum = ROUNDING if rows <= pieces * FEW_ROWS else 2 * ROUNDING
    size = -(-rows // (pieces * quantum)) * quantum
    return size, -(-rows // quantum) * quantum


def in_pieces(x: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """All frames of x (..., I) as rows, a piece at a time: which rows they are, and the rows (n, I) themselves.

    On a CPU a piece has one of a few sizes, so the last may go on after the rows that it stands for; elsewhere all
    rows are one piece.
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
    """Each target (..., O) = its part of what a function of single frames, (rows, I) to several (rows, O), makes of
    source (..., I), which may be a target.
    """
    written = [target.view(-1, target.shape[-1]) for target in targets]
    for these, rows in in_pieces(source):
        for target, values in zip(written, function(rows), strict=True):
            target[these] = values[: these.stop - these.start]


def add_by_rows(
    target: Tensor, function: Callable[[Tensor], Tensor], source: Tensor | None = None, *, scale: float = 1.0
) -> None:
    """target (..., O) += scale * function of single frames, (rows, I) to (rows, O), of source (..., I) or of target."""
    sums = target.view(-1, target.shape[-1])
    for these, rows in in_pieces(target if source is None else source):
        sums[these].add_(function(rows)[: these.stop - these.start], alpha=scale)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x (..., I) times weight (O, I) transposed, plus bias (O,): (..., O) float32.

    On a CPU `weight` must be contiguous: oneDNN is slow beyond use on a slice of columns.
    """
    if x.device.type != "cpu":
        return product(x, weight, bias)
    contiguous = weight.contiguous()
    return by_rows(lambda rows: product(rows, contiguous, bias), x)


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """The same at once: for rows that are a piece already.

    On a CPU oneDNN computes it where torch has it: torch's own float32 products go through MKL, which reaches half of
    oneDNN's rate on AMD processors with AVX-512, and no more than it elsewhere.
    """
    if weight.dtype == torch.bfloat16:
        return half_linear(x, weight, bias)
    if x.device.type == "cpu" and x.dtype == torch.float32 and has_onednn_linear():
        result: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
        return result
    return F.linear(x, weight, bias)


@functools.cache
def has_onednn_linear() -> bool:
    """Whether torch was built with the operator that its own compiler uses for products on a CPU."""
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


class Scratch:
    """Room for an intermediate result that is written over by the next: the system gives fresh memory slowly.

    Every thread has room of its own.
    """

    def __init__(self) -> None:
        self._rooms: dict[int, Tensor] = {}

    def take(self, shape: tuple[int, ...], like: Tensor) -> Tensor:
        """A tensor of that shape, of the type and on the device of `like`, with anything in it; until the next call."""
        size, thread = math.prod(shape), threading.get_ident()
        room = self._rooms.get(thread)
        if room is None or room.numel() < size or room.dtype != like.dtype or room.device != like.device:
            room = self._rooms[thread] = like.new_empty(size)
        return room[:size].view(shape)


class Linear(nn.Linear):
    """An affine map by `linear`; parameters `weight` (O, I) and `bias` (O,) as in torch."""

    PRODUCT_WEIGHTS = ("weight",)

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


class PointwiseConvolution(nn.Module):
    """A convolution of kernel 1, computed as a product; `weight` (O, I, 1) as the checkpoints hold it."""

    PRODUCT_WEIGHTS = ("weight",)

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

    def forward(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        """(B, T, C) to (B, T, C); into `out`, if given, which must not be `x`."""
        if x.device.type != "cpu":
            padded = F.pad(x.transpose(1, 2), (self.left, self.kernel_size - 1 - self.left))
            result = F.conv1d(padded, self.weight, self.bias, groups=x.shape[-1]).transpose(1, 2)
            return result if out is None else out.copy_(result)
        # Channels are innermost here, so a sum over the kernel's taps runs along memory: faster than a convolution.
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
