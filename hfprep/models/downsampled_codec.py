"""IndexTTS-2.5's semantic codec: a strided convolution that halves the frames, then MaskGCT's encoder and quantizer.

Provides `DownsampledCodec`: normalised semantic features (B, T, D) at 50 Hz to codes (B, ceil(T / 2)) at 25 Hz. With
the FrameMask of the T frames, convolutions see zeros past a clip's end.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hfprep.models.masking import FrameMask, TimeMask
from hfprep.models.operators import linear
from hfprep.models.semantic_codec import SemanticCodec

if TYPE_CHECKING:
    from hfprep.models.kernels.codec import FusedSemanticCodec

KERNEL_SIZE, STRIDE = 3, 2


class Halving(nn.Module):
    """Conv1d(D -> D, kernel 3, stride 2, padding 1), then exact GELU. An odd number of frames is zero-padded."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, channels, KERNEL_SIZE))
        self.bias = nn.Parameter(torch.empty(channels))

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) to (B, ceil(T / 2), D)."""
        margin = KERNEL_SIZE // 2
        windows = F.pad(x, (0, 0, margin, margin)).unfold(1, KERNEL_SIZE, STRIDE)  # (B, T / 2, D, 3), a view
        return F.gelu(linear(windows.flatten(2), self.weight.flatten(1), self.bias))


class DownsampledCodec(nn.Module):
    """The strided convolution and the codec after it."""

    def __init__(self, codec: SemanticCodec) -> None:
        super().__init__()
        self.time_mask = TimeMask()
        self.down = Halving(codec.out.out_features)
        self.codec: SemanticCodec | FusedSemanticCodec = codec

    def forward(self, semantic: Tensor, mask: FrameMask) -> Tensor:
        """Features (B, T, D) float32 to codes (B, ceil(T / 2)) int64; codes of padding are undefined."""
        # Mask a copy: the caller also passes the features to the emotion branch.
        x = semantic if mask.padding is None else self.time_mask(semantic.clone(), mask)
        # Padding is not zero after the convolution; the codec masks it.
        return self.codec(mask.over_clips(self.down, x), halved(mask, x.device))


def halved(mask: FrameMask, device: torch.device) -> FrameMask:
    """The mask of the codes: a code is real if the middle frame of its window is."""
    return mask.resized(num_codes(mask.lengths), (mask.num_frames + 1) // 2, device)


def num_codes(num_frames: Tensor) -> Tensor:
    """The number of codes of clips with `num_frames` frames; int64 of any shape."""
    return (num_frames + 1).div(STRIDE, rounding_mode="floor")
