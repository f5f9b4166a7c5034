"""One run at a time in an output directory.

A lock of the operating system (flock): it ends with the process, however that ends, so a crash leaves none behind.
"""

import errno
import fcntl
import json
import logging
import os
import socket
import time
from pathlib import Path
from types import TracebackType

from hfprep.errors import StoreError
from hfprep.io.atomic import explained

log = logging.getLogger(__name__)

WITHOUT_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}


class OutputLock:
    """Holds `path` locked while in a `with` block; StoreError names the holder where there already is one."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor: int | None = None

    def __enter__(self) -> "OutputLock":
        with explained(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            self._take(descriptor)
        except BaseException:
            os.close(descriptor)
            raise
        self._descriptor = descriptor
        return self

    def _take(self, descriptor: int) -> None:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(descriptor, 4096).decode(errors="replace").strip() or "unknown"
            message = f"another run is writing to {self.path.parent.parent} ({holder}); wait for it or stop it"
            raise StoreError(message) from None
        except OSError as error:
            if error.errno not in WITHOUT_LOCKS:
                raise StoreError(f"cannot lock {self.path}: {error.strerror}; see to its file system") from error
            log.warning("%s: its file system has no locks; see that no other run writes here", self.path)
        started = time.strftime("%Y-%m-%d %H:%M:%S")
        holder = json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": started})
        with explained(self.path):
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, holder.encode() + b"\n", 0)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
