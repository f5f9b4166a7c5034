"""What of a long list of cases the quick set runs."""

from collections.abc import Iterable
from typing import Any

import pytest


def some_quick(cases: Iterable[Any], every: int) -> list[Any]:
    """The cases of which the quick set has every so manieth, from the first on; the slow set has the others."""
    found = []
    for number, case in enumerate(cases):
        values = case if isinstance(case, tuple) else (case,)
        found.append(pytest.param(*values, marks=[pytest.mark.slow] if number % every else []))
    return found
