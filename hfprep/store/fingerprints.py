"""Fingerprints of what a sample's features depend on: settings, row and audio file, per column group.

A finished group is reused if and only if its fingerprint is the same. Knows nothing about where fingerprints are
stored.
"""

import functools
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from hfprep.errors import Reason, RejectedSample
from hfprep.inputs.audio.containers import check_range, check_regular, open_regular, opened
from hfprep.io.digest import DIGEST_BYTES, digest
from hfprep.io.object_storage import is_url, status
from hfprep.io.references import ByteRange, parse_reference
from hfprep.schema import Schema, Utterance

MAX_HASHED_BYTES = 1 << 36  # a sparse file can be too large to ever be read
HASHED_AT_A_TIME = 1 << 20
HASHES_REMEMBERED = 64


class AudioIdentity(NamedTuple):
    """Identifies the content of an audio file: by size and mtime, or with `--hash-audio` by hash.

    A clip inside another file is identified by its length and that file's mtime; its position is part of its path. In
    object storage, a number derived from the ETag (or else the time) replaces the mtime.
    """

    size: int
    mtime_ns: int
    sha256: str | None = None

    @classmethod
    def of(cls, path: str, *, by_content: bool) -> "AudioIdentity":
        """The identity of the file at `path`.

        Raises OSError if there is none, RejectedSample if it is not a regular file or does not contain the clip, and
        StoreError if object storage cannot be reached.
        """
        reference = parse_reference(path)
        file = path if reference is None else reference.file
        if is_url(file):
            remote = status(file)
            size, mtime_ns = remote.size, remote.version
        else:
            local = os.stat(file)
            check_regular(file, local)
            size, mtime_ns = local.st_size, local.st_mtime_ns
        if isinstance(reference, ByteRange):
            check_range(path, size, reference.offset, reference.length)
            size = reference.length
        if not by_content:
            return cls(size, mtime_ns)
        if reference is None and not is_url(file):
            return cls(size, mtime_ns, _sha256_of(path, size, (local.st_ino, mtime_ns, local.st_ctime_ns)))
        return cls(size, mtime_ns, _sha256_of_clip(path))

    def key(self) -> bytes:
        return (self.sha256 or f"{self.size}:{self.mtime_ns}").encode()

    def known_by(self, earlier: Mapping[str, Any]) -> "AudioIdentity | None":
        """The identity an earlier run recorded (see `source_of`), if only one of the two runs hashes audio.

        None if size or mtime differ, or if both runs identify files in the same way.
        """
        if (self.size, self.mtime_ns) != (earlier.get("size"), earlier.get("mtime_ns")):
            return None
        sha256 = earlier.get("sha256")
        if not isinstance(sha256, str | None):
            return None
        return None if bool(sha256) == bool(self.sha256) else AudioIdentity(self.size, self.mtime_ns, sha256)


@functools.lru_cache(maxsize=HASHES_REMEMBERED)
def _sha256_of(path: str, size: int, _version: tuple[int, ...]) -> str:
    """Hex SHA-256 of a file's content; cached, as many segments may be in one file.

    `_version` includes ctime, which programs cannot set.
    """
    _check_hashed_bytes(path, size)
    hasher = hashlib.sha256()
    with open(open_regular(path), "rb") as file:
        while size > 0 and (block := file.read(min(size, HASHED_AT_A_TIME))):  # ends even if the file grows
            hasher.update(block)
            size -= len(block)
    return hasher.hexdigest()


def _check_hashed_bytes(path: str, size: int) -> None:
    if size > MAX_HASHED_BYTES:
        bound = f"--hash-audio reads up to {MAX_HASHED_BYTES >> 30} GiB"
        raise RejectedSample(Reason.AUDIO_TOO_LONG, f"{path}: has {size} bytes; {bound}")


def _sha256_of_clip(audio: str) -> str:
    """Hex SHA-256 of a clip inside another file or in object storage. Raises RejectedSample or StoreError."""
    hasher = hashlib.sha256()
    with opened(audio) as clip:
        _check_hashed_bytes(audio, clip.size)
        for place in range(0, clip.size, HASHED_AT_A_TIME):
            hasher.update(clip.read_at(place, HASHED_AT_A_TIME))
    return hasher.hexdigest()


def source_of(utterance: Utterance, audio: AudioIdentity) -> str:
    """What a sample was computed from, as a JSON object that can be shown and compared later."""
    row: dict[str, Any] = {"text": utterance.text, "language": utterance.language, "audio": utterance.audio}
    if utterance.offset is not None:
        row |= {"offset": utterance.offset, "duration": utterance.duration}
    file = {"size": audio.size, "mtime_ns": audio.mtime_ns, "sha256": audio.sha256}
    return json.dumps(row | file, ensure_ascii=False)


Settings = Mapping[str, Mapping[str, str]]  # by group: what the features depend on besides row and audio


def parse_settings(value: Any) -> dict[str, dict[str, str]]:
    """Settings by group, as they were stored. Raises AttributeError or TypeError for anything else."""
    return {group: {name: str(setting) for name, setting in values.items()} for group, values in value.items()}


def with_numerics(schema: Schema, settings: Settings) -> dict[str, dict[str, str]]:
    """Settings by group with the version of hfprep's computation added, as they are stored and shown."""
    return {group.name: {**settings[group.name], "numerics": str(group.numerics)} for group in schema.groups}


def differences(settings: Settings, earlier: Sequence[Settings]) -> list[str]:
    """One line for each setting that has changed: its name, the earlier and the current value.

    `earlier` are all the settings under which samples may have been computed: more than one after a run that
    changed them was interrupted.
    """
    lines: dict[str, None] = {}
    for groups in earlier:
        for group, values in settings.items():
            before = groups.get(group, {})
            for name in sorted(values.keys() | before.keys()):
                if before.get(name) != values.get(name):
                    lines[f"{name}: was {before.get(name)}, is {values.get(name)}"] = None
    return list(lines)


class Fingerprinter:
    """Computes the fingerprints of samples under given settings: by group, 32 hexadecimal digits."""

    def __init__(self, schema: Schema, settings: Settings) -> None:
        self.settings = with_numerics(schema, settings)
        self._text = {name: digest(self.settings[name]) for name in schema.group_names if name in schema.text_groups}
        self._audio = {name: digest(self.settings[name]) for name in schema.group_names if name in schema.audio_groups}

    def of(self, utterance: Utterance, audio: AudioIdentity) -> dict[str, str]:
        """Fingerprints of one row and its audio; with a content hash they do not depend on the file's name.

        Rows of whole recordings keep the fingerprints they had before segments were introduced.
        """
        text = f"{utterance.language}\0{utterance.text}".encode()
        source = audio.key() if audio.sha256 else audio.key() + b"\0" + utterance.audio.encode()
        if utterance.offset is not None:
            source += f"\0{utterance.offset!r}+{utterance.duration!r}".encode()
        found = {name: _fingerprint(base, text) for name, base in self._text.items()}
        return found | {name: _fingerprint(base, source) for name, base in self._audio.items()}


def _fingerprint(base: bytes, content: bytes) -> str:
    return hashlib.blake2b(base + content, digest_size=DIGEST_BYTES).hexdigest()
