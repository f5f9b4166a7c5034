"""What a trainer imports: `load` a finished set of any format, `collate` its samples, batch them by length."""

from hfprep.loading.batches import collate
from hfprep.loading.dataset import FeatureDataset, PairDataset, load
from hfprep.loading.sampler import LengthBucketedBatchSampler

__all__ = ["FeatureDataset", "LengthBucketedBatchSampler", "PairDataset", "collate", "load"]
