"""Batches of a finished set for a training loop: `load`, the sampler and `collate` in one call."""

from pathlib import Path
from typing import Any, cast

from torch.utils.data import DataLoader

from hfprep.formats.loading.batches import collate
from hfprep.formats.loading.dataset import FeatureDataset, PairDataset, load
from hfprep.formats.loading.sampler import LengthBucketedBatchSampler


class BatchLoader(DataLoader[dict[str, Any]]):
    """A torch `DataLoader` of a finished set, with a `LengthBucketedBatchSampler` as its `batch_sampler`."""

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next iteration; without it every epoch has the same order."""
        cast(LengthBucketedBatchSampler, self.batch_sampler).set_epoch(epoch)


def dataloader(
    path: str | Path,
    split: str,
    batch_size: int,
    *,
    max_frames: int | None = None,
    shuffle: bool | None = None,
    seed: int = 0,
    drop_last: bool = False,
    rank: int | None = None,
    world_size: int | None = None,
    num_workers: int = 0,
    pin_memory: bool = False,
    pairs: str | Path | None = None,
    revision: str | None = None,
) -> BatchLoader:
    """Batches of a finished set, made by `collate` from samples of similar length.

    `path`, `split`, `pairs` and `revision` are as in `load`; `batch_size`, `max_frames`, `seed`, `drop_last`, `rank`
    and `world_size` as in `LengthBucketedBatchSampler`, which sorts by the number of codes. `shuffle` defaults to True
    for train and False for validation. `num_workers` processes read ahead and stay alive between epochs. With
    `torch.distributed`, rank and world size default to those of the process group. Raises ConfigError, StoreError, or
    ValueError for an argument of the sampler.
    """
    data: FeatureDataset | PairDataset = load(path, split, pairs=pairs, revision=revision)
    sampler = LengthBucketedBatchSampler(
        data.code_lengths,
        batch_size=batch_size,
        max_frames=max_frames,
        shuffle=split == "train" if shuffle is None else shuffle,
        seed=seed,
        drop_last=drop_last,
        rank=rank,
        world_size=world_size,
    )
    return BatchLoader(
        data,
        batch_sampler=sampler,
        collate_fn=collate,
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
        pin_memory=pin_memory,
    )
