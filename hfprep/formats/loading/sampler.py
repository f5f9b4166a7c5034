"""Batches of samples of similar length, to minimise padding; reproducible on every machine for a seed.

Takes lengths and returns lists of positions.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch.utils.data import Sampler

BUCKET_BATCHES = 50


class LengthBucketedBatchSampler(Sampler[list[int]]):
    """A batch sampler for `DataLoader(..., batch_sampler=...)` that groups samples of similar length.

    Samples are shuffled, split into pools of `bucket_batches` batches, sorted by length within each pool, split into
    batches, and the batches shuffled. The order depends only on `seed` and the epoch (call `set_epoch` before each).
    With `max_frames`, batches are smaller if `count x longest` would exceed it (a longer sample is alone). All of the
    `world_size` ranks get the same number of batches; with `drop_last=False` every sample is used, and a few batches
    are repeated to make the numbers equal.
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
        """Set the epoch of the next iteration."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self._mine())

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self._mine())

    def _mine(self) -> list[list[int]]:
        """This rank's batches for this epoch, cached."""
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
        """Split positions, sorted by length, into batches; with `drop_last` only full ones."""
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
