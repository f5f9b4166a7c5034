"""Input features and CAM++'s log mel energies of a whole batch at once, on the device of its waveforms.

Provides `batch_input_features`, which does the same computation as `input_features.extract_input_features`, in torch,
and `batch_fbank`, with the same frames, window and mel filters: but samples count from -1 to 1 (so more energies reach
the floor), every frame is kept, and of each bin only the mean is taken away. The caller has checked the clips. Source:
Kaldi's fbank as in torchaudio.compliance.kaldi, without dither.
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

PIECE_FRAMES = 1 << 15  # mel frames per piece: their float64 frames and spectra are about 600 MB


def batch_input_features(waveforms: Tensor, num_samples: Tensor) -> Tensor:
    """Compute the input features of B clips.

    waveforms: float32 (B, S) at 16 kHz, zero-padded; num_samples: int64 (B,) on the CPU, at most S. Returns float32 (B,
    T, 160) on the device of the waveforms, where T is the frames of the longest clip; frames after a clip's
    `num_input_frames` are zero. Clips must pass `check_waveform`. Does not synchronise with the device. The results
    equal those of `extract_input_features` up to float32 rounding. Mean and variance are summed in double precision, so
    that they do not depend on the rest of the batch.
    """
    device = waveforms.device
    num_frames = max(map(num_input_frames, num_samples.tolist()))
    with torch.inference_mode():
        mel_frames = 1 + (num_samples - WINDOW_LENGTH).div(HOP_LENGTH, rounding_mode="floor")
        counts = to_device(torch.stack([mel_frames, mel_frames - mel_frames % STRIDE]), device)[:, :, None]
        log_mel = log_mel_energies(waveforms, int(mel_frames.max()), scale=float(PCM_SCALE))
        position = torch.arange(log_mel.shape[1], device=device)[None, :]
        # Mean and variance include a last odd mel frame, which is in no model frame.
        present = (position < counts[0])[:, :, None]
        total = counts[0][:, :, None].double()
        mean = torch.where(present, log_mel, 0.0).sum(1, keepdim=True, dtype=torch.float64) / total
        squares = torch.where(present, log_mel - mean, 0.0).square_()
        variance = squares.sum(1, keepdim=True) / (total - 1)
        normalised = (log_mel - mean.float()) / torch.sqrt(variance.float() + VARIANCE_FLOOR)
        normalised.masked_fill_((position >= counts[1])[:, :, None], 0.0)
        return normalised[:, : num_frames * STRIDE].reshape(len(waveforms), num_frames, FEATURE_DIM)


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


def log_mel_energies(waveforms: Tensor, num_frames: int, *, scale: float) -> Tensor:
    """Log mel energies of waveforms (B, S), times `scale`, float32 (B, num_frames, 80).

    Those after a clip's end are undefined. The scale matters for energies at the floor.
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
    windowed *= _window(frames.device)  # zero at the first sample, which thus needs no pre-emphasis
    # Rounded to single precision before squaring, as in the library.
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
