"""A lock that allows one run at a time in an output directory.

It is an flock, which the operating system releases when the process ends, also after a crash.
"""

import errno
import fcntl
import json
import logging
import os
import socket
import time
from pathlib import Path

from hfprep.errors import StoreError
from hfprep.io.atomic import NO_LINK, explained, refuse_link

log = logging.getLogger(__name__)

WITHOUT_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}


class OutputLock:
    """Locks `path` during a `with` block; raises StoreError naming the holder if it is locked already.

    Symbolic links beside it are refused, as the holder writes to these names. With `reading`, any number of readers
    share the lock and nothing is created or written: without a lock file that can be opened, no lock is taken.
    """

    def __init__(self, path: Path, *, reading: bool = False) -> None:
        self.path = path
        self.reading = reading
        self._descriptor: int | None = None

    def __enter__(self) -> "OutputLock":
        if self.reading:
            self._descriptor = self._shared()
            return self
        with explained(self.path):
            refuse_link(self.path.parent)
            self.path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | NO_LINK, 0o644)
        try:
            self._take(descriptor)
            for entry in self.path.parent.iterdir():
                refuse_link(entry)
        except BaseException:
            os.close(descriptor)
            raise
        self._descriptor = descriptor
        return self

    def _shared(self) -> int | None:
        """A shared lock, which keeps writers out; None if the file cannot be opened or locked."""
        try:
            descriptor = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK | NO_LINK)
        except OSError:
            return None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = self._holder(descriptor)
            os.close(descriptor)
            raise holder from None
        except OSError:  # a file system without locks
            os.close(descriptor)
            return None
        return descriptor

    def _holder(self, descriptor: int) -> StoreError:
        holder = os.read(descriptor, 4096).decode(errors="replace").strip() or "unknown"
        return StoreError(f"another run is writing to {self.path.parent.parent} ({holder}); wait for it or stop it")

    def _take(self, descriptor: int) -> None:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise self._holder(descriptor) from None
        except OSError as error:
            if error.errno not in WITHOUT_LOCKS:
                raise StoreError(f"cannot lock {self.path}: {error.strerror}; check its file system") from error
            log.warning(
                "%s: its file system does not support locks; make sure that no other run writes here", self.path
            )
        started = time.strftime("%Y-%m-%d %H:%M:%S")
        holder = json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": started})
        with explained(self.path):
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, holder.encode() + b"\n", 0)

    def __exit__(self, *_: object) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
