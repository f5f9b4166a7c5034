"""The input of a codec: a clip's unmodified samples at the codec's rate."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hfprep.errors import Reason, RejectedSample
from hfprep.recipes.codec.config import CodecConfig

LOUDEST = 1e6  # full scale is 1.0; far beyond it, a network's sums overflow and its codes are meaningless


@dataclass(frozen=True)
class CodecAudio:
    """Samples, float32 (num_samples,); a frame is the samples of one code."""

    config: CodecConfig

    @property
    def sampling_rate(self) -> int:
        return self.config.sampling_rate

    def num_frames(self, num_samples: int) -> int:
        return self.config.num_frames(num_samples)

    def prepare(self, samples: np.ndarray, *, on_gpu: bool) -> np.ndarray:
        del on_gpu
        # `not ... <` instead of `>=`, which would be false for NaN.
        if not max(samples.max(), -samples.min()) < LOUDEST:
            raise RejectedSample(Reason.AUDIO_NOT_FINITE, "the samples are far beyond full scale: scale them to +-1.0")
        return samples
