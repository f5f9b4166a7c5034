"""Finds samples with an unlikely pace: far more or fewer characters per second than usual in their language.

They may have the wrong text, a long silence, or another clip's audio. Takes rows one by one, in constant memory.
"""

import heapq
import itertools
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from hfprep.schema import Utterance
from hfprep.tools.shares import NONE_GIVEN

KEPT = 40  # slowest and fastest samples kept per language
FEWEST = 20  # samples of a language needed to know the usual pace
FACTOR = 3.0  # ratio to the usual pace from which a sample is an outlier
BINS_PER_OCTAVE = 8


@dataclass
class _Paces:
    """The paces of a language: a histogram of their logarithms, and the extremes as (pace, number, id)."""

    bins: Counter[int] = field(default_factory=Counter)
    slowest: list[tuple[float, int, str]] = field(default_factory=list)
    fastest: list[tuple[float, int, str]] = field(default_factory=list)

    def median(self) -> float:
        """The usual pace, within a sixteenth of an octave."""
        seen, total = 0, self.bins.total()
        for place in sorted(self.bins):
            seen += self.bins[place]
            if 2 * seen >= total:
                return float(2 ** ((place + 0.5) / BINS_PER_OCTAVE))
        return 0.0


@dataclass
class Pace:
    """Characters per second, by language."""

    languages: dict[str, _Paces] = field(default_factory=dict)
    _numbers: Iterator[int] = field(default_factory=itertools.count, compare=False)

    def add(self, utterance: Utterance, seconds: float) -> None:
        """Add a sample."""
        characters = sum(not character.isspace() for character in utterance.text)
        if not characters or seconds <= 0:
            return
        pace = characters / seconds
        found = self.languages.setdefault(utterance.language or NONE_GIVEN, _Paces())
        found.bins[math.floor(math.log2(pace) * BINS_PER_OCTAVE)] += 1
        number = next(self._numbers)
        _keep(found.fastest, (pace, -number, utterance.id))
        _keep(found.slowest, (-pace, -number, utterance.id))

    def outliers(self) -> list[tuple[str, str, float, float]]:
        """Id, language, characters per second, and the language's usual pace; the most unlikely first."""
        found = []
        for language, paces in self.languages.items():
            if paces.bins.total() < FEWEST:
                continue
            usual = paces.median()
            for pace, _, sample_id in paces.fastest:
                if pace > FACTOR * usual:
                    found.append((sample_id, language, pace, usual))
            for negative, _, sample_id in paces.slowest:
                if -negative < usual / FACTOR:
                    found.append((sample_id, language, -negative, usual))
        return sorted(found, key=lambda item: -abs(math.log(item[2] / item[3])))


def _keep(heap: list[tuple[float, int, str]], item: tuple[float, int, str]) -> None:
    if len(heap) < KEPT:
        heapq.heappush(heap, item)
    else:
        heapq.heappushpop(heap, item)
