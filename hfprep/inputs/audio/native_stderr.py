"""Captures what C libraries print to the process's stderr, and logs it with the name of the file.

libmpg123, inside libsndfile, prints notes about unusual mp3 frames to file descriptor 2, and this cannot be turned off.
"""

import contextlib
import os
import re
import tempfile
import threading
from collections.abc import Iterator

from hfprep.io.record import record

STDERR = 2
MAX_BYTES = 1 << 16
MAX_LINES = 3
_OF_THE_LIBRARY = re.compile(rb"^(\[src/libmpg123/|Note: |Warning: |\s*$)")


def nameless_file(purpose: str) -> int:
    """A descriptor of a new file without a name, in memory if the system can."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create(purpose)
    descriptor, path = tempfile.mkstemp(prefix=f"{purpose}-")
    os.unlink(path)
    return descriptor


class _Catcher:
    """The temporary file that replaces stderr: created once, emptied after each use."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self._file: int | None = None

    def file(self) -> int:
        """Its descriptor; called with the lock held."""
        if self._file is None:
            self._file = nameless_file("hfprep-stderr")
        return self._file

    def take(self) -> bytes:
        """What was printed; called with the lock held."""
        assert self._file is not None
        size = os.fstat(self._file).st_size
        if not size:
            return b""
        text = os.pread(self._file, MAX_BYTES, 0)
        os.ftruncate(self._file, 0)
        os.lseek(self._file, 0, os.SEEK_SET)
        return text


_catcher = _Catcher()


@contextlib.contextmanager
def native_stderr_logged(name: str) -> Iterator[None]:
    """Capture what the library prints inside, one thread at a time; lines of other threads are passed on afterwards."""
    with _catcher.lock:
        try:
            terminal = os.dup(STDERR)
        except OSError:  # there is no stderr
            yield
            return
        try:
            os.dup2(_catcher.file(), STDERR)
            try:
                yield
            finally:
                os.dup2(terminal, STDERR)
                text = _catcher.take()
        finally:
            os.close(terminal)
        if text:
            _sort_out(name, text)


def _sort_out(name: str, text: bytes) -> None:
    said = []
    for line in text.splitlines(keepends=True):
        if not _OF_THE_LIBRARY.match(line):
            with contextlib.suppress(OSError):
                os.write(STDERR, line)
        elif line.strip():
            said.append(line.decode("utf-8", "replace").strip())
    for words in said[:MAX_LINES]:
        record.info("%s: the mp3 decoder says: %s", name, words)
    if len(said) > MAX_LINES:
        record.info("%s: %d more lines from the mp3 decoder", name, len(said) - MAX_LINES)
