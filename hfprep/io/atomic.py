"""Atomic file writes: temporary name, sync, rename.

All durable files are written by these functions. Each reports the point it has reached to `observe`, which does nothing
unless a test kills the run or injects a fault there.
"""

import contextlib
import errno
import json
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from hfprep.errors import StoreError

TEMPORARY = ("tmp", "staying")  # suffixes of unfinished files; a killed run may leave such a file behind
ADVICE = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), "free some space"),
    **dict.fromkeys((errno.EROFS, errno.EACCES, errno.EPERM), "make the folder writable"),
    **dict.fromkeys(
        (errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.EHOSTDOWN, errno.ETIMEDOUT, errno.ENODEV),
        "check the disk or the network mount",
    ),
    errno.EXDEV: "keep the whole output directory on one file system",
    errno.ELOOP: "remove it",
}

# Symbolic links inside an output are never followed: others may have put them there.
NO_LINK = os.O_NOFOLLOW | os.O_CLOEXEC

_observer: Callable[[str, str], None] | None = None


def set_observer(observer: Callable[[str, str], None] | None) -> None:
    """Call `observer(point, path)` at every named point from now on; for tests that kill or fail a run there."""
    global _observer
    _observer = observer


def observe(point: str, path: str | Path) -> None:
    """Report that `point` (such as "before-rename") has been reached for `path`."""
    if _observer is not None:
        _observer(point, str(path))


@contextlib.contextmanager
def explained(path: str | Path) -> Iterator[None]:
    """Turn an OSError about the output into a StoreError that says what to do."""
    try:
        yield
    except OSError as error:
        where = error.filename or str(path)
        is_link = error.errno == errno.ELOOP
        what = "it is a symbolic link, which hfprep does not write through" if is_link else error.strerror or str(error)
        advice = ADVICE.get(error.errno or 0, "check that path")
        raise StoreError(f"cannot write {where}: {what}; {advice} and run the same command again") from error


def check_writable(folder: Path, otherwise: str) -> None:
    """Raise StoreError if a folder is not writable; `otherwise` is the advice in its message."""
    if folder.is_dir() and not os.access(folder, os.W_OK):
        raise StoreError(f"{folder} is not writable; {otherwise}")


def refuse_link(path: Path) -> None:
    """Raise StoreError if `path`, which hfprep writes to, is a symbolic link; its parents may be links."""
    if path.is_symlink():
        with explained(path):
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))


def sync_file(descriptor: int, path: str | Path) -> None:
    """Make a file's content durable."""
    observe("before-sync", path)
    os.fsync(descriptor)
    observe("after-sync", path)


def write_all(descriptor: int, data: bytes) -> None:
    """Write all of `data`; a single os.write may write less."""
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def sync_folder(folder: str | Path) -> None:
    """Make the entries of a folder durable."""
    observe("before-sync-folder", folder)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    observe("after-sync-folder", folder)


def rename(source: str | Path, target: str | Path) -> None:
    """Move a finished file to its final name, replacing an existing file."""
    observe("before-rename", target)
    os.replace(source, target)
    observe("after-rename", target)


def create(path: Path) -> BinaryIO:
    """Open a new file for writing; an existing file or symbolic link of that name is removed first."""
    with contextlib.suppress(FileNotFoundError):
        path.unlink()
    return open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | NO_LINK, 0o666), "wb")


@contextlib.contextmanager
def replacing(path: Path, temporary: str = TEMPORARY[0]) -> Iterator[BinaryIO]:
    """Write a file under a temporary name; on success sync it and rename it, otherwise leave `path` as it was."""
    unfinished = path.with_name(f"{path.name}.{temporary}")
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with create(unfinished) as stream:
                observe("before-write", path)
                yield stream
                stream.flush()
                observe("after-write", path)
                sync_file(stream.fileno(), path)
            rename(unfinished, path)
        except BaseException:
            with contextlib.suppress(OSError):  # report the first error
                unfinished.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)


def write_bytes(path: Path, data: bytes) -> None:
    """Replace the content of `path` atomically."""
    with replacing(path) as stream:
        stream.write(data)


def write_json(path: Path, value: Any) -> None:
    """Replace the content of `path` atomically with a JSON value.

    Bytes of a path that are not UTF-8 are written as JSON escapes (`\\udce9`), which load as the same path.
    """
    write_bytes(path, json.dumps(value, indent=2, ensure_ascii=False).encode(errors="backslashreplace") + b"\n")


def write_lines(path: Path, lines: Iterable[bytes]) -> None:
    """Replace the content of `path` atomically with lines (newlines included), streaming."""
    with replacing(path) as stream:
        stream.writelines(lines)


class AppendedFile:
    """A file of lines that a run appends to, unbuffered and synced."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with explained(path):
            self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | NO_LINK, 0o666)

    def append(self, lines: Iterable[bytes]) -> None:
        """Append whole lines and make them durable; on failure, truncate the file to its previous length."""
        data = b"".join(lines)
        if not data:
            return
        with explained(self.path):
            length = os.fstat(self._descriptor).st_size
            try:
                observe("before-append", self.path)
                write_all(self._descriptor, data)
                sync_file(self._descriptor, self.path)
                observe("after-append", self.path)
            except OSError:
                with contextlib.suppress(OSError):
                    os.ftruncate(self._descriptor, length)
                raise

    def close(self) -> None:
        os.close(self._descriptor)
