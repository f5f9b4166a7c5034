"""A batch through the models: inputs to the device, the models, results back, each sample's own part cut out.

Gives `forward`, which only hands the work over, and `Arriving`, which waits for what comes of it. What fails on the
way is raised by either; nothing here knows what to do about it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from hfprep.errors import Reason
from hfprep.models.batch_input_features import batch_input_features
from hfprep.pipeline.breaker import Unproven
from hfprep.pipeline.intake import Loaded, Task
from hfprep.pipeline.transfers import Download, padded_batch
from hfprep.recipes.indextts2.feature_model import FeatureModel
from hfprep.schema import COLUMNS, Features, Need, Rejection

NOT_FINITE = "not finite"  # the kind of failure

Outcome = tuple[Task, Features | Rejection]


def forward(batch: Sequence[Loaded], model: FeatureModel, *, waveforms: bool) -> Download:
    """Give a batch to the model; `waveforms` says that it holds samples, of which input features are computed here."""
    need = Need.NOTHING
    for item in batch:
        need |= item.task.need
    clips = [item.audio for item in batch if item.audio is not None]
    inputs = padded_batch(clips, model.device)
    if waveforms:
        inputs = batch_input_features(inputs, torch.tensor([len(clip) for clip in clips]))
    tensors = model(
        inputs,
        torch.tensor([item.num_frames for item in batch]),
        codes=bool(need & Need.CODES),
        latents=bool(need & Need.LATENTS),
    )
    return Download(
        {
            "codes": None if tensors.codes is None else tensors.codes.to(torch.int32),
            "condition": None if tensors.condition is None else tensors.condition.float(),
            "emo_vec": None if tensors.emo_vec is None else tensors.emo_vec.float(),
        }
    )


@dataclass(frozen=True, slots=True)
class Arriving:
    """A batch whose results are on their way."""

    batch: list[Loaded]
    download: Download
    started: float

    def outcomes(self) -> list[Outcome]:
        """Every sample's own features, once they have arrived, or its rejection."""
        arrays = {name: array for name, array in self.download.wait().items() if array is not None}
        found = []
        for index, item in enumerate(self.batch):
            own = {name: array[index] for name, array in arrays.items()}
            if "codes" in own:
                own["codes"] = own["codes"][: item.num_frames]
            found.append((item.task, outcome(item, own)))
        return found


def outcome(item: Loaded, computed: dict[str, np.ndarray]) -> Features | Rejection:
    """The columns that a sample needs, or a rejection where a number of theirs is not finite.

    A code below 0 stands for a frame whose hidden states were not finite.
    """
    task = item.task
    wanted = {name: value for name, value in computed.items() if COLUMNS[name].need & task.need}
    for name, value in wanted.items():
        if not np.isfinite(value).all() or (name == "codes" and (value < 0).any()):
            message = f"{name} {'are of' if name == 'codes' else 'holds'} NaN or infinite values"
            return Unproven(task.utterance.line, task.utterance.id, Reason.COMPUTE_FAILED, message, NOT_FINITE)
    return Features(text_ids=item.text_ids, seconds=item.seconds, **wanted)
