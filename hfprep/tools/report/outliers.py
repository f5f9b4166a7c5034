"""Finds samples to listen to first: very long or short, unusual pace, much silence, clipping.

Takes the collected data; returns rows for a table.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from hfprep.tools.report.collect import Collected, first_of

EACH = 6
FEWEST = 20  # samples needed to know what is usual
FAR_SPREADS = 4.0  # half interquartile ranges of the logarithms, beyond the quartiles
MUCH_SILENCE, MUCH_CLIPPED = 0.5, 0.001


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
    tokens_and_codes = _pace(found)
    if tokens_and_codes is not None:
        odd += _far(tokens_and_codes, "few codes for its text", "many codes for its text", "{:.1f} codes per text id")
    for name, what, least in (("silence", "much silence", MUCH_SILENCE), ("clipped", "clipped", MUCH_CLIPPED)):
        heard = sorted(((signal[name], point) for point, signal in found.signals.items()), reverse=True)
        odd += [Outlier(point, what, f"{share:.1%} of the clip") for share, point in heard[:EACH] if share >= least]
    return odd


def _pace(found: Collected) -> np.ndarray | None:
    """Codes per token of the drawn samples."""
    tokens, codes = first_of(found.schema, "tokens"), first_of(found.schema, "codes")
    if tokens is None or codes is None:
        return None
    return np.array([row[codes.lengths[-1]] / max(1, row[tokens.lengths[-1]]) for row in found.points.rows])


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
