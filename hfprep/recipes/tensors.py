"""Checks a file's tensors against the names and shapes that a model needs, and loads them.

Provides `check_tensors`, `fill`, and small helpers for tables {our name: name in the file}. Does not depend on the
model.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from hfprep.errors import CheckpointError

_LISTED = 10

Shapes = dict[str, tuple[int, ...]]


def check_tensors(
    tensors: Mapping[str, Tensor],
    shapes: Mapping[str, tuple[int, ...]],
    *,
    path: Path,
    needed: tuple[str, ...] = ("",),
    ignored: tuple[str, ...] = (),
) -> None:
    """Check a file's tensors against the required names and shapes.

    Other tensors are unexpected if their name starts with a prefix in `needed`, but none in `ignored`. Raises
    CheckpointError with up to ten each of the missing tensors, the unexpected ones, and those of another shape or not
    of a floating-point type.
    """
    missing = [f"{name} {list(shape)}" for name, shape in shapes.items() if name not in tensors]
    unexpected = [
        name for name in tensors if name not in shapes and name.startswith(needed) and not name.startswith(ignored)
    ]
    other = [
        f"{name} is {list(tensors[name].shape)}, not {list(shape)}"
        for name, shape in shapes.items()
        if name in tensors and tuple(tensors[name].shape) != tuple(shape)
    ]
    other += [
        f"{name} is {tensors[name].dtype}, not a floating-point type"
        for name in shapes
        if name in tensors and not tensors[name].is_floating_point()
    ]
    if not (missing or unexpected or other):
        return
    lines = [f"{path}: does not contain the model that the config describes"]
    for label, names in (("missing", missing), ("unexpected", unexpected), ("of another shape or type", other)):
        if names:
            more = f"\n    ... and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
            lines.append(f"  {label} ({len(names)}):\n    " + "\n    ".join(names[:_LISTED]) + more)
    prefix = _common_prefix(tensors, shapes)
    if prefix:
        lines.append(f"  its tensors' names have the prefix {prefix!r}; save them without it")
    raise CheckpointError("\n".join(lines))


def _common_prefix(tensors: Mapping[str, Tensor], shapes: Mapping[str, object]) -> str:
    """The prefix with which all required names exist, or an empty string."""
    some = next(iter(shapes))
    for name in tensors:
        prefix = name.removesuffix(some)
        if prefix != name and prefix and all(f"{prefix}{needed}" in tensors for needed in shapes):
            return prefix
    return ""


def shape_of(tensors: Mapping[str, Tensor], name: str, default: tuple[int, ...]) -> tuple[int, ...]:
    """A tensor's shape, or the default if it is missing or has another rank, which `check_tensors` reports."""
    tensor = tensors.get(name)
    return tuple(tensor.shape) if tensor is not None and tensor.ndim == len(default) else default


def named(tensors: Mapping[str, Tensor], names: Mapping[str, str]) -> dict[str, Tensor]:
    """A module's tensors, by our names."""
    return {ours: tensors[theirs] for ours, theirs in names.items()}


def fill(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Set the parameters of a module on the meta device to these tensors, as float32."""
    # assign keeps the memory-mapped tensors; .float() copies only tensors of another floating-point type.
    module.load_state_dict({name: tensor.float() for name, tensor in tensors.items()}, strict=True, assign=True)


def shapes_of(module: nn.Module, names: Mapping[str, str]) -> Shapes:
    """The shapes of a module's parameters by their names in the file."""
    state = module.state_dict()
    return {theirs: tuple(state[ours].shape) for ours, theirs in names.items()}


def both(pairs: Mapping[str, str]) -> dict[str, str]:
    """From name pairs of modules to name pairs of their weights and biases."""
    return {f"{o}.{kind}": f"{t}.{kind}" for o, t in pairs.items() for kind in ("weight", "bias")}


def under(ours: str, theirs: str, names: Mapping[str, str]) -> dict[str, str]:
    """Name pairs with the prefixes `ours` and `theirs` added."""
    return {f"{ours}{o}": f"{theirs}{t}" for o, t in names.items()}
