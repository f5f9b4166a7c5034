"""Windowed-sinc resampling of a mono waveform, with the filters cached for each pair of rates.

Bitwise equal to `torchaudio.functional.resample` with its defaults for every pair of rates whose filters have a
reasonable size (silence may come out as 1e-23). For rates with almost no common divisor, like 44,099 and 16,000, the
same filter is evaluated for each output. Takes float32 samples. Knows nothing about files.
"""

import functools
import itertools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch

FILTER_ZERO_CROSSINGS = 6  # on each side; torchaudio calls it lowpass_filter_width
ROLLOFF = 0.99  # of the lower rate's Nyquist frequency
MAX_KERNEL_VALUES = 1 << 22  # 16 MiB; 44.1 and 22.05 kHz to 16 kHz need 75,000 values
KERNELS_KEPT = 16  # pairs of rates
BLOCK_VALUES = 1 << 20
SHORT_SAMPLES = 1 << 15  # below 20,480 samples torch's convolution sums in another order
PROBED_SAMPLES = (SHORT_SAMPLES, 6 * SHORT_SAMPLES)
PART_OUTPUTS = 16
ROW_MULTIPLE = 64  # with other numbers of rows, the rest may be summed in another order
SILENT_TAP = 1e-20  # taps beyond a filter's zero crossings are 1e-23 instead of 0, by rounding


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
    plan = None if len(waveform) < SHORT_SAMPLES else _plan(source_step, target_step, half_width)
    resampled = _convolve(waveform, source_step, target_step, half_width) if plan is None else plan.multiply(waveform)
    return resampled[: -(-len(waveform) * target_step // source_step)]


def _convolve(waveform: np.ndarray, source_step: int, target_step: int, half_width: int) -> np.ndarray:
    """Resample as torchaudio does: all phases of the filter convolved with the waveform."""
    import torch  # takes seconds, and a process that does not resample does not need it

    with torch.inference_mode():
        filters = _filters(source_step, target_step, half_width)[:, None]
        padded = torch.nn.functional.pad(torch.from_numpy(waveform), (half_width, half_width + source_step))
        phases = torch.nn.functional.conv1d(padded[None, None], filters, stride=source_step)  # (1, target_step, blocks)
        resampled: np.ndarray = phases[0].T.reshape(-1).numpy()
    return resampled


@dataclass(frozen=True, slots=True)
class _Part:
    """Neighbouring outputs of a row, and the filters (taps, outputs) over the source samples they depend on."""

    outputs: slice
    first_tap: int
    filters: "torch.Tensor"


@dataclass(frozen=True, slots=True)
class _Plan:
    """Resampling as matrix products: each row of outputs starts `row_step` source samples after the row before.

    The convolution multiplies with every tap of every phase, most of which are zero if there are many phases, and
    returns the outputs phase by phase. This takes a third to a tenth of its time.
    """

    row_outputs: int
    row_step: int
    half_width: int
    parts: tuple[_Part, ...]

    def multiply(self, waveform: np.ndarray) -> np.ndarray:
        """The resampled waveform, with some zeros at the end."""
        import torch

        num_rows = math.ceil(len(waveform) / self.row_step / ROW_MULTIPLE) * ROW_MULTIPLE
        padded = np.zeros(num_rows * self.row_step + 2 * self.half_width, np.float32)
        padded[self.half_width : self.half_width + len(waveform)] = waveform
        source, resampled = torch.from_numpy(padded), torch.empty(num_rows, self.row_outputs)
        with torch.inference_mode():
            for part in self.parts:
                windows = source.as_strided((num_rows, len(part.filters)), (self.row_step, 1), part.first_tap)
                torch.mm(windows, part.filters, out=resampled[:, part.outputs])
        found: np.ndarray = resampled.view(-1).numpy()
        return found


@functools.lru_cache(maxsize=KERNELS_KEPT)
def _plan(source_step: int, target_step: int, half_width: int) -> _Plan | None:
    """The plan for a ratio of rates; None if its results are not bitwise those of the convolution.

    On the processors that were tested, products about 16 columns wide sum the same terms in the same order, with up to
    about 200 taps. The last bits of an upsampled or low-passed clip can change codes, so each process tests this first.
    """
    import torch

    filters = _filters(source_step, target_step, half_width)
    repeats = math.ceil(PART_OUTPUTS / target_step)  # if there are few phases, a row repeats all of them
    row_outputs, row_step = repeats * target_step, repeats * source_step
    matrix = torch.zeros(row_outputs, row_step + 2 * half_width)
    for repeat in range(repeats):
        first = repeat * source_step
        matrix[repeat * target_step : (repeat + 1) * target_step, first : first + filters.shape[1]] = filters
    num_parts = row_outputs // PART_OUTPUTS
    parts = []
    for start, end in itertools.pairwise(row_outputs * part // num_parts for part in range(num_parts + 1)):
        taps = (matrix[start:end].abs() > SILENT_TAP).any(0).nonzero()[:, 0]
        first, last = int(taps[0]), int(taps[-1])
        parts.append(_Part(slice(start, end), first, matrix[start:end, first : last + 1].T.contiguous()))
    plan = _Plan(row_outputs, row_step, half_width, tuple(parts))
    noise = np.random.default_rng(0).standard_normal(PROBED_SAMPLES[-1]).astype(np.float32)
    for count in PROBED_SAMPLES:
        convolved = _convolve(noise[:count], source_step, target_step, half_width)
        num_outputs = count * target_step // source_step
        if not np.array_equal(plan.multiply(noise[:count])[:num_outputs], convolved[:num_outputs]):
            return None
    return plan


@functools.lru_cache(maxsize=KERNELS_KEPT)
def _filters(source_step: int, target_step: int, half_width: int) -> "torch.Tensor":
    """One filter for each phase of the output: float32 (target_step, source_step + 2 * half_width).

    The order of operations, all in float32, is torchaudio's: the last bits depend on it.
    """
    import torch

    base = min(source_step, target_step) * ROLLOFF
    taps = torch.arange(-half_width, half_width + source_step, dtype=torch.float32) / source_step
    phases = torch.arange(0, -target_step, -1, dtype=torch.float32) / target_step
    time = ((phases[:, None] + taps) * base).clamp(-FILTER_ZERO_CROSSINGS, FILTER_ZERO_CROSSINGS)
    window = torch.cos(time * math.pi / FILTER_ZERO_CROSSINGS / 2) ** 2
    time = time * math.pi
    sinc = torch.where(time == 0, torch.ones(()), time.sin() / time)
    return sinc * (window * (base / source_step))


def _resample_directly(waveform: np.ndarray, source_step: int, target_step: int, half_width: int) -> np.ndarray:
    """The same filter, evaluated for each output sample in float64: slower, but without a table of all phases."""
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
