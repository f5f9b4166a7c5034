"""Learns BPE merges on top of an existing segmentation.

Takes words as symbols with their counts; returns the pieces to add, best first. Words are segmented as a BPE model with
the earlier pieces would, so that each new piece is reachable and its count is right. Deterministic: ties go to the
piece that sorts first. (Sennrich et al., 2016.)
"""

import functools
import heapq
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

LEAST_COUNT = 2  # pairs that occur once are not merged


def learn_merges(words: Mapping[tuple[str, ...], int], most: int, allowed: Callable[[str], bool]) -> list[str]:
    """At most `most` new pieces for words (symbols to count); only pieces for which `allowed` is true."""
    learner = _Learner(words, allowed)
    while len(learner.ranks) < most and learner.learn():
        pass
    return list(learner.ranks)


class _Learner:
    def __init__(self, words: Mapping[tuple[str, ...], int], allowed: Callable[[str], bool]) -> None:
        self.ranks: dict[str, int] = {}
        self._allowed = functools.cache(allowed)
        self._words = [list(symbols) for symbols in words]
        self._times = list(words.values())
        self._counts = Counter[str]()
        self._places: defaultdict[str, set[int]] = defaultdict(set)
        for index in range(len(self._words)):
            self._count(index, 1)
        self._heap = [(-count, piece) for piece, count in self._counts.items()]
        heapq.heapify(self._heap)

    def learn(self) -> bool:
        """Add the most frequent piece; False if none is left."""
        while self._heap:
            count, piece = heapq.heappop(self._heap)
            if -count < LEAST_COUNT:
                return False
            if self._counts[piece] == -count:  # otherwise the count has changed, and is in the heap again
                self._add(piece)
                return True
        return False

    def _add(self, piece: str) -> None:
        self.ranks[piece] = len(self.ranks)
        changed = set[str]()
        for index in self._places.pop(piece):
            changed |= self._count(index, -1)
            self._words[index] = merged(self._words[index], self.ranks)
            changed |= self._count(index, 1)
        for other in changed:
            if self._counts[other] > 0:
                heapq.heappush(self._heap, (-self._counts[other], other))

    def _count(self, index: int, sign: int) -> set[str]:
        """Add (1) or remove (-1) a word's pairs from the counts; returns the pieces that they would make."""
        found = set()
        for left, right in pairwise(self._words[index]):
            piece = left + right
            if not self._allowed(piece):
                continue
            found.add(piece)
            self._counts[piece] += sign * self._times[index]
            if sign > 0:
                self._places[piece].add(index)
        return found


def merged(symbols: Sequence[str], ranks: Mapping[str, int]) -> list[str]:
    """A word's symbols after merging all pairs that make a known piece, lowest rank first, then from the left."""
    word = list(symbols)
    while True:
        known = [
            (rank, place)
            for place, (left, right) in enumerate(pairwise(word))
            if (rank := ranks.get(left + right)) is not None
        ]
        if not known:
            return word
        _, place = min(known)
        word[place : place + 2] = [word[place] + word[place + 1]]
