"""What a sample's numbers depend on, as fingerprints: per column group, of settings, row and audio file.

A finished group may be reused when, and only when, its fingerprint is the same. Gives hashing of files with a
memory of earlier results; knows nothing of where fingerprints are kept.
"""

import contextlib
import hashlib
import json
import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hfprep.audio.containers import read_clip
from hfprep.errors import CheckpointError
from hfprep.object_storage import is_url, status
from hfprep.records import Need, Utterance
from hfprep.references import ByteRange, parse_reference
from hfprep.store.atomic import write_bytes

# Raise the number of a group when hfprep's own computation of it changes its results.
NUMERICS = {"text": 1, "codes": 1, "latents": 1}
DIGEST_BYTES = 16


def digest(value: Any) -> bytes:
    """A 16-byte hash of any JSON value."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=DIGEST_BYTES).digest()


@dataclass(frozen=True, slots=True)
class AudioIdentity:
    """What tells one audio file from another: size and mtime, or with `--hash-audio` its content.

    A clip inside another file goes by its length and that file's mtime; where in the file it is, its name says. In
    object storage a number made from the ETag (or from the time, where there is none) stands for the mtime.
    """

    size: int
    mtime_ns: int
    sha256: str | None = None

    @classmethod
    def of(cls, path: str, *, by_content: bool) -> "AudioIdentity":
        """Look at the file at `path`; OSError where there is none, StoreError where nobody can say."""
        reference = parse_reference(path)
        file = path if reference is None else reference.file
        if is_url(file):
            remote = status(file)
            size, mtime_ns = remote.size, remote.version
        else:
            local = os.stat(file)
            size, mtime_ns = local.st_size, local.st_mtime_ns
        if isinstance(reference, ByteRange):
            size = reference.length
        if not by_content:
            return cls(size, mtime_ns)
        if reference is None and not is_url(file):
            return cls(size, mtime_ns, sha256_file(Path(path)))
        return cls(size, mtime_ns, hashlib.sha256(read_clip(path)).hexdigest())

    def key(self) -> bytes:
        return (self.sha256 or f"{self.size}:{self.mtime_ns}").encode()

    def known_by(self, earlier: Mapping[str, Any]) -> "AudioIdentity | None":
        """The same file as an earlier run saw it, when that run told files apart the other way (see `source_of`).

        None where the file is not the same by size and mtime, or was told apart as it is now.
        """
        if (self.size, self.mtime_ns) != (earlier.get("size"), earlier.get("mtime_ns")):
            return None
        sha256 = earlier.get("sha256")
        return None if bool(sha256) == bool(self.sha256) else AudioIdentity(self.size, self.mtime_ns, sha256)


def source_of(utterance: Utterance, audio: AudioIdentity) -> str:
    """What a sample was computed from, in words that can be shown and compared later: a JSON object."""
    row = {"text": utterance.text, "language": utterance.language, "audio": utterance.audio}
    file = {"size": audio.size, "mtime_ns": audio.mtime_ns, "sha256": audio.sha256}
    return json.dumps(row | file, ensure_ascii=False)


@dataclass(frozen=True)
class Settings:
    """Everything but rows and audio that the numbers depend on, by column group, in words that can be shown."""

    text: Mapping[str, str]
    codes: Mapping[str, str]
    latents: Mapping[str, str]

    def groups(self) -> dict[str, dict[str, str]]:
        """The settings with the version of hfprep's own computation, by group."""
        groups = {"text": self.text, "codes": self.codes, "latents": self.latents}
        return {name: {**values, "numerics": str(NUMERICS[name])} for name, values in groups.items()}

    def differences(self, earlier: Sequence[Mapping[str, Mapping[str, str]]]) -> list[str]:
        """One line for each setting that is not what it was: its name, the earlier and the present value.

        `earlier` are all the settings under which samples may have been computed: more than one after a run that
        changed them was interrupted.
        """
        lines: dict[str, None] = {}
        for groups in earlier:
            for group, values in self.groups().items():
                before = groups.get(group, {})
                for name in sorted(values.keys() | before.keys()):
                    if before.get(name) != values.get(name):
                        lines[f"{name}: was {before.get(name)}, is {values.get(name)}"] = None
        return list(lines)


@dataclass(frozen=True, slots=True)
class Fingerprints:
    """Fingerprints of one sample, 16 bytes a group."""

    text: bytes
    codes: bytes
    latents: bytes

    def by_need(self) -> dict[Need, bytes]:
        return {Need.TEXT: self.text, Need.CODES: self.codes, Need.LATENTS: self.latents}


class Fingerprinter:
    """Computes the fingerprints of samples under given settings."""

    def __init__(self, settings: Settings) -> None:
        self._base = {name: digest(values) for name, values in settings.groups().items()}

    def of(self, utterance: Utterance, audio: AudioIdentity) -> Fingerprints:
        """Fingerprints of one row and its audio; with a content hash the file's name does not matter."""
        text = f"{utterance.language}\0{utterance.text}".encode()
        source = audio.key() if audio.sha256 else audio.key() + b"\0" + utterance.audio.encode()
        return Fingerprints(self._of("text", text), self._of("codes", source), self._of("latents", source))

    def _of(self, group: str, content: bytes) -> bytes:
        return hashlib.blake2b(self._base[group] + content, digest_size=DIGEST_BYTES).digest()


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


def _sha256_readable(path: Path) -> str:
    with _readable(path):
        return sha256_file(path)


class FileHashes:
    """SHA-256 of large files, remembered by path, size, times and inode in a small file between runs."""

    def __init__(self, memory: Path) -> None:
        self.memory = memory

    def sha256(self, paths: Mapping[str, Path]) -> dict[str, str]:
        """Hashes of the files, by the names given to them; files are read in parallel where they must be."""
        known = self._recall()
        keys = {name: self._key(path) for name, path in paths.items()}
        missing = {keys[name]: path for name, path in paths.items() if keys[name] not in known}
        if missing:
            with ThreadPoolExecutor(min(8, len(missing))) as pool:
                known |= dict(zip(missing, pool.map(_sha256_readable, missing.values()), strict=True))
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
