"""The Conformer of the two conditioning branches (UnifiedVoice's conformer_perceiver with conv2d2 input).

Gives `Conformer`: semantic features (B, T, D) to encoded frames (B, T', C), T' = (T - 1) // 2. Takes a FrameMask;
padding never reaches a real frame. Knows nothing of checkpoints.
Source: Gulati et al. 2020, as published for IndexTTS-2.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hfprep.models.configs import ConditionConfig
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
POSITION_ROWS = 5000


# Frames and channels of the subsampling convolution's output that exist at once: 134 MB on a CPU of up to seven
# threads, 535 MB on a GPU.
CPU_FRAMES_PER_PIECE = 128
GPU_FRAMES_PER_PIECE, GPU_CHANNELS_PER_PIECE = 4096, 64
CACHED_FRAMES = 4  # of them, written and then read while they are in a CPU's cache
CACHE_LINE = 16  # numbers; a product that writes whole lines takes two thirds of the time


class Subsampling(nn.Module):
    """Conv2d(1 -> C, 3x3, stride 2), ReLU, then a product over channels and frequencies; times sqrt(C).

    The convolution's output, 130 MB for a clip of 5 s, exists in pieces only. `scratch` keeps the room for one, and
    `cached` for the few frames of it that are being made.
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
        """(B, T, D) to (B, T', C). Unmasked: an output frame is real only if all its three inputs are."""
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
        """(C, 10) and (frames, 10, at least F) to (frames, C): all channels at once, so that the weights, half a GB,
        are read where they lie. A product with some of their columns would first copy these, at three times the cost.
        They are its first factor: the second one, four times smaller here, is what oneDNN puts into its own order.
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
        """The same, some channels at a time."""
        out = self.out_bias.repeat(len(patches), 1)
        columns = GPU_CHANNELS_PER_PIECE * self.frequencies
        for kernel, weight in zip(
            kernels.split(GPU_CHANNELS_PER_PIECE), self.out_weight.split(columns, 1), strict=True
        ):
            out += linear(torch.matmul(kernel, patches).relu_().flatten(1), weight)
        return out

    def _patches(self, clips: list[Tensor], rounded: int, width: int) -> Tensor:
        """Of each (B, T, D) its B * T' rows (10, width): the nine inputs of each of the F output positions, and ones
        for the bias; zeros beyond the positions.

        There are `rounded` rows; the last, beyond those of all clips, mean nothing.
        """
        room = clips[0].new_empty(rounded, 10, width)
        room[..., self.frequencies :] = 0
        rows = room[..., : self.frequencies]
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
        room[start:] = 0
        return room


class PositionalAttention(nn.Module):
    """Self-attention whose score is ((q_i + u) . k_j + (q_i + v) . p_j) / sqrt(d), with p_j the key's own position.

    There is no relative shift, so the score is (q_i + u) . (k_j + p_j) + (v - u) . p_j: one fused attention over keys
    with their positions added, and a bias per key that is the same for every clip.
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

    def add_to(self, x: Tensor, norm: nn.Module, positions: Tensor, mask: FrameMask, room: Tensor) -> None:
        """Add to x (B, T, C) what its normed frames attend to, `positions` being (1, longest T, C).

        `room` (3, B, T, C) is written over.
        """

        def project(rows: Tensor) -> tuple[Tensor, ...]:
            normed = norm(rows)
            return self.query(normed).add_(self.bias_u.flatten()), self.key(normed), self.value(normed)

        write_by_rows(room.unbind(), project, x)
        placed = self.position(positions)
        # The part of the scores that is the same for every query and clip, but for what is masked: (1, H, 1, longest T)
        difference = (self.bias_v - self.bias_u)[None, :, None, :]
        bias = difference @ split_heads(placed, self.num_heads).transpose(2, 3) / math.sqrt(difference.shape[-1])
        key_bias = self.key_mask(mask)
        if key_bias is not None:
            bias = bias + key_bias
        for clip in mask.every_clip(*room):
            query, key, value = (split_heads(part, self.num_heads) for part in clip)
            batch, heads, frames, _ = key.shape
            key += split_heads(placed[:, :frames], self.num_heads)
            query.copy_(attend(query, key, value, bias[..., :frames].expand(batch, heads, frames, -1)))
        add_by_rows(x, self.out, room[0])


class Convolution(nn.Module):
    """1x1 convolution, GLU, depthwise convolution, LayerNorm, SiLU, 1x1 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.pointwise_in = PointwiseConvolution(channels, 2 * channels)
        # The 1x1 convolution has a bias, so after the gate a padded frame is not zero whatever it was before.
        self.time_mask = TimeMask()
        self.depthwise = DepthwiseConvolution(channels, KERNEL_SIZE, left=KERNEL_SIZE // 2)
        self.norm = nn.LayerNorm(channels)
        self.pointwise_out = PointwiseConvolution(channels, channels)

    def add_to(self, x: Tensor, norm: nn.Module, mask: FrameMask, room: Tensor) -> None:
        """Add to x (B, T, C) the convolution of its normed frames; `room` (3, B, T, C) is written over."""
        gated, convolved, _ = room
        write_by_rows([gated], lambda rows: [F.glu(self.pointwise_in(norm(rows)), dim=-1)], x)
        self.time_mask(gated, mask)
        for clip, to in mask.every_clip(gated, convolved):
            self.depthwise(clip, to)
        add_by_rows(x, self._project, convolved)

    def _project(self, rows: Tensor) -> Tensor:
        return self.pointwise_out(F.silu(self.norm(rows), inplace=True))


class FeedForward(nn.Module):
    """Linear, SiLU, Linear, of rows (n, C)."""

    def __init__(self, channels: int, units: int) -> None:
        super().__init__()
        self.expand = Linear(channels, units)
        self.contract = Linear(units, channels)

    def forward(self, rows: Tensor) -> Tensor:
        return self.contract(F.silu(self.expand(rows), inplace=True))


class ConformerBlock(nn.Module):
    """Attention, convolution and feed-forward, each behind its norm and added to its input; then a norm."""

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

    def forward(self, x: Tensor, positions: Tensor, mask: FrameMask, room: Tensor) -> None:
        """Change x (B, T, C) in place; `room` (3, B, T, C) is written over."""
        self.attention.add_to(x, self.norm_attention, positions, mask, room)
        self.convolution.add_to(x, self.norm_convolution, mask, room)
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
        """Semantic features (B, T, D) float32, T from 3, to (B, T', C) and the mask of the T' frames."""
        x = self.subsampling(x, mask)
        mask = mask.subsampled(x.device)
        positions = self.position_table[:, : mask.num_frames]
        room = x.new_empty(3, *x.shape)
        for block in self.blocks:
            block(x, positions, mask, room)
        return self.norm(x), mask
