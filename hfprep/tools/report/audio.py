"""Measures silence and clipping in the audio of some of the drawn samples.

Reads the source audio, so it runs only if the report may link to it. Adds to the collected data.
"""

from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np

from hfprep.errors import RejectedSample
from hfprep.inputs.audio.decode import TARGET_SAMPLING_RATE, load_waveform
from hfprep.tools.report.collect import IO_THREADS, Collected

MOST_CLIPS = 400
WINDOW = TARGET_SAMPLING_RATE // 50  # 20 ms
QUIET_DB = -40.0  # relative to the clip's loud parts, below which it is silence
LOUD_QUANTILE = 0.95
FULL_SCALE = 0.985  # below 1.0, because resampling to 16 kHz smooths clipped peaks


def listen(found: Collected) -> None:
    """Read the audio of evenly spaced drawn samples, and record silence and clipping of each."""
    rows = found.points.rows
    every = max(1, -(-len(rows) // MOST_CLIPS))
    wanted = [number for number in range(0, len(rows), every) if rows[number].get("audio")]
    with ThreadPoolExecutor(IO_THREADS) as pool:
        for number, signal in zip(wanted, pool.map(lambda number: _heard(rows[number]), wanted), strict=True):
            if signal is not None:
                found.audio_looked_at += 1
                found.signals[number] = signal


def _heard(row: dict[str, Any]) -> dict[str, float] | None:
    try:
        samples = load_waveform(unquote(urlsplit(row["audio"]).path)).samples
    except (RejectedSample, OSError):
        return None
    return {"silence": silence(samples), "clipped": clipped(samples)}


def silence(samples: np.ndarray) -> float:
    """The fraction of a clip, float32 (num_samples,) at 16 kHz, that is 40 dB or more below its loud parts."""
    windows = samples[: len(samples) // WINDOW * WINDOW].reshape(-1, WINDOW)
    if not len(windows):
        return 0.0
    power = (windows.astype(np.float64) ** 2).mean(axis=1)
    loud = float(np.quantile(power, LOUD_QUANTILE))
    return 1.0 if loud <= 0 else float((power < loud * 10 ** (QUIET_DB / 10)).mean())


def clipped(samples: np.ndarray) -> float:
    """The fraction of samples at full scale."""
    return float((np.abs(samples) >= FULL_SCALE).mean()) if len(samples) else 0.0
