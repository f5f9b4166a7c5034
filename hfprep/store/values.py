"""Parsers of the values in the state's table `meta`, which may be damaged.

A parser returns what its users need, and raises one of `DAMAGED` (see `json_file`) for anything else; then the value
counts as absent.
"""

from collections.abc import Callable
from typing import Any

Parse = Callable[[Any], Any]


def as_stored(value: Any) -> Any:
    """The `parse` of a value that is used as it is."""
    return value


def whole_number(value: Any) -> int:
    """The `parse` of a whole number."""
    if type(value) is not int:
        raise TypeError(f"{value!r} is not a whole number")
    return value


def ratio(value: Any) -> float:
    """The `parse` of a number from 0 to 1."""
    number = float(value)
    if not 0 <= number <= 1:
        raise ValueError(f"{value!r} is not from 0 to 1")
    return number


def parse_paths(value: Any) -> dict[str, Any]:
    """The inputs of a build, by option (see `given_paths`). Raises ValueError or TypeError for anything else."""
    paths = dict(value)
    if not all(isinstance(path, str | float | int | None) for path in paths.values()):
        raise TypeError("a path is neither text nor a number")
    if not all(isinstance(paths.get(name), str | None) for name in ("manifest", "folder", "audio_root")):
        raise TypeError("a path is not text")
    return paths
