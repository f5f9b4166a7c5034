"""Asynchronous transfers of batches to a device and of results back.

Provides `padded_batch` and `Download`. Transfers to and from a GPU use page-locked memory and the device's stream, so
only the reader of the results waits. Knows nothing about models.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor


def padded_batch(clips: Sequence[np.ndarray], device: torch.device) -> Tensor:
    """Clips, float32 (length, ...) each, as one tensor (B, longest, ...) on the device, padded with zeros."""
    shape = len(clips), max(map(len, clips)), *clips[0].shape[1:]
    padded = torch.empty(shape, pin_memory=device.type == "cuda")
    for row, clip in zip(padded.numpy(), clips, strict=True):
        row[: len(clip)] = clip
        row[len(clip) :] = 0.0
    return padded.to(device, non_blocking=True)


class Download:
    """Transfer of tensors to the host, by name; tensors of a CPU are used directly.

    The constructor queues the copies, `wait` returns the arrays. Either raises errors that occur on the GPU meanwhile.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._event: torch.cuda.Event | None = None
        self._tensors: dict[str, Tensor] = {}
        for name, tensor in tensors.items():
            if tensor.device.type != "cuda":
                self._tensors[name] = tensor
                continue
            host = self._tensors[name] = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            host.copy_(tensor, non_blocking=True)
            self._event = self._event or torch.cuda.Event()
            self._event.record(torch.cuda.current_stream(tensor.device))

    def wait(self) -> dict[str, np.ndarray]:
        """Wait for all copies and return the arrays."""
        if self._event is not None:
            self._event.synchronize()
        return {name: tensor.numpy() for name, tensor in self._tensors.items()}
