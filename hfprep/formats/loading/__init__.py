"""For trainers: `load` a finished set in any format, `collate` its samples, batch them by length.

`dataloader` does all three.
"""

from hfprep.formats.loading.batches import collate
from hfprep.formats.loading.dataset import FeatureDataset, PairDataset, load
from hfprep.formats.loading.loader import BatchLoader, dataloader
from hfprep.formats.loading.sampler import LengthBucketedBatchSampler

__all__ = [
    "BatchLoader",
    "FeatureDataset",
    "LengthBucketedBatchSampler",
    "PairDataset",
    "collate",
    "dataloader",
    "load",
]
