"""Captures what C libraries print to the process's stderr, and logs it with the name of the file.

libmpg123, inside libsndfile, prints notes about unusual mp3 frames to file descriptor 2, and this cannot be turned off.
"""

import contextlib
import functools
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


@functools.cache
def _caught() -> int:
    """The file that replaces stderr: created once, emptied after each use."""
    return nameless_file("hfprep-stderr")


_lock = threading.Lock()


def _after_fork() -> None:
    """Use a new file, so that parent and child do not mix lines, and a lock that no thread of the parent holds."""
    global _lock
    _caught.cache_clear()
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


@contextlib.contextmanager
def native_stderr_logged(name: str) -> Iterator[None]:
    """Capture what the library prints inside, one thread at a time; lines of other threads are passed on afterwards."""
    with _lock:
        try:
            terminal = os.dup(STDERR)
        except OSError:  # there is no stderr
            yield
            return
        try:
            os.dup2(_caught(), STDERR)
            try:
                yield
            finally:
                os.dup2(terminal, STDERR)
                text = _take(_caught())
        finally:
            os.close(terminal)
        if text:
            _sort_out(name, text)


def _take(caught: int) -> bytes:
    """What was printed to a file, which is emptied."""
    if not os.fstat(caught).st_size:
        return b""
    text = os.pread(caught, MAX_BYTES, 0)
    os.ftruncate(caught, 0)
    os.lseek(caught, 0, os.SEEK_SET)
    return text


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
