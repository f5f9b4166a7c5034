"""Finds samples to listen to first: very long or short, unusual pace, much silence, clipping.

Takes the collected data; returns rows for a table. Silence and clipping are known only after `listen`, which reads the
source audio of some of the drawn samples, so it is called only if the report may link to it.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

import numpy as np

from hfprep.errors import RejectedSample
from hfprep.inputs.audio.decode import TARGET_SAMPLING_RATE, load_waveform
from hfprep.tools.report.collect import IO_THREADS, Collected, codes_per_token

EACH = 6
FEWEST = 20  # samples needed to know what is usual
FAR_SPREADS = 4.0  # half interquartile ranges of the logarithms, beyond the quartiles
MUCH_SILENCE, MUCH_CLIPPED = 0.5, 0.001
MOST_CLIPS = 400
WINDOW = TARGET_SAMPLING_RATE // 50  # 20 ms
QUIET_DB = -40.0  # relative to the clip's loud parts, below which it is silence
LOUD_QUANTILE = 0.95
FULL_SCALE = 0.985  # below 1.0, because resampling to 16 kHz smooths clipped peaks


class Outlier(NamedTuple):
    """A drawn sample by its number, what is unusual about it, and the value."""

    point: int
    what: str
    value: str


def outliers(found: Collected) -> list[Outlier]:
    """A few outliers of each kind, the most extreme first."""
    rows = found.points.rows
    seconds = np.array([row["seconds"] for row in rows])
    odd = [*_far(seconds, "shorter than the rest", "longer than the rest", "{:.2f} s")]
    pace = codes_per_token(
        found.schema, {name: np.array([row[name] for row in rows]) for name in found.lengths.by_name}
    )
    if pace is not None:
        odd += _far(pace, "few codes for its text", "many codes for its text", "{:.1f} codes per text id")
    for name, what, least in (("silence", "much silence", MUCH_SILENCE), ("clipped", "clipped", MUCH_CLIPPED)):
        heard = sorted(((signal[name], point) for point, signal in found.signals.items()), reverse=True)
        odd += [Outlier(point, what, f"{share:.1%} of the clip") for share, point in heard[:EACH] if share >= least]
    return odd


def _far(values: np.ndarray, low: str, high: str, form: str) -> Iterator[Outlier]:
    """Values far below or above the rest, by their logarithms."""
    if len(values) < FEWEST or (values <= 0).all():
        return
    logarithms = np.log(np.maximum(values, 1e-9))
    first, third = np.quantile(logarithms, (0.25, 0.75))
    spread = max(float(third - first), 0.1)
    order = np.argsort(logarithms, kind="stable")
    for point in order[:EACH]:
        if logarithms[point] < first - FAR_SPREADS * spread / 2:
            yield Outlier(int(point), low, form.format(values[point]))
    for point in order[::-1][:EACH]:
        if logarithms[point] > third + FAR_SPREADS * spread / 2:
            yield Outlier(int(point), high, form.format(values[point]))


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
