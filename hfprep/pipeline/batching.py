"""Which samples go together, and how large a batch may be.

A padded batch costs rows x longest, in frames, a packed one its own frames only. Gives the nominal batch size by
device memory, the grouping of samples by length, and `FrameBudget`, which learns from out-of-memory errors. Knows
nothing of models or audio.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol, TypeVar

GIB = 1 << 30
TYPICAL_SECONDS = 15.0  # the clip that the table of batch sizes has in mind
SHORT_CLIPS_FACTOR = 16  # short clips may fill a batch with this many times the table's rows
CPU_BATCH_SIZE = 4  # 10 s of work for two cores: enough to map weights for, and a kill or Ctrl-C costs one batch
MAX_PATIENCE = 1024
# A batch ends before the clip that would make more than this share of it padding, provided that this is at least so
# many frames: beside the fixed cost of one more batch, a few padded frames are nothing.
PADDING_SHARE = 0.04
PADDING_FRAMES = 200
# (device memory in GiB from which it holds, samples a batch); cards report a little less than their nominal size
BATCH_SIZE_BY_MEMORY = ((76.0, 48), (38.0, 24), (22.0, 16), (14.5, 8), (11.0, 6), (7.5, 4), (0.0, 2))


def batch_size_for_memory(total_bytes: int | None) -> int:
    """Nominal samples a batch for a device with `total_bytes` of memory; None stands for the CPU."""
    if total_bytes is None:
        return CPU_BATCH_SIZE
    return next(size for gib, size in BATCH_SIZE_BY_MEMORY if total_bytes >= gib * GIB)


class FrameBudget:
    """The padded frames (rows x longest) that a batch may hold, learnt from what fitted and what did not.

    A failure at n frames takes the limit back to the largest size that has fitted, or to n / 2. After `patience`
    batches that used the limit well it grows by an eighth, first to just below the smallest size that failed, then,
    for memory may have become free, beyond it; each time such a trial fails the patience doubles.
    """

    def __init__(self, limit: int | None = None, *, patience: int = 16) -> None:
        self.limit = limit
        self.patience = patience
        self._ceiling = limit
        self._fitted = 0
        self._failed_at: int | None = None
        self._streak = 0

    def allows(self, padded_frames: int) -> bool:
        """Whether a batch of that size may be tried; a single sample is always tried by its caller."""
        return self.limit is None or padded_frames <= self.limit

    def failed(self, padded_frames: int) -> None:
        """A batch of that many padded frames ran out of memory."""
        if self._failed_at is not None and padded_frames >= self._failed_at:
            self.patience = min(2 * self.patience, MAX_PATIENCE)
        self._failed_at = padded_frames if self._failed_at is None else min(self._failed_at, padded_frames)
        if self._fitted >= padded_frames:
            self._fitted = 0
        known = max(self._fitted, padded_frames // 2, 1)
        self.limit = known if self.limit is None else min(self.limit, known)
        self._streak = 0

    def fitted(self, padded_frames: int) -> None:
        """A batch of that many padded frames went through."""
        self._fitted = max(self._fitted, padded_frames)
        if self._failed_at is None or self.limit is None:
            return
        if padded_frames >= self._failed_at:
            self._failed_at = padded_frames + 1
        if padded_frames > self.limit:  # a lone long sample: as much fits as many short ones, too
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
    """How many samples a batch may hold at most, and the padded frames it starts from (None: no bound).

    `max_padding` is the share of its frames that may be padding, once that is `PADDING_FRAMES` (None: no bound).
    """

    max_rows: int
    max_frames: int | None
    max_padding: float | None = None

    @classmethod
    def choose(cls, batch_size: int, memory_bytes: int | None, frame_rate: float = 50.0) -> "BatchLimits":
        """The user's own `batch_size` as it is; for 0 the table's size, in frames, so that short clips go in more.

        `frame_rate`: frames a second.
        """
        if batch_size:
            return cls(batch_size, None)
        nominal = batch_size_for_memory(memory_bytes)
        return cls(nominal * SHORT_CLIPS_FACTOR, nominal * round(TYPICAL_SECONDS * frame_rate), PADDING_SHARE)

    def padding_fits(self, num_frames: int, padded_frames: int) -> bool:
        """Whether a batch of so many frames, and so many with padding, holds no more padding than it may."""
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
    """Cut a stream of samples, in its order, into batches within the limits; reads one item ahead.

    Those of less than `pads_from` frames are not padded: all of their batch have as many.
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
    """The frames that are computed for a batch: rows x longest, or where it is packed only its own."""
    lengths = [item.num_frames for item in batch]
    return sum(lengths) if packed else len(lengths) * max(lengths)
