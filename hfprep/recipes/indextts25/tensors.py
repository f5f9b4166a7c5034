"""A file's tensors held against the names and shapes that a model needs, and put into the model.

Gives `check_tensors` and `fill`. Takes dictionaries of name to tensor. Does not know which model they are of.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from hfprep.errors import CheckpointError

_LISTED = 10


def check_tensors(
    tensors: Mapping[str, Tensor],
    shapes: Mapping[str, tuple[int, ...]],
    *,
    path: Path,
    ours: tuple[str, ...] = ("",),
    ignored: tuple[str, ...] = (),
) -> None:
    """Hold a file's tensors against the needed names and shapes.

    A tensor whose name begins with one of `ours` must be needed, unless it begins with one of `ignored`. Raises
    CheckpointError that lists, ten at most of each kind, the missing tensors, the unexpected ones, and those of
    another shape or without real numbers.
    """
    missing = [f"{name} {list(shape)}" for name, shape in shapes.items() if name not in tensors]
    unexpected = [
        name for name in tensors if name.startswith(ours) and not name.startswith(ignored) and name not in shapes
    ]
    present = {name: tensors[name] for name in shapes if name in tensors}
    other = [
        f"{name} is {list(tensor.shape)}, not {list(shapes[name])}"
        for name, tensor in present.items()
        if tuple(tensor.shape) != tuple(shapes[name])
    ]
    other += [
        f"{name} is {tensor.dtype}, not a floating type"
        for name, tensor in present.items()
        if not tensor.is_floating_point()
    ]
    lines = [f"{path}: does not hold the model that IndexTTS-2.5 needs"]
    for label, names in (("missing", missing), ("unexpected", unexpected), ("of another shape or type", other)):
        if names:
            more = f"\n    ... and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
            lines.append(f"  {label} ({len(names)}):\n    " + "\n    ".join(names[:_LISTED]) + more)
    if len(lines) > 1:
        raise CheckpointError("\n".join(lines))


def fill(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Make these tensors, as float32, the parameters of a module on meta; those that are float32 stay mapped."""
    parameters = {name: tensor.to(torch.float32).contiguous() for name, tensor in tensors.items()}
    module.load_state_dict(parameters, strict=True, assign=True)
