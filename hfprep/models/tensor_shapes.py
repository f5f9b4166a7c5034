"""Reads the shapes of the tensors in a torch file without torch, which takes seconds to import.

Provides `read_shapes`. Its unpickler accepts only tensors and dictionaries, and executes nothing else. Other files are
left to torch.
"""

from __future__ import annotations

import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

PICKLE = "/data.pkl"  # in the archive's folder


class _Shape(tuple[int, ...]):
    """A tensor's shape, in place of the tensor."""


_KNOWN: dict[tuple[str, str], Callable[..., Any]] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): lambda _storage, _offset, size, *_: _Shape(size),
    ("torch._utils", "_rebuild_parameter"): lambda shape, *_: shape,
}


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name.endswith("Storage"):
            return None
        if (module, name) not in _KNOWN:
            raise pickle.UnpicklingError(f"{module}.{name}")
        return _KNOWN[module, name]

    def persistent_load(self, pid: object) -> None:
        """Ignore the location of the data."""


def read_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """The shapes of the tensors, by name, in a torch file with a state dict, or {"model": state dict}.

    Raises CheckpointError as `tensor_files.read_torch_file` does.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            name = next(name for name in archive.namelist() if name.endswith(PICKLE))
            with archive.open(name) as stream:
                values = _Reader(stream).load()
        values = values["model"] if isinstance(values.get("model"), dict) else values
        return {name: tuple(value) for name, value in values.items() if isinstance(value, _Shape)}
    except Exception:  # noqa: BLE001 - torch reports what is wrong with the file
        from hfprep.models.tensor_files import read_torch_file

        return {name: tuple(tensor.shape) for name, tensor in read_torch_file(path).items()}
