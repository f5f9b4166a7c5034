"""Batches on their way to a device and results on their way back, beside what the device computes.

Gives `padded_batch` and `Download`. To and from a GPU everything goes through page-locked memory, in the order of the
device's own queue, so that nobody waits but whoever needs the results. Knows nothing of models.
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
    """Tensors on their way to the host, by name. Those of a CPU are there already.

    The copies are queued when it is made, `wait` gives the arrays. What fails on a GPU meanwhile is raised by either.
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
        """The arrays, once all of them have arrived."""
        if self._event is not None:
            self._event.synchronize()
        return {name: tensor.numpy() for name, tensor in self._tensors.items()}
