"""The log mel energies that CAM++ takes, of one clip or many, on whatever device the waveforms are.

Gives `batch_fbank`. Frames, window and mel filters are those of the input features (input_features.py); other than
there, samples count from -1 to 1 (so more energies reach the floor), every frame is kept, and of each bin only the
mean is taken away. Source: Kaldi's fbank as in torchaudio.compliance.kaldi, without dither.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hfprep.models.batch_input_features import log_mel_energies
from hfprep.models.input_features import HOP_LENGTH, WINDOW_LENGTH
from hfprep.models.masking import to_device


def num_fbank_frames(num_samples: Tensor) -> Tensor:
    """How many frames of 10 ms clips of so many samples at 16 kHz have; int64 of any shape."""
    return (1 + (num_samples - WINDOW_LENGTH).div(HOP_LENGTH, rounding_mode="floor")).clamp_min(0)


def batch_fbank(waveforms: Tensor, num_samples: Tensor) -> Tensor:
    """Compute the log mel energies of B clips, less their means over a clip's frames.

    waveforms: float32 (B, S) at 16 kHz, full scale 1.0; num_samples: int64 (B,) on the CPU, from one window (400) to
    S. Returns float32 (B, F, 80) on the device of the waveforms, with F the most frames of a clip; what is beyond a
    clip's own `num_fbank_frames` is zero. Nothing waits for the device. A clip's numbers do not depend on the others.
    """
    counts = num_fbank_frames(num_samples)
    with torch.inference_mode():
        fbank = log_mel_energies(waveforms, int(counts.max()), scale=1.0)
        on_device = to_device(counts, fbank.device)[:, None, None]
        padding = torch.arange(fbank.shape[1], device=fbank.device)[None, :, None] >= on_device
        fbank.masked_fill_(padding, 0.0)
        # Summed in double precision, so that the mean does not depend on how many zeros follow.
        mean = fbank.sum(1, keepdim=True, dtype=torch.float64) / on_device
        return fbank.sub_(mean.float()).masked_fill_(padding, 0.0)
