"""hfprep: from a manifest of speech to IndexTTS-2 training features."""

from typing import TYPE_CHECKING, Any

from hfprep.config import BuildConfig
from hfprep.errors import CheckpointError, ConfigError, HfprepError, Reason, RejectedSample, StoreError

if TYPE_CHECKING:
    from hfprep.building import Summary, build

__version__ = "0.1.0"
__all__ = [
    "BuildConfig",
    "CheckpointError",
    "ConfigError",
    "HfprepError",
    "Reason",
    "RejectedSample",
    "StoreError",
    "Summary",
    "build",
]

_LAZY = {"build": "hfprep.building", "Summary": "hfprep.building"}


def __getattr__(name: str) -> Any:
    """Import what needs torch only when it is asked for."""
    if name in _LAZY:
        import importlib

        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
