"""Input features of a whole batch at once, on whatever device its waveforms are.

Gives `batch_input_features`: the arithmetic of `audio.input_features.extract_input_features` step by step, in torch.
Takes padded waveforms. Knows nothing of files, nor of what a clip may be rejected for: the caller has seen to that.
"""

import functools

import torch
from torch import Tensor

from hfprep.models.input_features import (
    FEATURE_DIM,
    FFT_LENGTH,
    HOP_LENGTH,
    MEL_FLOOR,
    NUM_MEL_BINS,
    PCM_SCALE,
    PREEMPHASIS,
    STRIDE,
    VARIANCE_FLOOR,
    WINDOW_LENGTH,
    mel_filters,
    num_input_frames,
    povey_window,
)
from hfprep.models.masking import to_device

PIECE_FRAMES = 1 << 15  # mel frames worked on at a time: their float64 frames and spectra take some 600 MB


def batch_input_features(waveforms: Tensor, num_samples: Tensor) -> Tensor:
    """Compute the input features of B clips.

    waveforms: float32 (B, S) at 16 kHz, zeros beyond a clip's own samples; num_samples: int64 (B,) on the CPU, S and
    less. Returns float32 (B, T, 160) on the device of the waveforms, with T the most frames of a clip; what is beyond
    a clip's own `num_input_frames` is zero. Each clip must be one that `check_waveform` lets pass. Nothing waits for
    the device. A clip's numbers are those of `extract_input_features` to some float32 roundings: mean and variance are
    summed in double precision here, so that they do not depend on what else is in the batch.
    """
    device = waveforms.device
    num_frames = max(map(num_input_frames, num_samples.tolist()))
    with torch.inference_mode():
        mel_frames = 1 + (num_samples - WINDOW_LENGTH).div(HOP_LENGTH, rounding_mode="floor")
        counts = to_device(torch.stack([mel_frames, mel_frames - mel_frames % STRIDE]), device)[:, :, None]
        log_mel = log_mel_energies(waveforms, int(mel_frames.max()), scale=float(PCM_SCALE))
        position = torch.arange(log_mel.shape[1], device=device)[None, :]
        # The mean and variance are of all mel frames, also of a last odd one that no model frame holds.
        present = (position < counts[0])[:, :, None]
        total = counts[0][:, :, None].double()
        mean = torch.where(present, log_mel, 0.0).sum(1, keepdim=True, dtype=torch.float64) / total
        squares = torch.where(present, log_mel - mean, 0.0).square_()
        variance = squares.sum(1, keepdim=True) / (total - 1)
        normalised = (log_mel - mean.float()) / torch.sqrt(variance.float() + VARIANCE_FLOOR)
        normalised.masked_fill_((position >= counts[1])[:, :, None], 0.0)
        return normalised[:, : num_frames * STRIDE].reshape(len(waveforms), num_frames, FEATURE_DIM)


def log_mel_energies(waveforms: Tensor, num_frames: int, *, scale: float) -> Tensor:
    """Log mel energies of waveforms (B, S), times `scale`, float32 (B, num_frames, 80).

    Of frames beyond a clip's end they mean nothing. The scale matters where energies reach the floor.
    """
    device = waveforms.device
    frames = (waveforms * scale).double().unfold(1, WINDOW_LENGTH, HOP_LENGTH)[:, :num_frames]
    log_mel = torch.empty((len(waveforms), num_frames, NUM_MEL_BINS), device=device)
    step = max(1, PIECE_FRAMES // len(waveforms))
    for start in range(0, num_frames, step):
        energies = _power_spectrum(frames[:, start : start + step]) @ _filters(device)
        log_mel[:, start : start + step] = energies.clamp_(min=MEL_FLOOR).log_()
    return log_mel


def _power_spectrum(frames: Tensor) -> Tensor:
    """Squared magnitudes, float64 (B, num_frames, 257), of frames, float64 (B, num_frames, 400)."""
    centred = frames - frames.mean(-1, keepdim=True)
    windowed = centred.clone()
    windowed[..., 1:] -= PREEMPHASIS * centred[..., :-1]
    windowed *= _window(frames.device)  # which is zero at the first sample: no pre-emphasis is needed there
    # Rounded to single precision before it is squared, as in the library.
    spectrum = torch.view_as_real(torch.fft.rfft(windowed, FFT_LENGTH).to(torch.complex64)).double()
    return spectrum.square_().sum(-1)


@functools.cache
def _window(device: torch.device) -> Tensor:
    """float64 (400,)."""
    return torch.from_numpy(povey_window()).to(device)


@functools.cache
def _filters(device: torch.device) -> Tensor:
    """float64 (257, 80)."""
    return torch.from_numpy(mel_filters()).to(device)
