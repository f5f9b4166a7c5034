"""Reads JSON files that may be damaged, or come from others."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from hfprep.errors import StoreError

Parsed = TypeVar("Parsed")
# What a parser raises for content that it does not expect.
DAMAGED = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError)


def read_json(path: Path, parse: Callable[[Any], Parsed], advice: str) -> Parsed:
    """What `parse` makes of a JSON file; raises OSError if it cannot be read, StoreError with `advice` if it is wrong.

    `parse` raises one of `DAMAGED` for content that it does not expect.
    """
    content = path.read_bytes()
    try:
        return parse(json.loads(content))
    except DAMAGED as error:
        raise StoreError(f"{path} is damaged ({type(error).__name__}: {error}); {advice}") from error
