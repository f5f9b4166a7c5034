"""CAM++ (CAMPPlus): from a clip's log mel energies to a speaker vector.

Provides `Campplus`: fbank (B, F, 80) with lengths to vectors (B, E). Padding has no effect: convolutions see zeros past
a clip's end, and means and deviations are of real steps only. Batch norms are affine maps in eval mode: those after a
convolution are folded into its weights, the others are a `scale` and a `shift`. Recipes fold them when loading.
Source: Wang et al. 2023 (CAM++), Yu et al. 2021 (densely connected TDNN), as published by 3D-Speaker.

Shapes: C head channels, F frames (10 ms), T steps = (F + 1) // 2, S segments of 100 steps, G growth.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hfprep.models.masking import FrameMask, TimeMask, packs, to_device
from hfprep.models.operators import Linear, linear, row_pieces

NUM_MEL_BINS = 80
FREQUENCY_STRIDE = 8  # three strides of 2
TDNN_KERNEL = 5
SEGMENT_STEPS = 100  # steps of a segment, which share one context: 2 s
DILATIONS = (1, 2, 2)
MIN_FRAMES = 3  # two steps: one has no deviation

# Frames per piece on a GPU: the largest feature map is 670 MB at full width.
FRAMES_PER_PIECE = 1 << 16
# Most frames that the head computes at once on a CPU, without the overlap: the feature maps stay in the cache. Only a
# few sizes are used, because oneDNN compiles 3 MB of code for every new length.
TILE = 192
REACH = 10  # overlap on either side, one frame for each of the 3x3 convolutions


@dataclass(frozen=True, kw_only=True)
class CampplusConfig:
    """Widths of the head's maps, the steps, a layer's bottleneck, context and growth, and the speaker vector.

    `num_layers` is the number of layers of each dense block.
    """

    head_channels: int
    channels: int
    bottleneck: int
    context: int
    growth: int
    num_layers: tuple[int, ...]
    vector: int


class MapConvolution(nn.Module):
    """A 3x3 convolution over frames and mel bins, padding 1; `stride` is over bins."""

    def __init__(self, in_channels: int, out_channels: int, *, stride: int = 1) -> None:
        super().__init__()
        self.stride = (1, stride)
        self.time_mask = TimeMask()
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels, 3, 3))
        self.bias = nn.Parameter(torch.empty(out_channels))

    def forward(self, x: Tensor, frames: FrameMask) -> Tensor:
        """(B, C, F, bins) to (B, C', F, bins / stride). Zeroes the padding of x in place."""
        return F.conv2d(self.time_mask(x, frames), self.weight, self.bias, self.stride, 1)


class MapBlock(nn.Module):
    """Residual block of two convolutions; `stride` 2 halves the bins and adds a 1x1 convolution to the shortcut."""

    def __init__(self, channels: int, *, stride: int) -> None:
        super().__init__()
        self.first = MapConvolution(channels, channels, stride=stride)
        self.second = MapConvolution(channels, channels)
        self.shortcut = nn.Conv2d(channels, channels, 1, (1, stride)) if stride > 1 else nn.Identity()

    def forward(self, x: Tensor, frames: FrameMask) -> Tensor:
        hidden: Tensor = self.second(self.first(x, frames).relu_(), frames)
        return hidden.add_(self.shortcut(x)).relu_()


class Head(nn.Module):
    """Convolutions over frames and mel bins: (B, F, 80) to (B, F, C * 10)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = MapConvolution(1, channels)
        self.blocks = nn.ModuleList(MapBlock(channels, stride=stride) for stride in (2, 1, 2, 1))
        self.last = MapConvolution(channels, channels, stride=2)

    def forward(self, fbank: Tensor, frames: FrameMask) -> Tensor:
        if fbank.device.type != "cpu":
            return self._maps(fbank.clone(), frames)  # masks work in place, and the caller keeps fbank
        num_frames, found = fbank.shape[1], []
        tile, _ = row_pieces(max(1, num_frames - REACH), TILE)
        size = tile + 2 * REACH
        for start in range(0, max(1, num_frames - REACH), tile):
            window = fbank[:, start : start + size]
            window = F.pad(window, (0, 0, 0, size - window.shape[1]))
            mask = FrameMask.from_lengths((frames.lengths - start).clamp(0, size), size, fbank.device)
            found.append(self._maps(window, mask)[:, REACH if start else 0 : size - REACH])
        return torch.cat(found, dim=1)[:, :num_frames]

    def _maps(self, fbank: Tensor, frames: FrameMask) -> Tensor:
        if frames.padding is not None:
            frames = replace(frames, padding=frames.padding[:, None])  # (B, 1, F, 1)
        maps = self.first(fbank[:, None], frames).relu_()
        if maps.device.type == "cpu":  # CPU convolutions are fastest with channels last
            maps = maps.contiguous(memory_format=torch.channels_last)
        for block in self.blocks:
            maps = block(maps, frames)
        maps = self.last(maps, frames).relu_()
        return maps.transpose(1, 2).flatten(2)


class StepConvolution(nn.Module):
    """Conv1d over frames, kernel 5, stride 2, padding 2, then a ReLU: (B, F, I) to (B, T, O)."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.time_mask = TimeMask()
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels, TDNN_KERNEL))
        self.bias = nn.Parameter(torch.empty(out_channels))

    def forward(self, x: Tensor, frames: FrameMask) -> Tensor:
        margin = TDNN_KERNEL // 2
        padded = F.pad(self.time_mask(x, frames), (0, 0, margin, margin))
        windows = padded.unfold(1, TDNN_KERNEL, 2).flatten(2)  # (B, T, I * 5)
        return linear(windows, self.weight.flatten(1), self.bias).relu_()


class Contexts(nn.Module):
    """Computes a matrix that averages the steps to the contexts of all segments in one matmul.

    The context of a segment is the mean over all steps of the clip plus the mean over the segment.
    """

    def __init__(self) -> None:
        super().__init__()
        self.mean_mask, self.segment_mask = TimeMask(), TimeMask()

    def forward(self, steps: FrameMask, like: Tensor) -> Tensor:
        """The matrix (B, S, T), with the dtype and device of `like` (B, T, C)."""
        ones = like.new_ones(*like.shape[:2], 1)
        of_all = self.mean_mask(ones.clone(), steps).mT  # (B, 1, T)
        number = torch.arange(like.shape[1], device=like.device) // SEGMENT_STEPS
        segments = torch.arange(-(-like.shape[1] // SEGMENT_STEPS), device=like.device)
        of_own = self.segment_mask(ones, steps).mT * (number == segments[:, None])  # (B, S, T)
        # The clamp is for segments of padding only; their contexts are never used.
        return of_all / of_all.sum(-1, keepdim=True) + of_own / of_own.sum(-1, keepdim=True).clamp_min_(1.0)


class DenseLayer(nn.Module):
    """Norm, ReLU, bottleneck, ReLU, then a convolution over time; its steps are scaled by gates from their contexts."""

    def __init__(self, in_channels: int, config: CampplusConfig, *, dilation: int) -> None:
        super().__init__()
        self.in_channels, self.growth, self.dilation = in_channels, config.growth, dilation
        self.scale = nn.Parameter(torch.empty(in_channels))
        self.shift = nn.Parameter(torch.empty(in_channels))
        self.bottleneck = Linear(in_channels, config.bottleneck)
        self.time_mask = TimeMask()
        # The weights of the three taps stacked: one matmul, then a sum of its shifted thirds.
        self.local_weight = nn.Parameter(torch.empty(3 * config.growth, config.bottleneck))
        self.squeeze = Linear(config.bottleneck, config.context)
        self.gate = Linear(config.context, config.growth)

    def forward(self, features: Tensor, steps: FrameMask, contexts: Tensor, segment_of: Tensor) -> None:
        """Write this layer's G channels after the first `in_channels` of features (B, >= T, channels of the block)."""
        growth, dilation, num_steps = self.growth, self.dilation, steps.num_frames
        hidden = torch.addcmul(self.shift, features[..., : self.in_channels], self.scale).relu_()
        hidden = self.bottleneck(hidden).relu_()
        real = self.time_mask(hidden[:, :num_steps], steps)  # in place
        taps = linear(hidden, self.local_weight)[:, :num_steps]
        local = taps[..., growth : 2 * growth]
        local[:, dilation:] += taps[:, :-dilation, :growth]
        local[:, :-dilation] += taps[:, dilation:, 2 * growth :]
        # F.linear: too few rows (segments) for `linear`, which pads them.
        squeezed = F.linear(contexts @ real, self.squeeze.weight, self.squeeze.bias).relu_()
        gate = F.linear(squeezed, self.gate.weight, self.gate.bias).sigmoid_()  # (B, S, G)
        new = features[:, :num_steps, self.in_channels : self.in_channels + growth]
        torch.mul(local, gate.index_select(1, segment_of), out=new)


class DenseBlock(nn.Module):
    """Dense layers, each of which gets all previous channels; then norm, ReLU, and a 1x1 convolution to half."""

    def __init__(self, in_channels: int, num_layers: int, config: CampplusConfig, *, dilation: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            DenseLayer(in_channels + layer * config.growth, config, dilation=dilation) for layer in range(num_layers)
        )
        self.out_channels = in_channels + num_layers * config.growth
        self.scale = nn.Parameter(torch.empty(self.out_channels))
        self.shift = nn.Parameter(torch.empty(self.out_channels))
        self.transit = Linear(self.out_channels, self.out_channels // 2)

    def forward(self, x: Tensor, steps: FrameMask, contexts: Tensor, segment_of: Tensor) -> Tensor:
        features = x.new_zeros(*x.shape[:2], self.out_channels)
        features[..., : x.shape[-1]] = x
        for layer in self.layers:
            layer(features, steps, contexts, segment_of)
        return self.transit(torch.addcmul(self.shift, features, self.scale).relu_())


class Statistics(nn.Module):
    """Mean and unbiased standard deviation over a clip's steps: (B, T, C) to (B, 2 * C)."""

    def __init__(self) -> None:
        super().__init__()
        self.mean_mask, self.deviation_mask = TimeMask(), TimeMask()

    def forward(self, x: Tensor, steps: FrameMask) -> Tensor:
        counts = to_device(steps.lengths.to(x.dtype), x.device)[:, None]
        mean = self.mean_mask(x, steps).sum(1) / counts
        squares = self.deviation_mask((x - mean[:, None]).square_(), steps)
        return torch.cat([mean, (squares.sum(1) / (counts - 1)).sqrt_()], dim=-1)


class Campplus(nn.Module):
    """The whole network, with batch norms folded."""

    def __init__(self, config: CampplusConfig) -> None:
        super().__init__()
        self.head = Head(config.head_channels)
        self.tdnn = StepConvolution(config.head_channels * NUM_MEL_BINS // FREQUENCY_STRIDE, config.channels)
        blocks = []
        channels = config.channels
        for num_layers, dilation in zip(config.num_layers, DILATIONS, strict=True):
            blocks.append(DenseBlock(channels, num_layers, config, dilation=dilation))
            channels = blocks[-1].out_channels // 2
        self.blocks = nn.ModuleList(blocks)
        self.contexts = Contexts()
        self.statistics = Statistics()
        self.out = Linear(2 * channels, config.vector)

    @property
    def packs(self) -> bool:
        """Whether the clips of a batch are computed without padding, one after another."""
        return packs(self.out.weight.device)

    def forward(self, fbank: Tensor, lengths: Tensor) -> Tensor:
        """Speaker vectors (B, E) float32 of fbank (B, F, 80) float32 with `lengths[b]` real frames per clip.

        `lengths`: (B,) int64 on the CPU, at least `MIN_FRAMES`. Padding may be any finite numbers.
        """
        if self.packs:
            clips = zip(fbank, lengths.tolist(), strict=True)
            return torch.cat([self._vectors(clip[None, :length], torch.tensor([length])) for clip, length in clips])
        size = max(1, FRAMES_PER_PIECE // fbank.shape[1])
        pieces = zip(fbank.split(size), lengths.split(size), strict=True)
        return torch.cat([self._vectors(*piece) for piece in pieces])

    def _vectors(self, fbank: Tensor, lengths: Tensor) -> Tensor:
        frames = FrameMask.from_lengths(lengths, fbank.shape[1], fbank.device)
        x = self.tdnn(self.head(fbank, frames), frames)
        steps = FrameMask.from_lengths((lengths + 1) // 2, x.shape[1], x.device)
        contexts = self.contexts(steps, x)
        segment_of = torch.arange(x.shape[1], device=x.device) // SEGMENT_STEPS
        if x.device.type == "cpu":  # pad rows once, which every matmul would otherwise do in a copy
            x = F.pad(x, (0, 0, 0, row_pieces(x.shape[1])[1] - x.shape[1]))
        for block in self.blocks:
            x = block(x, steps, contexts, segment_of)
        return self.out(self.statistics(x[:, : steps.num_frames].relu_(), steps))
