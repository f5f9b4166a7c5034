"""Reads a file by position, or by line, from several threads and processes at once."""

import os
import threading
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from hfprep.errors import StoreError

_held = threading.local()  # a read buffer per thread


class PositionedFile:
    """Opened on first read; a pickled copy reopens the file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor: int | None = None

    def read(self, offset: int, size: int) -> bytes:
        """Up to `size` bytes from `offset`; raises StoreError if the file cannot be opened."""
        return os.pread(self._opened(), size, offset)

    def view(self, offset: int, size: int) -> memoryview:
        """The same in a buffer that the thread's next view of any file overwrites, without allocating."""
        held: bytearray | None = getattr(_held, "memory", None)
        if held is None or len(held) < size:
            held = _held.memory = bytearray(size)
        view = memoryview(held)[:size]
        return view[: os.preadv(self._opened(), [view], offset)].toreadonly()

    def _opened(self) -> int:
        if self._descriptor is None:
            try:
                self._descriptor = os.open(self.path, os.O_RDONLY)
            except OSError as error:
                raise StoreError(f"{self.path} cannot be read: {error.strerror or error}") from error
        return self._descriptor

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_descriptor": None}

    def __del__(self, close: Callable[[int], None] = os.close) -> None:  # bound here: at exit, `os` may be gone
        if self._descriptor is not None:
            close(self._descriptor)


class LineFile:
    """Random access to the lines of a file, without keeping them in memory."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._offsets = array("q", [0])
        self._file = PositionedFile(path)
        for line in self.lines():
            self._offsets.append(self._offsets[-1] + len(line))

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def lines(self) -> Iterator[bytes]:
        """All lines, with their newlines."""
        try:
            with open(self.path, "rb") as stream:
                yield from stream
        except OSError as error:
            raise StoreError(f"{self.path} cannot be read: {error.strerror or error}") from error

    def line(self, index: int) -> bytes:
        """The bytes of a line, with its newline."""
        start, end = self._offsets[index], self._offsets[index + 1]
        return self._file.read(start, end - start)
