"""SHA-256 of large files, cached between runs, and detection of files that change while they are in use."""

import contextlib
import hashlib
import json
import platform
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from hfprep.errors import CheckpointError
from hfprep.io.atomic import write_bytes

HASHING_THREADS = 4


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of a file's content."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error


def _hashed(path: Path) -> str:
    with _readable(path):
        return sha256_file(path)


@dataclass(frozen=True, slots=True)
class FileIdentity:
    """Detects that a model file was replaced. Inodes are only compared on the same machine."""

    size: int
    mtime_ns: int
    inode: int
    machine: str

    @classmethod
    def of(cls, path: Path) -> "FileIdentity":
        """The identity of the file at `path`. Raises CheckpointError."""
        with _readable(path):
            status = path.stat()
        return cls(status.st_size, status.st_mtime_ns, status.st_ino, platform.node())

    def is_of(self, path: Path) -> bool:
        """Whether the file at `path` is still this one."""
        now = FileIdentity.of(path)
        return now == (self if now.machine == self.machine else replace(self, inode=now.inode, machine=now.machine))


def check_unchanged(seen: Mapping[Path, FileIdentity]) -> None:
    """Raise CheckpointError if a file is no longer the one that `seen` recorded before hashing and loading."""
    for path, identity in seen.items():
        if not identity.is_of(path):
            raise CheckpointError(
                f"{path} was replaced or changed while it was being read; "
                "nothing was computed with it. Run the same command again once the file no longer changes"
            )


def check_not_overwritten(seen: Mapping[Path, FileIdentity]) -> None:
    """Raise CheckpointError if a file was written to while its weights are in use.

    A file that was replaced by another one is fine: the old one stays open.
    """
    for path, identity in seen.items():
        try:
            now = FileIdentity.of(path)
        except CheckpointError:  # it was removed, but stays open
            continue
        replaced = now.machine == identity.machine and now.inode != identity.inode
        if not replaced and (now.size, now.mtime_ns) != (identity.size, identity.mtime_ns):
            raise CheckpointError(
                f"{path} was overwritten while its weights were in use; features computed since then are discarded. "
                "To replace a model file, write the new one under another name and rename it. "
                "Run the same command again"
            )


class FileHashes:
    """SHA-256 of large files, cached in a small file between runs by path, size, times and inode."""

    def __init__(self, cache: Path) -> None:
        self.cache = cache

    def sha256(self, paths: Mapping[str, Path]) -> dict[str, str]:
        """Hashes of the files, by the given names; files that are not in the cache are read in parallel.

        Raises CheckpointError if one cannot be read.
        """
        known = self._read_cache()
        keys = {name: self._key(path) for name, path in paths.items()}
        missing = {keys[name]: path for name, path in paths.items() if keys[name] not in known}
        if missing:
            with ThreadPoolExecutor(HASHING_THREADS) as pool:
                known |= zip(missing, pool.map(_hashed, missing.values()), strict=True)
            write_bytes(self.cache, json.dumps(known, indent=0).encode())
        return {name: known[key] for name, key in keys.items()}

    @staticmethod
    def _key(path: Path) -> str:
        # Unlike mtime, ctime cannot be set by programs.
        with _readable(path):
            status = path.stat()
        return f"{path.resolve()}:{status.st_size}:{status.st_mtime_ns}:{status.st_ctime_ns}:{status.st_ino}"

    def _read_cache(self) -> dict[str, str]:
        try:
            known = json.loads(self.cache.read_bytes())
        except (OSError, ValueError):
            return {}
        return known if isinstance(known, dict) else {}
