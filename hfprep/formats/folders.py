"""Creates folders atomically: written beside the target under a temporary name, then renamed.

Leftovers of a killed export are removed by the next one to the same target. A file lock on the unfinished folder
prevents two concurrent exports.
"""

import contextlib
import ctypes
import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from hfprep.errors import StoreError
from hfprep.io import atomic
from hfprep.io.object_storage import check_local

AT_FDCWD, RENAME_EXCHANGE = -100, 2  # linux/fcntl.h, linux/fs.h


def unfinished_name(target: Path) -> Path:
    return target.with_name(f".{target.name}.unfinished")


@contextlib.contextmanager
def atomic_folder(target: Path, replaceable: Callable[[Path], bool]) -> Iterator[Path]:
    """Yield an empty folder, which is renamed to `target` at the end of the block.

    An existing `target` is replaced if it is empty or `replaceable`; otherwise StoreError is raised before anything is
    written. After an error the unfinished folder is removed.
    """
    check_local(target, written=True)
    target = Path(os.path.abspath(target))
    former = target.with_name(f".{target.name}.former")
    folder = unfinished_name(target)
    with atomic.explained(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        with _locked(folder, target):
            if former.exists() and not target.exists():  # killed between the two renames below
                os.rename(former, target)
            _check_target(target, replaceable)
            _empty(folder)
            try:
                yield folder
            except BaseException:
                shutil.rmtree(folder, ignore_errors=True)
                raise
            for path, _, _ in os.walk(folder, topdown=False):
                atomic.sync_folder(path)
            _check_target(target, replaceable)
            if target.exists() and not _exchange(folder, target):
                shutil.rmtree(former, ignore_errors=True)
                os.rename(target, former)
            if not target.exists():
                atomic.rename(folder, target)
            atomic.sync_folder(target.parent)
            for leftover in (folder, former):
                shutil.rmtree(leftover, ignore_errors=True)


def _exchange(one: Path, other: Path) -> bool:
    """Swap two paths atomically; False if the system or the file system does not support it."""
    atomic.observe("before-rename", other)
    try:
        call = ctypes.CDLL(None, use_errno=True).renameat2
    except AttributeError:
        return False
    done: int = call(AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), RENAME_EXCHANGE)
    atomic.observe("after-rename", other)
    return done == 0


def _check_target(target: Path, replaceable: Callable[[Path], bool]) -> None:
    if target.is_dir() and (not any(target.iterdir()) or replaceable(target)):
        return
    if target.exists() or target.is_symlink():
        raise StoreError(f"{target} exists and is not an earlier export of this kind; give a new folder or remove it")


@contextlib.contextmanager
def _locked(folder: Path, target: Path) -> Iterator[None]:
    folder.mkdir(exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not folder.exists() or os.fstat(descriptor).st_ino != folder.stat().st_ino:
            raise BlockingIOError
        yield
    except BlockingIOError:
        raise StoreError(f"another export is writing {target}; wait for it or stop it") from None
    finally:
        os.close(descriptor)


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
