"""The input of w2v-bert-2.0: a clip's input features, or its samples, from which a GPU computes them.

Shared by the IndexTTS families. Provides `SemanticAudio`, and `semantic_inputs` for their models.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from hfprep.models.input_features import (
    SAMPLING_RATE,
    check_waveform,
    extract_input_features,
    num_input_frames,
)

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class SemanticAudio:
    """Samples at 16 kHz; a frame is 20 ms.

    On a CPU, input features, float32 (num_frames, 160), are computed while clips are loaded. On a GPU, or with
    `samples_only`, the model gets the samples.
    """

    samples_only: bool = False

    @property
    def sampling_rate(self) -> int:
        return SAMPLING_RATE

    def num_frames(self, num_samples: int) -> int:
        return num_input_frames(num_samples)

    def prepare(self, samples: np.ndarray, *, on_gpu: bool) -> np.ndarray:
        if on_gpu or self.samples_only:
            check_waveform(samples)
            return samples
        return extract_input_features(samples)


def semantic_inputs(inputs: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Input features, float32 (B, T, 160), and frames per clip, int64 (B,), of a padded batch.

    inputs: the output of `SemanticAudio`, either samples (B, S), or input features, which are returned unchanged.
    """
    if inputs.ndim != 2:
        return inputs, lengths
    import torch

    from hfprep.models.batch_input_features import batch_input_features

    frames = [num_input_frames(count) for count in lengths.tolist()]
    return batch_input_features(inputs, lengths), torch.tensor(frames)
