"""Keeps Python's garbage collector from slowing down scans and builds."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    """Disable the collector: with many short-lived objects, it would walk all objects of torch again and again."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@contextmanager
def imports_frozen() -> Iterator[None]:
    """Exclude existing objects from collection: otherwise a million objects of torch and datasets are walked each time
    that a few thousand rows are created. Objects that were frozen before stay frozen."""  # fmt: skip
    if gc.get_freeze_count():
        yield
        return
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
