"""Runs a batch through the models: inputs to the device, forward pass, results back, split into samples.

Provides `forward`, which only launches the work, and `Arriving`, which waits for the results. Either raises errors of
the device; handling them is left to the caller.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from hfprep.errors import Reason
from hfprep.pipeline.breaker import Unproven
from hfprep.pipeline.intake import Loaded, Task
from hfprep.pipeline.transfers import Download, padded_batch
from hfprep.recipes.base import Model, ModelSet
from hfprep.schema import Features, Rejection, Schema

NOT_FINITE = "not finite"  # the kind of failure

Outcome = tuple[Task, Features | Rejection]


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
            return Unproven(task.utterance.line, task.utterance.id, Reason.COMPUTE_FAILED, message, NOT_FINITE)
    if item.text_ids is not None:
        wanted |= {column.name: item.text_ids for column in schema.of_kind("tokens")}
    return Features(wanted, item.seconds)
