"""A file that is read by position from many threads and processes at once."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hfprep.errors import StoreError


class PositionedFile:
    """Opened when first read; a copy made by pickling opens the file for itself."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor: int | None = None

    def read(self, offset: int, size: int) -> bytes:
        """Up to `size` bytes from `offset`; StoreError where the file cannot be opened."""
        if self._descriptor is None:
            try:
                self._descriptor = os.open(self.path, os.O_RDONLY)
            except OSError as error:
                raise StoreError(f"{self.path} cannot be read: {error.strerror or error}") from error
        return os.pread(self._descriptor, size, offset)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_descriptor": None}

    def __del__(self, close: Callable[[int], None] = os.close) -> None:  # bound here: at exit, `os` may be gone
        if self._descriptor is not None:
            close(self._descriptor)
