"""The Conformer of the two conditioning branches (UnifiedVoice's conformer_perceiver with conv2d2 input).

Provides `Conformer`: semantic features (B, T, D) to encoded frames (B, T', C), T' = (T - 1) // 2. With the FrameMask,
padding does not affect real frames.
Source: Gulati et al. 2020, as published for IndexTTS-2.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hfprep.models.configs import POSITION_ROWS, ConditionConfig
from hfprep.models.masking import FrameMask, KeyMask, TimeMask
from hfprep.models.operators import (
    DepthwiseConvolution,
    Linear,
    PointwiseConvolution,
    Scratch,
    add_by_rows,
    linear,
    product,
    row_pieces,
    split_heads,
    write_by_rows,
)
from hfprep.models.precision import attend

KERNEL_SIZE = 15

# Frames and channels of the subsampling convolution's output per piece: 134 MB on a CPU with up to seven threads, 535
# MB on a GPU.
CPU_FRAMES_PER_PIECE = 128
GPU_FRAMES_PER_PIECE, GPU_CHANNELS_PER_PIECE = 4096, 64
CACHED_FRAMES = 4  # frames of a piece computed at once, which stay in the CPU's cache
CACHE_LINE = 16  # numbers; a matmul that writes whole cache lines takes a third less time


class Subsampling(nn.Module):
    """Conv2d(1 -> C, 3x3, stride 2), ReLU, then a linear map over channels and frequencies; times sqrt(C).

    The convolution's output, 130 MB for a clip of 5 s, is computed in pieces. `scratch` is the buffer for a piece, and
    `cached` for the few frames of it that are computed at once.
    """

    PRODUCT_WEIGHTS = ("out_weight",)

    def __init__(self, input_size: int, channels: int) -> None:
        super().__init__()
        self.frequencies = (input_size - 1) // 2
        self.conv_weight = nn.Parameter(torch.empty(channels, 1, 3, 3))
        self.conv_bias = nn.Parameter(torch.empty(channels))
        self.out_weight = nn.Parameter(torch.empty(channels, channels * self.frequencies))
        self.out_bias = nn.Parameter(torch.empty(channels))
        self.scratch, self.cached = Scratch(), Scratch()

    def forward(self, x: Tensor, mask: FrameMask) -> Tensor:
        """(B, T, D) to (B, T', C). Needs no mask: an output frame is real only if its three inputs are."""
        channels = self.out_bias.shape[0]
        clips = mask.clips(x)
        frames = sum(clip.shape[0] * ((clip.shape[1] - 1) // 2) for clip in clips)
        on_cpu = x.device.type == "cpu"
        most = CPU_FRAMES_PER_PIECE * max(1, torch.get_num_threads() // 4)
        size, rounded = row_pieces(frames, most) if on_cpu else (GPU_FRAMES_PER_PIECE, frames)
        width = -(-self.frequencies // CACHE_LINE) * CACHE_LINE if on_cpu else self.frequencies
        patches = self._patches(clips, rounded, width)
        kernels = torch.cat([self.conv_weight.flatten(1), self.conv_bias[:, None]], dim=1)  # (C, 10)
        sums = self.sums_on_cpu if on_cpu else self.sums_on_gpu
        out = torch.cat([sums(kernels, piece) for piece in patches.split(size)])
        return out[:frames].mul_(math.sqrt(channels)).view(x.shape[0], -1, channels)

    def sums_on_cpu(self, kernels: Tensor, patches: Tensor) -> Tensor:
        """(C, 10) and (frames, 10, at least F) to (frames, C), for all channels at once.

        A matmul with a slice of the weights' columns would copy the slice first, at three times the cost. The weights
        (half a GB) are the first factor, because oneDNN reorders the second one, which is four times smaller here.
        """
        frames, _, width = patches.shape
        maps = self.scratch.take((frames, len(kernels), self.frequencies), patches)
        for first in range(0, frames, CACHED_FRAMES):
            these = patches[first : first + CACHED_FRAMES]
            sums = torch.matmul(kernels, these, out=self.cached.take((len(these), len(kernels), width), patches))
            torch.clamp_min(sums[..., : self.frequencies], 0, out=maps[first : first + CACHED_FRAMES])
        columns = product(self.out_weight, maps.flatten(1).to(self.out_weight.dtype))  # (C, frames)
        return columns.t().add_(self.out_bias)

    def sums_on_gpu(self, kernels: Tensor, patches: Tensor) -> Tensor:
        """The same, a few channels at a time."""
        out = self.out_bias.repeat(len(patches), 1)
        columns = GPU_CHANNELS_PER_PIECE * self.frequencies
        for kernel, weight in zip(
            kernels.split(GPU_CHANNELS_PER_PIECE), self.out_weight.split(columns, 1), strict=True
        ):
            out += linear(torch.matmul(kernel, patches).relu_().flatten(1), weight)
        return out

    def _patches(self, clips: list[Tensor], rounded: int, width: int) -> Tensor:
        """The B * T' patches (10, width) of each clip (B, T, D).

        A patch has the nine inputs of each of the F output positions, and ones for the bias; it is zero after the F
        positions.

        There are `rounded` patches; those after the last clip are zero.
        """
        buffer = clips[0].new_empty(rounded, 10, width)
        buffer[..., self.frequencies :] = 0
        rows = buffer[..., : self.frequencies]
        rows[:, 9] = 1
        start = 0
        for clip in clips:
            batch, frames = clip.shape[0], (clip.shape[1] - 1) // 2
            patches = rows[start : start + batch * frames].unflatten(0, (batch, frames))
            start += batch * frames
            for row in range(3):
                for column in range(3):
                    shifted = clip[:, row : row + 2 * frames : 2, column : column + 2 * self.frequencies : 2]
                    patches[:, :, 3 * row + column] = shifted[:, :frames, : self.frequencies]
        buffer[start:] = 0
        return buffer


class PositionalAttention(nn.Module):
    """Self-attention with the score ((q_i + u) . k_j + (q_i + v) . p_j) / sqrt(d), where p_j is the key's position.

    There is no relative shift, so the score is (q_i + u) . (k_j + p_j) + (v - u) . p_j: a fused attention with
    positions added to the keys, and a bias per key that is the same for all clips.
    """

    def __init__(self, channels: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query = Linear(channels, channels)
        self.key = Linear(channels, channels)
        self.value = Linear(channels, channels)
        self.out = Linear(channels, channels)
        self.position = Linear(channels, channels, bias=False)
        self.bias_u = nn.Parameter(torch.empty(num_heads, channels // num_heads))
        self.bias_v = nn.Parameter(torch.empty(num_heads, channels // num_heads))
        self.key_mask = KeyMask()

    def add_to(self, x: Tensor, norm: nn.Module, positions: Tensor, mask: FrameMask, buffer: Tensor) -> None:
        """Add to x (B, T, C) the attention over its normalised frames; `positions` is (1, longest T, C).

        `buffer` (3, B, T, C) is overwritten.
        """

        def project(rows: Tensor) -> tuple[Tensor, ...]:
            normed = norm(rows)
            return self.query(normed).add_(self.bias_u.flatten()), self.key(normed), self.value(normed)

        write_by_rows(buffer.unbind(), project, x)
        placed = self.position(positions)
        # The part of the scores that is the same for all queries and clips, apart from the mask: (1, H, 1, longest T)
        difference = (self.bias_v - self.bias_u)[None, :, None, :]
        bias = difference @ split_heads(placed, self.num_heads).transpose(2, 3) / math.sqrt(difference.shape[-1])
        key_bias = self.key_mask(mask)
        if key_bias is not None:
            bias = bias + key_bias
        for clip in mask.every_clip(*buffer):
            query, key, value = (split_heads(part, self.num_heads) for part in clip)
            batch, heads, frames, _ = key.shape
            key += split_heads(placed[:, :frames], self.num_heads)
            query.copy_(attend(query, key, value, bias[..., :frames].expand(batch, heads, frames, -1)))
        add_by_rows(x, self.out, buffer[0])


class Convolution(nn.Module):
    """1x1 convolution, GLU, depthwise convolution, LayerNorm, SiLU, 1x1 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.pointwise_in = PointwiseConvolution(channels, 2 * channels)
        # The 1x1 convolution has a bias, so padding is not zero after the gate.
        self.time_mask = TimeMask()
        self.depthwise = DepthwiseConvolution(channels, KERNEL_SIZE, left=KERNEL_SIZE // 2)
        self.norm = nn.LayerNorm(channels)
        self.pointwise_out = PointwiseConvolution(channels, channels)

    def add_to(self, x: Tensor, norm: nn.Module, mask: FrameMask, buffer: Tensor) -> None:
        """Add to x (B, T, C) the convolution of its normalised frames; `buffer` (3, B, T, C) is overwritten."""
        gated, convolved, _ = buffer
        write_by_rows([gated], lambda rows: [F.glu(self.pointwise_in(norm(rows)), dim=-1)], x)
        self.time_mask(gated, mask)
        for clip, to in mask.every_clip(gated, convolved):
            self.depthwise(clip, to)
        add_by_rows(x, lambda rows: self.pointwise_out(F.silu(self.norm(rows), inplace=True)), convolved)


class FeedForward(nn.Module):
    """Linear, SiLU, Linear, of rows (n, C)."""

    def __init__(self, channels: int, units: int) -> None:
        super().__init__()
        self.expand = Linear(channels, units)
        self.contract = Linear(units, channels)

    def forward(self, rows: Tensor) -> Tensor:
        return self.contract(F.silu(self.expand(rows), inplace=True))


class ConformerBlock(nn.Module):
    """Attention, convolution and feed-forward, each with a norm before it and a residual; then a norm."""

    def __init__(self, config: ConditionConfig) -> None:
        super().__init__()
        channels = config.output_size
        self.norm_attention = nn.LayerNorm(channels)
        self.attention = PositionalAttention(channels, config.attention_heads)
        self.norm_convolution = nn.LayerNorm(channels)
        self.convolution = Convolution(channels)
        self.norm_feed_forward = nn.LayerNorm(channels)
        self.feed_forward = FeedForward(channels, config.linear_units)
        self.norm_final = nn.LayerNorm(channels)

    def forward(self, x: Tensor, positions: Tensor, mask: FrameMask, buffer: Tensor) -> None:
        """Change x (B, T, C) in place; `buffer` (3, B, T, C) is overwritten."""
        self.attention.add_to(x, self.norm_attention, positions, mask, buffer)
        self.convolution.add_to(x, self.norm_convolution, mask, buffer)
        add_by_rows(x, lambda rows: self.feed_forward(self.norm_feed_forward(rows)))
        write_by_rows([x], lambda rows: [self.norm_final(rows)], x)


class Conformer(nn.Module):
    """Subsampling, then the blocks, then a norm."""

    def __init__(self, config: ConditionConfig, *, input_size: int, position_rows: int = POSITION_ROWS) -> None:
        super().__init__()
        self.subsampling = Subsampling(input_size, config.output_size)
        self.position_table = nn.Parameter(torch.empty(1, position_rows, config.output_size))
        self.blocks = nn.ModuleList(ConformerBlock(config) for _ in range(config.num_blocks))
        self.norm = nn.LayerNorm(config.output_size)

    def forward(self, x: Tensor, mask: FrameMask) -> tuple[Tensor, FrameMask]:
        """Semantic features (B, T, D) float32, T >= 3, to (B, T', C) and the mask of the T' frames."""
        x = self.subsampling(x, mask)
        mask = mask.subsampled(x.device)
        positions = self.position_table[:, : mask.num_frames]
        buffer = x.new_empty(3, *x.shape)
        for block in self.blocks:
            block(x, positions, mask, buffer)
        return self.norm(x), mask
