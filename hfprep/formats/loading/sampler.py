"""Batches of samples of like length, so that little of a batch is padding: the same on every machine for a seed.

Takes lengths, gives lists of positions. Knows nothing of what the positions stand for.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch.utils.data import Sampler

BUCKET_BATCHES = 50


class LengthBucketedBatchSampler(Sampler[list[int]]):
    """A batch sampler for `DataLoader(..., batch_sampler=...)` that puts samples of like length together.

    Samples are shuffled, cut into pools of `bucket_batches` batches, sorted by length within each pool, cut into
    batches, and the batches shuffled. The order depends on `seed` and the epoch alone (`set_epoch` before each). With
    `max_frames`, a batch is smaller where `count x longest` would pass it (a longer sample is alone). Among
    `world_size` ranks every rank gets the same number of batches, and with `drop_last=False` every sample is in one
    (a few batches come twice to make the numbers even).
    """

    def __init__(
        self,
        lengths: Sequence[int] | np.ndarray,
        *,
        batch_size: int,
        max_frames: int | None = None,
        shuffle: bool = True,
        seed: int = 0,
        drop_last: bool = False,
        rank: int | None = None,
        world_size: int | None = None,
        bucket_batches: int = BUCKET_BATCHES,
    ) -> None:
        for name, value in (("batch_size", batch_size), ("bucket_batches", bucket_batches), ("max_frames", max_frames)):
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}; it must be a positive number")
        self.lengths = np.asarray(lengths, np.int64)
        self.batch_size = batch_size
        self.max_frames = max_frames
        self.shuffle = shuffle
        self.seed = seed
        self.drop_last = drop_last
        self.bucket_batches = bucket_batches
        self.epoch = 0
        self._known: tuple[int, list[list[int]]] | None = None
        running = torch.distributed.is_available() and torch.distributed.is_initialized()
        self.world_size = world_size if world_size is not None else torch.distributed.get_world_size() if running else 1
        self.rank = rank if rank is not None else torch.distributed.get_rank() if running else 0
        if not 0 <= self.rank < self.world_size:
            raise ValueError(f"rank is {self.rank}; it must be from 0 to {self.world_size - 1}")

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order comes next."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self._mine())

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self._mine())

    def _mine(self) -> list[list[int]]:
        """This rank's batches of this epoch, made once."""
        if self._known is None or self._known[0] != self.epoch:
            self._known = self.epoch, self._made()
        return self._known[1]

    def _made(self) -> list[list[int]]:
        batches = self._batches()
        if self.drop_last:
            batches = batches[: len(batches) // self.world_size * self.world_size]
        elif batches:
            missing = -len(batches) % self.world_size
            batches += [batches[index % len(batches)] for index in range(missing)]
        return batches[self.rank :: self.world_size]

    def _batches(self) -> list[list[int]]:
        random = np.random.Generator(np.random.PCG64([self.seed, self.epoch]))
        count = len(self.lengths)
        order = random.permutation(count) if self.shuffle else np.arange(count)
        pool = self.batch_size * self.bucket_batches
        batches: list[list[int]] = []
        for start in range(0, count, pool):
            members = order[start : start + pool]
            members = members[np.argsort(self.lengths[members], kind="stable")]
            batches += self._cut(members.tolist())
        if self.shuffle:
            return [batches[index] for index in random.permutation(len(batches))]
        return batches

    def _cut(self, members: list[int]) -> list[list[int]]:
        """Batches of positions that come by rising length; with `drop_last` only full ones."""
        batches: list[list[int]] = [[]]
        for position in members:
            current = batches[-1]
            over = self.max_frames is not None and (len(current) + 1) * self.lengths[position] > self.max_frames
            if current and (len(current) == self.batch_size or over):
                batches.append([position])
            else:
                current.append(position)
        if self.drop_last and self.max_frames is None and len(batches[-1]) < self.batch_size:
            batches.pop()
        return batches
