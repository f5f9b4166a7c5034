"""Which frames of a batch are real, and how computations mask the others.

Provides `FrameMask` (made once per batch from the lengths), `to_device`, and the mask sites `TimeMask` and `KeyMask`:
modules without parameters, wherever padding could affect real frames, so that tests can list and disable each site.

A batch is either padded, (B, T, C), or packed: its clips concatenated without padding, (1, sum of lengths, C).
Operations on single frames work on both; operations across frames use `FrameMask.clips`, `every_clip` or `over_clips`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Move a small CPU tensor to a device. For a GPU it is pinned first, so that the copy is asynchronous."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


def packs(device: torch.device) -> bool:
    """Whether batches are packed on this device. A GPU needs large calls for many clips, a CPU does not."""
    return device.type == "cpu"


@dataclass(frozen=True)
class FrameMask:
    """The real frames of a batch of B clips, padded to T frames or packed (then T is the longest clip's length).

    `lengths` (B,) int64 is on the CPU, so that reading it does not wait for the device. `padding` (B, T, 1) bool is
    true for padding; `key_bias` (B, 1, 1, T) float32 is 0 for real frames and -inf for padding. Both are None if the
    batch has no padding, because attention is faster without a mask. `real_frames` (B,) int32 are the lengths on the
    device, for kernels.
    """

    lengths: Tensor
    num_frames: int
    padding: Tensor | None
    key_bias: Tensor | None
    real_frames: Tensor
    packed: bool = False

    @classmethod
    def from_lengths(cls, lengths: Tensor, num_frames: int, device: torch.device) -> FrameMask:
        """Mark the first `lengths[b]` of `num_frames` frames as real, for every clip b of the batch."""
        real_frames = to_device(lengths.int(), device)
        if int(lengths.min()) >= num_frames:
            return cls(lengths, num_frames, None, None, real_frames)
        padding = torch.arange(num_frames, device=device)[None, :] >= real_frames[:, None]
        key_bias = torch.zeros(padding.shape, device=device).masked_fill_(padding, float("-inf"))
        return cls(lengths, num_frames, padding[:, :, None], key_bias[:, None, None, :], real_frames)

    @classmethod
    def of_packed(cls, lengths: Tensor, device: torch.device) -> FrameMask:
        """The mask of concatenated clips with these `lengths`, (1, sum of lengths, C)."""
        return cls(lengths, int(lengths.max()), None, None, to_device(lengths.int(), device), packed=True)

    def clips(self, frames: Tensor) -> list[Tensor]:
        """The clips of a packed batch, views (1, T_b, C); a padded batch (B, T, C) is one piece."""
        return list(frames.split(self.lengths.tolist(), dim=1)) if self.packed else [frames]

    def over_clips(self, function: Callable[[Tensor], Tensor], frames: Tensor) -> Tensor:
        """Apply a function of whole clips, (B, T, C) to (B, T, O), to this batch."""
        found = [function(clip) for clip in self.clips(frames)]
        return found[0] if len(found) == 1 else torch.cat(found, dim=1)

    def every_clip(self, *frames: Tensor) -> Iterator[tuple[Tensor, ...]]:
        """Iterate over the clips of several batches together."""
        return zip(*map(self.clips, frames), strict=True)

    @property
    def all_frames(self) -> Tensor:
        """Lengths (B,) int32 that treat all frames as real."""
        return torch.full_like(self.real_frames, self.num_frames)

    def subsampled(self, device: torch.device) -> FrameMask:
        """The mask after the stride-2 convolution, mask[:, 2::2]: a frame is real if its last input is."""
        return self.resized((self.lengths - 1) // 2, (self.num_frames - 1) // 2, device)

    def resized(self, lengths: Tensor, num_frames: int, device: torch.device) -> FrameMask:
        """The mask of the same clips with other lengths, padded to `num_frames` frames if this batch is padded."""
        if self.packed:
            return FrameMask.of_packed(lengths, device)
        return FrameMask.from_lengths(lengths, num_frames, device)


class TimeMask(nn.Module):
    """A mask site before a convolution over time: padding is zero, like everything past a clip's end."""

    def forward(self, frames: Tensor, mask: FrameMask) -> Tensor:
        """Zero the padding of (B, T, C) float32 in place."""
        return frames if mask.padding is None else frames.masked_fill_(mask.padding, 0.0)

    def lengths(self, mask: FrameMask) -> Tensor:
        """The same for a kernel that reads frames from a clip's length (B,) int32 on as zeros."""
        return mask.real_frames


class KeyMask(nn.Module):
    """A mask site before an attention: padding gets no weight as a key."""

    def forward(self, mask: FrameMask) -> Tensor | None:
        """The bias (B, 1, 1, T) to add to the scores, or None."""
        return mask.key_bias

    def lengths(self, mask: FrameMask) -> Tensor:
        """The same for a kernel that attends to the keys before a clip's length (B,) int32 only."""
        return mask.real_frames
