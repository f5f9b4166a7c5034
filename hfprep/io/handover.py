"""Hands one array at a time from a process to another through shared memory, which is faster than a socket.

The receiver creates a `Handover` and passes `for_child()` to the new process, which opens it with `opened`.
"""

import contextlib
import mmap
import os
from multiprocessing import reduction
from typing import Any

import numpy as np

SLAB_BYTES = 8 << 20  # two minutes at 16 kHz; memory is only used for what has been written


class Handover:
    """A piece of memory that two processes share. The sender must not put another array before the first is taken."""

    def __init__(self, descriptor: int) -> None:
        self._file = open(descriptor, "r+b", buffering=0)  # closed by `close`, as often as that is called
        self._memory = mmap.mmap(descriptor, SLAB_BYTES)

    @classmethod
    def create(cls) -> "Handover | None":
        """New memory; None where the system has none to share between any two processes (Linux has)."""
        if not hasattr(os, "memfd_create"):
            return None
        with contextlib.suppress(OSError):
            descriptor = os.memfd_create("hfprep-handover")
            os.ftruncate(descriptor, SLAB_BYTES)
            return cls(descriptor)
        return None

    def for_child(self) -> Any:
        """What to pass to a new process, as an argument of its `multiprocessing.Process`, for `opened`."""
        return reduction.DupFd(self._file.fileno())

    @classmethod
    def opened(cls, passed: Any) -> "Handover":
        """The memory of another process's `for_child`."""
        return cls(passed.detach())

    def put(self, array: np.ndarray) -> bool:
        """Copy an array, float32 of any shape, into the memory; False if it is too large."""
        if array.nbytes > SLAB_BYTES:
            return False
        np.frombuffer(self._memory, np.float32, array.size).reshape(array.shape)[...] = array
        return True

    def take(self, shape: tuple[int, ...]) -> np.ndarray:
        """A copy of the array of this shape that was put last, float32."""
        return np.frombuffer(self._memory, np.float32, int(np.prod(shape))).reshape(shape).copy()

    def close(self) -> None:
        """Release the memory on this side."""
        self._memory.close()
        self._file.close()
