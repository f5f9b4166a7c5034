"""Groups samples into batches and limits their size.

A padded batch costs rows x longest frames, a packed one the sum of its frames. Provides the nominal batch size for a
device's memory, the grouping of samples by length, and `FrameBudget`, which learns from out-of-memory errors. Knows
nothing about models or audio.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol, TypeVar

GIB = 1 << 30
TYPICAL_SECONDS = 15.0  # length of the clips that the table of batch sizes assumes
SHORT_CLIPS_FACTOR = 16  # a batch of short clips may have this many times the table's rows
CPU_BATCH_SIZE = 4  # 10 s of work for two cores: enough to amortise loading weights, and a kill loses little
MAX_PATIENCE = 1024
# A clip starts a new batch if it would make more than this share of the current one padding, and at least this many
# frames: a few padded frames cost less than another batch.
PADDING_SHARE = 0.04
PADDING_FRAMES = 200
# (minimum device memory in GiB, samples per batch); GPUs report slightly less than their nominal memory
BATCH_SIZE_BY_MEMORY = ((76.0, 48), (38.0, 24), (22.0, 16), (14.5, 8), (11.0, 6), (7.5, 4), (0.0, 2))


def batch_size_for_memory(total_bytes: int | None) -> int:
    """Nominal samples per batch for a device with `total_bytes` of memory; None is the CPU."""
    if total_bytes is None:
        return CPU_BATCH_SIZE
    return next(size for gib, size in BATCH_SIZE_BY_MEMORY if total_bytes >= gib * GIB)


class FrameBudget:
    """The maximum padded frames (rows x longest) of a batch, learnt from batches that fitted and that did not.

    A failure at n frames reduces the limit to the largest size that has fitted, or to n / 2. After `patience` batches
    that used at least half of it, the limit grows by an eighth: first to just below the smallest size that failed, then
    beyond it, as memory may have become free. Each time that fails, the patience doubles.
    """

    def __init__(self, limit: int | None = None, *, patience: int = 16) -> None:
        self.limit = limit
        self.patience = patience
        self._ceiling = limit
        self._fitted = 0
        self._failed_at: int | None = None
        self._streak = 0

    def allows(self, padded_frames: int) -> bool:
        """Whether a batch of that size may be tried; callers always try a single sample."""
        return self.limit is None or padded_frames <= self.limit

    def failed(self, padded_frames: int) -> None:
        """Record that a batch of that many padded frames ran out of memory."""
        if self._failed_at is not None and padded_frames >= self._failed_at:
            self.patience = min(2 * self.patience, MAX_PATIENCE)
        self._failed_at = padded_frames if self._failed_at is None else min(self._failed_at, padded_frames)
        if self._fitted >= padded_frames:
            self._fitted = 0
        known = max(self._fitted, padded_frames // 2, 1)
        self.limit = known if self.limit is None else min(self.limit, known)
        self._streak = 0

    def fitted(self, padded_frames: int) -> None:
        """Record that a batch of that many padded frames was computed."""
        self._fitted = max(self._fitted, padded_frames)
        if self._failed_at is None or self.limit is None:
            return
        if padded_frames >= self._failed_at:
            self._failed_at = padded_frames + 1
        if padded_frames > self.limit:  # a single long sample: many short ones of that size fit as well
            self.limit = self._within_ceiling(padded_frames)
        self._streak += 2 * padded_frames >= self.limit
        if self._streak >= self.patience:
            self._streak = 0
            grown = self.limit + max(1, self.limit // 8)
            if self.limit < self._failed_at - 1:
                grown = min(grown, self._failed_at - 1)
            self.limit = self._within_ceiling(grown)

    def _within_ceiling(self, limit: int) -> int:
        return limit if self._ceiling is None else min(limit, self._ceiling)


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """Maximum samples per batch, and the initial maximum of padded frames (None: no limit).

    `max_padding` is the maximum share of padding, enforced from `PADDING_FRAMES` frames of it on (None: no limit).
    """

    max_rows: int
    max_frames: int | None
    max_padding: float | None = None

    @classmethod
    def choose(cls, batch_size: int, memory_bytes: int | None, frame_rate: float = 50.0) -> "BatchLimits":
        """The user's `batch_size` in samples; for 0, the table's size in frames: short clips make larger batches.

        `frame_rate` is in frames per second.
        """
        if batch_size:
            return cls(batch_size, None)
        nominal = batch_size_for_memory(memory_bytes)
        return cls(nominal * SHORT_CLIPS_FACTOR, nominal * round(TYPICAL_SECONDS * frame_rate), PADDING_SHARE)

    def padding_fits(self, num_frames: int, padded_frames: int) -> bool:
        """Whether the padding of a batch with so many frames, and so many with padding, is within the limit."""
        if self.max_padding is None:
            return True
        return padded_frames - num_frames <= max(PADDING_FRAMES, self.max_padding * padded_frames)


class HasFrames(Protocol):
    """Anything with a length in frames."""

    @property
    def num_frames(self) -> int: ...


Item = TypeVar("Item", bound=HasFrames)


def batches(
    items: Iterable[Item],
    limits: BatchLimits,
    budget: FrameBudget,
    *,
    packed: bool = False,
    pads_from: int = 0,
) -> Iterator[list[Item]]:
    """Split a stream of samples, in order, into batches within the limits; reads one item ahead.

    Samples with fewer than `pads_from` frames are not padded: their batches only have samples of equal length.
    """
    batch: list[Item] = []
    longest = filled = shortest = 0
    for item in items:
        longest, filled = max(longest, item.num_frames), filled + item.num_frames
        shortest = min(shortest, item.num_frames) if batch else item.num_frames
        padded = filled if packed else (len(batch) + 1) * longest
        fits = len(batch) < limits.max_rows and budget.allows(padded) and limits.padding_fits(filled, padded)
        fits = fits and (shortest == longest or shortest >= pads_from)
        if batch and not fits:
            yield batch
            batch, longest, filled, shortest = [], item.num_frames, item.num_frames, item.num_frames
        batch.append(item)
    if batch:
        yield batch


def padded_frames(batch: Iterable[HasFrames], *, packed: bool = False) -> int:
    """The frames that are computed for a batch: rows x longest, or if packed, the sum of its frames."""
    lengths = [item.num_frames for item in batch]
    return sum(lengths) if packed else len(lengths) * max(lengths)
