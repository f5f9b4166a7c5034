"""Files of named tensors, memory-mapped: torch zip files and safetensors.

Returns dictionaries of name to tensor, whose data stays on disk until it is used. Pickles are never executed: only
tensors and plain values are read.
"""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from hfprep.errors import CheckpointError


def load_torch_file(path: Path) -> Any:
    """Memory-map a torch file and return its content.

    Raises CheckpointError, also for files that would need pickle execution or cannot be mapped.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: the file does not exist")
    if not zipfile.is_zipfile(path):
        raise CheckpointError(
            f"{path}: is not a torch zip file (torch 1.6 or later writes them), so it cannot be memory-mapped. "
            "If it is an older torch file, rewrite it once: python -c \"import torch; torch.save(torch.load('OLD', "
            "map_location='cpu', weights_only=True), 'NEW')\"; else it is truncated or not a checkpoint: fetch it again"
        )
    try:
        return torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except pickle.UnpicklingError as exc:
        raise CheckpointError(
            f"{path}: contains objects other than tensors and plain values, and hfprep never executes pickles. "
            "Save only its state dict with torch.save"
        ) from exc
    except (RuntimeError, ValueError, EOFError, OSError) as exc:
        raise CheckpointError(f"{path}: cannot be read as a torch file ({exc}); fetch it again") from exc


def state_dict_of(values: Any, path: Path) -> Mapping[str, Any]:
    """The state dict in a torch file's content: the content or its "model". Raises CheckpointError otherwise."""
    if isinstance(values, Mapping) and isinstance(values.get("model"), Mapping):
        values = values["model"]
    if not isinstance(values, Mapping):
        raise CheckpointError(f"{path}: contains a {type(values).__name__}, not a state dict")
    return values


def read_torch_file(path: Path) -> dict[str, Tensor]:
    """Memory-map a torch file with a state dict, or {"model": state dict}; returns only the tensors, by name.

    Raises CheckpointError as `load_torch_file` and `state_dict_of` do.
    """
    tensors = state_dict_of(load_torch_file(path), path)
    return {name: value for name, value in tensors.items() if isinstance(value, Tensor)}


def read_safetensors(paths: Iterable[Path]) -> dict[str, Tensor]:
    """Memory-map one or more safetensors files; returns tensors by name. Raises CheckpointError with the file."""
    tensors: dict[str, Tensor] = {}
    for path in paths:
        try:
            with safe_open(path, framework="pt", device="cpu") as file:
                tensors.update({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
        except (SafetensorError, OSError) as exc:
            raise CheckpointError(f"{path}: cannot be read as a safetensors file ({exc}); fetch it again") from exc
    return tensors
