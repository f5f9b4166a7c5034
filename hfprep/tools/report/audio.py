"""What can be heard of some of the drawn samples: how much of a clip is silence, and whether it is clipped.

Reads the source audio, so only where the report may point at it; adds to what was collected.
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
QUIET_DB = -40.0  # below the clip's loud parts: silence
LOUD_QUANTILE = 0.95
FULL_SCALE = 0.985  # of samples at 16 kHz: what was clipped at another rate is not flat any more


def listen(found: Collected) -> None:
    """Read the audio of some of the drawn samples, spread evenly, and note what is heard in each."""
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
    """Share of a clip, float32 (num_samples,) at 16 kHz, that is 40 dB or more below its loud parts."""
    windows = samples[: len(samples) // WINDOW * WINDOW].reshape(-1, WINDOW)
    if not len(windows):
        return 0.0
    power = (windows.astype(np.float64) ** 2).mean(axis=1)
    loud = float(np.quantile(power, LOUD_QUANTILE))
    return 1.0 if loud <= 0 else float((power < loud * 10 ** (QUIET_DB / 10)).mean())


def clipped(samples: np.ndarray) -> float:
    """Share of samples at full scale."""
    return float((np.abs(samples) >= FULL_SCALE).mean()) if len(samples) else 0.0
