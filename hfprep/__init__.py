"""hfprep: turns recordings and transcripts into the features that speech models train on."""

from typing import TYPE_CHECKING, Any

from hfprep.errors import CheckpointError, ConfigError, HfprepError, Reason, RejectedSample, StoreError

if TYPE_CHECKING:
    from hfprep.formats.loading import LengthBucketedBatchSampler, collate, dataloader, load
    from hfprep.pipeline.building import build
    from hfprep.pipeline.building_many import ManySummary, build_many
    from hfprep.pipeline.config import BuildConfig
    from hfprep.pipeline.data_sets import config_of_each
    from hfprep.pipeline.extracting import extractor
    from hfprep.pipeline.summary import Summary

__version__ = "0.2.0"
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
    "dataloader",
    "extractor",
    "load",
]

_LAZY = {
    "BuildConfig": "hfprep.pipeline.config",
    "LengthBucketedBatchSampler": "hfprep.formats.loading",
    "ManySummary": "hfprep.pipeline.building_many",
    "Summary": "hfprep.pipeline.summary",
    "build": "hfprep.pipeline.building",
    "build_many": "hfprep.pipeline.building_many",
    "collate": "hfprep.formats.loading",
    "config_of_each": "hfprep.pipeline.data_sets",
    "dataloader": "hfprep.formats.loading",
    "extractor": "hfprep.pipeline.extracting",
    "load": "hfprep.formats.loading",
}


def __getattr__(name: str) -> Any:
    """Import names on first access: many processes import the package for a small part of it."""
    if name in _LAZY:
        import importlib

        try:
            return getattr(importlib.import_module(_LAZY[name]), name)
        except ModuleNotFoundError as error:
            if (error.name or "hfprep").startswith("hfprep"):
                raise
            command = "pip install 'hfprep[build]'"
            raise ImportError(f"hfprep.{name} needs the package {error.name!r}: {command}", name=error.name) from error
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
