"""Where the clips of a batch lie, which of its frames are real, and the ways in which that reaches a computation.

Gives `FrameMask` (made once per batch from the lengths), `to_device` (by which lengths get there) and the mask sites
`TimeMask` and `KeyMask`: modules without parameters, one wherever padding could leak into real frames, so that tests
can list the sites and remove each in turn. Knows nothing of the models.

A batch is padded, (B, T, C), or packed: its clips one after another without padding, (1, sum of lengths, C). What
looks at single frames takes either as it is; what looks at several goes through `FrameMask.clips`, or
through `every_clip` and `over_clips`, which stand on it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A small tensor of the CPU on a device: to a GPU through page-locked memory, or its queue would be waited for."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


def packs(device: torch.device) -> bool:
    """Whether batches are packed on such a device: a GPU is kept busy by few calls for many clips, a CPU by any."""
    return device.type == "cpu"


@dataclass(frozen=True)
class FrameMask:
    """The real frames of a batch of B clips, padded to T frames or packed (then T is the longest clip's length).

    `lengths` (B,) int64 stays on the CPU, so that nothing waits for a device. `padding` (B, T, 1) bool is true where
    a frame is padding; `key_bias` (B, 1, 1, T) float32 is 0 for real frames and -inf for padding. Both are None when
    the batch holds no padding: then there is nothing to mask, and attention kernels without a mask are faster.
    `real_frames` (B,) int32 are the lengths on the device, for kernels that need no more than that.
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
        """For clips of these `lengths` one after another, (1, sum of lengths, C)."""
        return cls(lengths, int(lengths.max()), None, None, to_device(lengths.int(), device), packed=True)

    def clips(self, frames: Tensor) -> list[Tensor]:
        """The clips of a packed batch, views (1, T_b, C); a padded batch (B, T, C) is one piece."""
        return list(frames.split(self.lengths.tolist(), dim=1)) if self.packed else [frames]

    def over_clips(self, function: Callable[[Tensor], Tensor], frames: Tensor) -> Tensor:
        """What a function of whole clips, (B, T, C) to (B, T, O), makes of this batch."""
        found = [function(clip) for clip in self.clips(frames)]
        return found[0] if len(found) == 1 else torch.cat(found, dim=1)

    def every_clip(self, *frames: Tensor) -> Iterator[tuple[Tensor, ...]]:
        """The clips of several batches side by side."""
        return zip(*map(self.clips, frames), strict=True)

    @property
    def all_frames(self) -> Tensor:
        """The lengths (B,) int32 as if nothing were padding."""
        return torch.full_like(self.real_frames, self.num_frames)

    def subsampled(self, device: torch.device) -> FrameMask:
        """The mask after the stride-2 convolution, which is mask[:, 2::2]: a frame is real if its last input is."""
        lengths = (self.lengths - 1) // 2
        if self.packed:
            return FrameMask.of_packed(lengths, device)
        return FrameMask.from_lengths(lengths, (self.num_frames - 1) // 2, device)


class TimeMask(nn.Module):
    """A mask site ahead of a convolution over time: padding reads as the zeros past an utterance's own end."""

    def forward(self, frames: Tensor, mask: FrameMask) -> Tensor:
        """Zero the padding of (B, T, C) float32 in place."""
        return frames if mask.padding is None else frames.masked_fill_(mask.padding, 0.0)

    def lengths(self, mask: FrameMask) -> Tensor:
        """The same for a kernel that reads frames from a clip's length (B,) int32 on as zeros."""
        return mask.real_frames


class KeyMask(nn.Module):
    """A mask site in front of an attention: padding gets no weight as a key."""

    def forward(self, mask: FrameMask) -> Tensor | None:
        """The bias (B, 1, 1, T) to add to the scores, or None."""
        return mask.key_bias

    def lengths(self, mask: FrameMask) -> Tensor:
        """The same for a kernel that attends to the keys before a clip's length (B,) int32 only."""
        return mask.real_frames
