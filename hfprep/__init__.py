"""hfprep: from a manifest of speech to IndexTTS-2 training features."""

from typing import TYPE_CHECKING, Any

from hfprep.config import BuildConfig
from hfprep.data_sets import config_of_each
from hfprep.errors import CheckpointError, ConfigError, HfprepError, Reason, RejectedSample, StoreError

if TYPE_CHECKING:
    from hfprep.building import Summary, build
    from hfprep.building_many import ManySummary, build_many
    from hfprep.loading import LengthBucketedBatchSampler, collate, load

__version__ = "0.1.0"
__all__ = [
    "BuildConfig",
    "CheckpointError",
    "ConfigError",
    "HfprepError",
    "LengthBucketedBatchSampler",
    "ManySummary",
    "Reason",
    "RejectedSample",
    "StoreError",
    "Summary",
    "build",
    "build_many",
    "collate",
    "config_of_each",
    "load",
]

_LAZY = {
    "LengthBucketedBatchSampler": "hfprep.loading",
    "ManySummary": "hfprep.building_many",
    "Summary": "hfprep.building",
    "build": "hfprep.building",
    "build_many": "hfprep.building_many",
    "collate": "hfprep.loading",
    "load": "hfprep.loading",
}


def __getattr__(name: str) -> Any:
    """Import what needs torch only when it is asked for."""
    if name in _LAZY:
        import importlib

        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
