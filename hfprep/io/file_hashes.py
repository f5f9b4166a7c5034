"""Large files told apart: the SHA-256 of their content, remembered between runs, and whether they are still the same.

Takes paths. Knows nothing of what the files hold, and imports nothing heavy: hashing begins while the packages of a
build are being imported.
"""

import contextlib
import hashlib
import json
import platform
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType

from hfprep.errors import CheckpointError
from hfprep.io.atomic import write_bytes

LARGE_BYTES = 1 << 26  # hashing fewer takes less than starting a process
_PROGRAM = Path(__file__).with_name("hash_file.py")


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
    """Raise CheckpointError where a file is not the one that was seen before it was hashed and loaded."""
    for path, identity in seen.items():
        if not identity.is_of(path):
            raise CheckpointError(
                f"{path} was replaced or changed while it was being read, so that nobody knows what was loaded; "
                "nothing was computed with it. Run the same command again when the file stays as it is"
            )


class Hashers:
    """Processes that hash one large file each. Threads would wait for Python's lock while packages are imported.

    Leaving the context ends those that still run.
    """

    def __init__(self) -> None:
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def begin(self, key: str, path: Path) -> None:
        """Have the file that `key` tells from all others hashed, if it is large and this was not asked for before."""
        command = [sys.executable, "-I", "-S", str(_PROGRAM), str(path)]
        with contextlib.suppress(OSError):  # no file or no process: whoever asks for the result finds out
            if key not in self._running and path.stat().st_size >= LARGE_BYTES:
                self._running[key] = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
                )

    def sha256(self, key: str, path: Path) -> str:
        """The file's hash, waited for, or computed here where no process did. Raises CheckpointError."""
        process = self._running.pop(key, None)
        if process is not None:
            output, _ = process.communicate()
            if process.returncode == 0:
                return output.decode()
        with _readable(path):
            return sha256_file(path)

    def __enter__(self) -> "Hashers":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self._running.values():
            process.kill()
            process.communicate()
        self._running.clear()


class FileHashes:
    """SHA-256 of large files, remembered by path, size, times and inode in a small file between runs."""

    def __init__(self, memory: Path, hashers: Hashers) -> None:
        self.memory = memory
        self.hashers = hashers

    def begin(self, paths: Iterable[Path]) -> None:
        """Have those files hashed that are not remembered, for `sha256` to ask for. Raises CheckpointError."""
        known = self._recall()
        for path in paths:
            key = self._key(path)
            if key not in known:
                self.hashers.begin(key, path)

    def sha256(self, paths: Mapping[str, Path]) -> dict[str, str]:
        """Hashes of the files, by the names given to them; large files are read in parallel where they must be.

        Raises CheckpointError where one cannot be read.
        """
        known = self._recall()
        keys = {name: self._key(path) for name, path in paths.items()}
        missing = {keys[name]: path for name, path in paths.items() if keys[name] not in known}
        for key, path in missing.items():
            self.hashers.begin(key, path)
        if missing:
            known |= {key: self.hashers.sha256(key, path) for key, path in missing.items()}
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
