"""Python's garbage collector, kept out of the way of scans and of builds."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    """Spare the collector a million short-lived objects without cycles; it would walk all of torch again and again."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@contextmanager
def imports_left_out() -> Iterator[None]:
    """Spare the collector what is here already: a million objects of torch and datasets, which it would walk each time
    that some thousand rows have been made. What was left out of it before stays so."""  # fmt: skip
    if gc.get_freeze_count():
        yield
        return
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
