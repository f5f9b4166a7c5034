"""Waveform -> the w2v-bert-2.0 input features: log mel energies, normalised per utterance, stacked two by two.

Gives what `transformers.SeamlessM4TFeatureExtractor` gives for one utterance, without its Python loop over frames and
without its padding: only frames that the attention mask calls valid. Takes float32 samples at 16 kHz. Knows nothing
of files, of batches or of the model that reads the features.
"""

import functools
import json
import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hfprep.errors import ConfigError, Reason, RejectedSample

if TYPE_CHECKING:
    import torch

SAMPLING_RATE = 16_000  # Hz
WINDOW_SECONDS = 0.025
HOP_SECONDS = 0.010
WINDOW_LENGTH = round(WINDOW_SECONDS * SAMPLING_RATE)  # 400 samples
HOP_LENGTH = round(HOP_SECONDS * SAMPLING_RATE)  # 160 samples
FFT_LENGTH = 512  # the next power of two above WINDOW_LENGTH
NUM_FREQUENCY_BINS = FFT_LENGTH // 2 + 1  # 257, each SAMPLING_RATE / FFT_LENGTH = 31.25 Hz wide
NUM_MEL_BINS = 80
MIN_FREQUENCY = 20.0  # Hz
MAX_FREQUENCY = SAMPLING_RATE / 2  # Hz
STRIDE = 2  # mel frames per model frame
FEATURE_DIM = NUM_MEL_BINS * STRIDE  # 160
MIN_SAMPLES = WINDOW_LENGTH + (STRIDE - 1) * HOP_LENGTH  # the shortest waveform with one valid model frame: 560

PCM_SCALE = np.float32(2**15)  # Kaldi counts in 16-bit steps
PREEMPHASIS = 0.97
POVEY_EXPONENT = 0.85
MEL_FLOOR = 2.0**-23  # 1.1921e-07, float32's epsilon, as in Kaldi
VARIANCE_FLOOR = 1e-7

SAFE_PEAK = 1e30  # 400 samples of this, doubled by the pre-emphasis, times 2^15 sum up to 3e37: within float32

BLOCK_FRAMES = 256  # mel frames that are worked on at a time
MEL_GROUP = 16  # mel bins per matrix product: the filters are narrow, so each group sees a fraction of the spectrum

PREPROCESSOR_VALUES = {
    "feature_extractor_type": "SeamlessM4TFeatureExtractor",
    "feature_size": NUM_MEL_BINS,
    "num_mel_bins": NUM_MEL_BINS,
    "sampling_rate": SAMPLING_RATE,
    "stride": STRIDE,
    "padding_side": "right",
}
"""Keys of preprocessor_config.json that change valid frames. (padding_value fills only frames that are masked out.)"""


def num_input_frames(num_samples: int) -> int:
    """Valid model frames (50 a second) of a waveform of `num_samples` samples at 16 kHz."""
    if num_samples < WINDOW_LENGTH:
        return 0
    return (1 + (num_samples - WINDOW_LENGTH) // HOP_LENGTH) // STRIDE


def extract_input_features(waveform: np.ndarray) -> np.ndarray:
    """Compute the input features of one utterance.

    waveform: float32 (num_samples,), full scale 1.0, at 16 kHz. Returns float32 (T_valid, 160) with
    T_valid = `num_input_frames(num_samples)`: the mel bins of an even 10 ms frame, then of the odd one after it.
    Raises RejectedSample: AUDIO_TOO_SHORT below one frame, AUDIO_NOT_FINITE where samples are beyond float32's reach.
    Safe to call from many threads. Source: Kaldi's fbank as in transformers' SeamlessM4TFeatureExtractor.
    """
    num_frames = num_input_frames(len(waveform))
    if num_frames == 0:
        message = f"the clip has {len(waveform)} samples at 16 kHz; one frame of features needs {MIN_SAMPLES}"
        raise RejectedSample(Reason.AUDIO_TOO_SHORT, message)
    log_mel = _log_mel(waveform)
    # The mean and variance are of all mel frames, also of a last odd one that no model frame holds.
    mean = log_mel.mean(axis=1, keepdims=True)
    variance = log_mel.var(axis=1, ddof=1, keepdims=True)
    normalised = (log_mel - mean) / np.sqrt(variance + np.float32(VARIANCE_FLOOR))
    if not np.isfinite(normalised).all():
        raise RejectedSample(Reason.AUDIO_NOT_FINITE, "the samples' energy overflows float32: scale the clip to +-1.0")
    return np.ascontiguousarray(normalised.T[: num_frames * STRIDE]).reshape(num_frames, FEATURE_DIM)


def check_waveform(waveform: np.ndarray) -> None:
    """Raise RejectedSample if `extract_input_features` would, for next to nothing where the samples are sane."""
    # Written so that NaN is not below the bound either.
    if num_input_frames(len(waveform)) == 0 or not max(waveform.max(), -waveform.min()) < SAFE_PEAK:
        extract_input_features(waveform)


def check_preprocessor(path: str | os.PathLike[str]) -> None:
    """Hold a preprocessor_config.json against what `extract_input_features` computes.

    A key that the file leaves out has the library's default, which is ours. Raises ConfigError naming each
    key that differs, both values, or the file when it cannot be read.
    """
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read as JSON ({error}); fetch the semantic model again") from error
    if not isinstance(found, dict):
        raise ConfigError(f"{path}: holds {type(found).__name__}, not an object; fetch the semantic model again")
    wrong = [
        f"{key} is {found[key]!r}, hfprep computes {value!r}"
        for key, value in PREPROCESSOR_VALUES.items()
        if key in found and found[key] != value
    ]
    if wrong:
        raise ConfigError(f"{path}: {'; '.join(wrong)}; use the preprocessor of facebook/w2v-bert-2.0")


def _log_mel(waveform: np.ndarray) -> np.ndarray:
    """Log mel energies, float32 (80, num_mel_frames): bins first, as the normalisation sums along frames."""
    num_frames = 1 + (len(waveform) - WINDOW_LENGTH) // HOP_LENGTH
    log_mel = np.empty((NUM_MEL_BINS, num_frames), np.float32)
    with np.errstate(over="ignore", invalid="ignore"):  # the caller checks the result
        for start in range(0, num_frames, BLOCK_FRAMES):
            end = min(start + BLOCK_FRAMES, num_frames)
            samples = waveform[start * HOP_LENGTH : (end - 1) * HOP_LENGTH + WINDOW_LENGTH]
            energies = _mel_energies(_buffers.power_spectra(samples))
            np.maximum(energies, MEL_FLOOR, out=energies)
            log_mel[:, start:end] = np.log(energies, out=energies).T
    return log_mel


class _Buffers(threading.local):
    """Arrays for intermediate results, which each thread keeps: what is made for each clip leaves a core's cache."""

    def __init__(self) -> None:
        self._scaled = np.zeros((BLOCK_FRAMES - 1) * HOP_LENGTH + WINDOW_LENGTH)
        self._frames = np.lib.stride_tricks.sliding_window_view(self._scaled, WINDOW_LENGTH)[::HOP_LENGTH]  # a view
        self._centred = np.empty((BLOCK_FRAMES, WINDOW_LENGTH))
        self._windowed = np.zeros((BLOCK_FRAMES, FFT_LENGTH))  # zero beyond the window
        self._spectra = np.empty((BLOCK_FRAMES, NUM_FREQUENCY_BINS), np.complex128)
        self._rounded = np.empty((BLOCK_FRAMES, NUM_FREQUENCY_BINS), np.complex64)
        self._power = np.empty((BLOCK_FRAMES, NUM_FREQUENCY_BINS))

    def power_spectra(self, samples: np.ndarray) -> np.ndarray:
        """Power spectra, float64 (num_frames, 257), of the frames in samples, float32; at most BLOCK_FRAMES."""
        count = 1 + (len(samples) - WINDOW_LENGTH) // HOP_LENGTH
        np.multiply(samples, PCM_SCALE, out=self._scaled[: len(samples)], dtype=np.float32)
        frames, centred, padded = self._frames[:count], self._centred[:count], self._windowed[:count]
        np.subtract(frames, frames.mean(axis=1, keepdims=True), out=centred)
        windowed = padded[:, :WINDOW_LENGTH]
        np.multiply(centred[:, :-1], PREEMPHASIS, out=windowed[:, 1:])
        np.subtract(centred[:, 1:], windowed[:, 1:], out=windowed[:, 1:])
        np.multiply(centred[:, 0], 1 - PREEMPHASIS, out=windowed[:, 0])
        windowed *= povey_window()
        # The library stores the spectrum as complex64 before it squares; the rounding is kept so that its numbers are.
        rounded, power = self._rounded[:count], self._power[:count]
        rounded[...] = np.fft.rfft(padded, out=self._spectra[:count])
        np.abs(rounded, dtype=np.float64, out=power)
        return np.square(power, out=power)


_buffers = _Buffers()


def _mel_energies(power: np.ndarray) -> np.ndarray:
    """float64 (num_frames, 257) -> (num_frames, 80).

    Products by torch: numpy's BLAS starts all its threads from within each of our worker threads, and cannot be
    told otherwise for one thread.
    """
    import torch

    source = torch.from_numpy(power)
    energies = torch.empty(len(power), NUM_MEL_BINS, dtype=torch.float64)
    for bins, frequencies, filters in _mel_filter_groups():
        torch.mm(source[:, frequencies], filters, out=energies[:, bins])
    return energies.numpy()


@functools.cache
def povey_window() -> np.ndarray:
    """float64 (400,): a symmetric Hann window to the power 0.85."""
    return np.hanning(WINDOW_LENGTH) ** POVEY_EXPONENT


@functools.cache
def mel_filters() -> np.ndarray:
    """Kaldi's mel filters, float64 (257, 80): triangles of equal width on the mel scale from 20 to 8000 Hz.

    mel(f) = 1127 ln(1 + f / 700); neighbouring triangles overlap by half and are not normalised by their area.
    """
    ends = _mel(np.array([MIN_FREQUENCY, MAX_FREQUENCY]))
    corners = np.linspace(ends[0], ends[1], NUM_MEL_BINS + 2)
    bins = _mel(np.arange(NUM_FREQUENCY_BINS) * (SAMPLING_RATE / FFT_LENGTH))[:, None]
    rising = (bins - corners[:-2]) / np.diff(corners)[:-1]
    falling = (corners[2:] - bins) / np.diff(corners)[1:]
    return np.maximum(0.0, np.minimum(rising, falling))


def _mel(frequency: np.ndarray) -> np.ndarray:
    return 1127.0 * np.log(1.0 + frequency / 700.0)


@functools.cache
def _mel_filter_groups() -> tuple[tuple[slice, slice, "torch.Tensor"], ...]:
    """For each group of filters: its mel bins, the frequency bins it reads, and its part of the matrix."""
    import torch

    groups = []
    for first in range(0, NUM_MEL_BINS, MEL_GROUP):
        bins = slice(first, first + MEL_GROUP)
        used = np.flatnonzero(mel_filters()[:, bins].any(axis=1))
        frequencies = slice(int(used[0]), int(used[-1]) + 1)
        groups.append((bins, frequencies, torch.from_numpy(np.ascontiguousarray(mel_filters()[frequencies, bins]))))
    return tuple(groups)
