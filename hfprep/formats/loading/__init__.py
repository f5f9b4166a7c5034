"""What a trainer imports: `load` a finished set of any format, `collate` its samples, batch them by length."""

from hfprep.formats.loading.batches import collate
from hfprep.formats.loading.dataset import FeatureDataset, PairDataset, load
from hfprep.formats.loading.sampler import LengthBucketedBatchSampler

__all__ = ["FeatureDataset", "LengthBucketedBatchSampler", "PairDataset", "collate", "load"]
