"""Windowed-sinc resampling of a mono waveform, with the filter kept for each pair of rates.

Gives the numbers of `torchaudio.functional.resample` with its defaults, bit for bit, at every pair of rates whose
filter is of sensible size; rates that share almost no divisor (44,099 to 16,000) go through the same filter evaluated
where it is needed. Takes float32 samples. Knows nothing of files.
"""

import functools
import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch

FILTER_ZERO_CROSSINGS = 6  # on each side; torchaudio calls it lowpass_filter_width
ROLLOFF = 0.99  # of the lower rate's Nyquist frequency
MAX_KERNEL_VALUES = 1 << 22  # 16 MiB; 44.1 and 22.05 kHz to 16 kHz need 75,000 values
KERNELS_KEPT = 16  # pairs of rates
BLOCK_VALUES = 1 << 20


def resample(waveform: np.ndarray, source_rate: int, target_rate: int) -> np.ndarray:
    """Resample from `source_rate` to `target_rate` (both Hz, whole numbers above 0).

    waveform: float32 (num_samples,). Returns float32 (ceil(num_samples * target_rate / source_rate),).
    Source: torchaudio.functional.resample (Hann-windowed sinc, after Smith's digital audio resampling page).
    """
    if source_rate == target_rate:
        return waveform
    divisor = math.gcd(source_rate, target_rate)
    source_step, target_step = source_rate // divisor, target_rate // divisor
    half_width = math.ceil(FILTER_ZERO_CROSSINGS * source_step / (min(source_step, target_step) * ROLLOFF))
    if target_step * (source_step + 2 * half_width) > MAX_KERNEL_VALUES:
        return _resample_directly(waveform, source_step, target_step, half_width)
    import torch  # takes seconds, which a process that resamples nothing need not wait for

    with torch.inference_mode():
        filters = _filters(source_step, target_step, half_width)
        padded = torch.nn.functional.pad(torch.from_numpy(waveform), (half_width, half_width + source_step))
        phases = torch.nn.functional.conv1d(padded[None, None], filters, stride=source_step)  # (1, target_step, blocks)
        num_outputs = -(-len(waveform) * target_step // source_step)
        resampled: np.ndarray = phases[0].T.reshape(-1)[:num_outputs].numpy()
    return resampled


@functools.lru_cache(maxsize=KERNELS_KEPT)
def _filters(source_step: int, target_step: int, half_width: int) -> "torch.Tensor":
    """One filter for each phase of the output: float32 (target_step, 1, source_step + 2 * half_width).

    The order of the operations, all in float32, decides the last bits: it is torchaudio's.
    """
    import torch

    base = min(source_step, target_step) * ROLLOFF
    taps = torch.arange(-half_width, half_width + source_step, dtype=torch.float32) / source_step
    phases = torch.arange(0, -target_step, -1, dtype=torch.float32) / target_step
    time = ((phases[:, None, None] + taps) * base).clamp(-FILTER_ZERO_CROSSINGS, FILTER_ZERO_CROSSINGS)
    window = torch.cos(time * math.pi / FILTER_ZERO_CROSSINGS / 2) ** 2
    time = time * math.pi
    sinc = torch.where(time == 0, torch.ones(()), time.sin() / time)
    return sinc * (window * (base / source_step))


def _resample_directly(waveform: np.ndarray, source_step: int, target_step: int, half_width: int) -> np.ndarray:
    """The same filter, evaluated for each output sample in float64: slower, but no table of every phase."""
    num_outputs = -(-len(waveform) * target_step // source_step)
    base = min(source_step, target_step) * ROLLOFF / source_step  # the filter's bandwidth in units of the source rate
    taps = np.arange(-half_width, half_width + 1)
    padded = np.pad(waveform.astype(np.float64), half_width)
    resampled = np.empty(num_outputs, np.float32)
    block = max(1, BLOCK_VALUES // len(taps))
    for start in range(0, num_outputs, block):
        position = np.arange(start, min(start + block, num_outputs)) * source_step
        nearest, fraction = position // target_step, position % target_step / target_step
        time = np.clip((taps - fraction[:, None]) * base, -FILTER_ZERO_CROSSINGS, FILTER_ZERO_CROSSINGS)
        weights = np.sinc(time) * np.cos(time * (np.pi / 2 / FILTER_ZERO_CROSSINGS)) ** 2 * base
        samples = padded[np.minimum(nearest[:, None] + taps + half_width, len(padded) - 1)]
        resampled[start : start + block] = (weights * samples).sum(axis=1)
    return resampled
