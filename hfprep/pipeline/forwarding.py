"""Runs a batch through the models: inputs to the device, forward pass, results back, split into samples.

Provides `forward`, which only launches the work, and `Arriving`, which waits for the results. Either raises errors of
the device; handling them is left to the caller. Transfers to and from a GPU use page-locked memory and the device's
stream, so only the reader of the results waits.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hfprep.errors import Reason
from hfprep.pipeline.intake import Loaded, Task, reject
from hfprep.recipes.base import Model, ModelSet
from hfprep.schema import Features, Rejection, Schema

NOT_FINITE = "not finite"  # the kind of failure

Outcome = tuple[Task, Features | Rejection]


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


def forward(batch: Sequence[Loaded], model: Model, audio_groups: frozenset[str]) -> Download:
    """Launch the model on a batch."""
    need = audio_groups & frozenset[str]().union(*(item.task.need for item in batch))
    clips = [item.audio for item in batch if item.audio is not None]
    return Download(model(padded_batch(clips, model.device), torch.tensor([len(clip) for clip in clips]), need))


@dataclass(frozen=True, slots=True)
class Arriving:
    """A batch whose results are pending."""

    models: ModelSet
    batch: list[Loaded]
    download: Download
    started: float

    def outcomes(self) -> list[Outcome]:
        """Wait for the results; returns each sample's features or its rejection."""
        arrays, schema = self.download.wait(), self.models.schema
        found = []
        for index, item in enumerate(self.batch):
            own = {name: array[index] for name, array in arrays.items()}
            for column in schema.of_kind("codes"):
                if column.name in own:
                    own[column.name] = own[column.name][..., : self.models.num_codes(item.num_frames)]
            found.append((item.task, outcome(schema, item, own)))
        return found


def outcome(schema: Schema, item: Loaded, computed: dict[str, np.ndarray]) -> Features | Rejection:
    """The columns that a sample needs, or a rejection if a value is not finite.

    A negative code marks a frame whose hidden states were not finite.
    """
    task = item.task
    wanted = {}
    for name, value in computed.items():
        column = schema.by_name[name]
        if column.group not in task.need:
            continue
        wanted[name] = value
        if not np.isfinite(value).all() or (column.kind == "codes" and (value < 0).any()):
            what = "come from" if column.kind == "codes" else "contains"
            message = f"{name} {what} NaN or infinite values"
            return reject(task, Reason.COMPUTE_FAILED, message, NOT_FINITE)
    if item.text_ids is not None:
        wanted |= {column.name: item.text_ids for column in schema.of_kind("tokens")}
    return Features(wanted, item.seconds)
