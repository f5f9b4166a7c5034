"""Large files told apart: the SHA-256 of their content, remembered between runs, and whether they are still the same.

Takes paths. Knows nothing of what the files hold.
"""

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
    """What tells a model file from one that took its place; another machine may number its inodes in its own way."""

    size: int
    mtime_ns: int
    inode: int
    machine: str

    @classmethod
    def of(cls, path: Path) -> "FileIdentity":
        """Look at a file. Raises CheckpointError."""
        with _readable(path):
            status = path.stat()
        return cls(status.st_size, status.st_mtime_ns, status.st_ino, platform.node())

    def is_of(self, path: Path) -> bool:
        """Whether the file that is there now is this one."""
        now = FileIdentity.of(path)
        return now == (self if now.machine == self.machine else replace(self, inode=now.inode, machine=now.machine))


def check_unchanged(seen: Mapping[Path, FileIdentity]) -> None:
    """Raise CheckpointError if a file is not the one that was seen before it was hashed and loaded."""
    for path, identity in seen.items():
        if not identity.is_of(path):
            raise CheckpointError(
                f"{path} was replaced or changed while it was being read; "
                "nothing was computed with it. Run the same command again when the file stays as it is"
            )


def check_not_overwritten(seen: Mapping[Path, FileIdentity]) -> None:
    """Raise CheckpointError if a file that was seen has been written to, while its weights are in use.

    Another file under the same name is none of it: whoever has opened the first one still has that.
    """
    for path, identity in seen.items():
        try:
            now = FileIdentity.of(path)
        except CheckpointError:  # it has been removed: what is open stays as it is
            continue
        replaced = now.machine == identity.machine and now.inode != identity.inode
        if not replaced and (now.size, now.mtime_ns) != (identity.size, identity.mtime_ns):
            raise CheckpointError(
                f"{path} was overwritten while its weights were in use; what was computed since is dropped. Put a new "
                "file in its place (write it under another name, then rename it), and run the same command again"
            )


class FileHashes:
    """SHA-256 of large files, remembered by path, size, times and inode in a small file between runs."""

    def __init__(self, memory: Path) -> None:
        self.memory = memory

    def sha256(self, paths: Mapping[str, Path]) -> dict[str, str]:
        """Hashes of the files, by the names given to them; those that are not remembered are read in parallel.

        Raises CheckpointError if one cannot be read.
        """
        known = self._recall()
        keys = {name: self._key(path) for name, path in paths.items()}
        missing = {keys[name]: path for name, path in paths.items() if keys[name] not in known}
        if missing:
            with ThreadPoolExecutor(HASHING_THREADS) as pool:
                known |= zip(missing, pool.map(_hashed, missing.values()), strict=True)
            write_bytes(self.memory, json.dumps(known, indent=0).encode())
        return {name: known[key] for name, key in keys.items()}

    @staticmethod
    def _key(path: Path) -> str:
        # The change time is the one that no program can set back.
        with _readable(path):
            status = path.stat()
        return f"{path.resolve()}:{status.st_size}:{status.st_mtime_ns}:{status.st_ctime_ns}:{status.st_ino}"

    def _recall(self) -> dict[str, str]:
        try:
            known = json.loads(self.memory.read_bytes())
        except (OSError, ValueError):
            return {}
        return known if isinstance(known, dict) else {}
