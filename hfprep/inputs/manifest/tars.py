"""WebDataset tars as rows: members of one key are a sample, its audio a range of the tar's bytes.

Samples are numbered from 1 through all shards. The fields come from the .json, `text` from the .txt where the json has
none, `id` from the key. Only headers and small members are read here.
"""

import itertools
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hfprep.errors import ConfigError, Reason, RejectedSample
from hfprep.inputs.manifest.field_map import FieldMap
from hfprep.inputs.manifest.rows import RawRow, parse_object
from hfprep.io.references import ByteRange

AUDIO_SUFFIXES = ("flac", "wav", "ogg", "opus", "mp3", "m4a", "aac", "webm")
TEXT_SUFFIXES = ("txt", "text")
MAX_SIDE_FILE_BYTES = 1 << 24


@dataclass(frozen=True, slots=True)
class Member:
    """One file in a tar: key and suffix of its name, and its bytes."""

    key: str
    suffix: str
    at: ByteRange


@dataclass(frozen=True)
class Tars:
    """The samples of some tars."""

    where: str
    paths: tuple[Path, ...]
    fields: FieldMap

    def lines(self) -> Iterator[tuple[int, RawRow]]:
        """Number and row of each sample; one that says so comes in place of all from where a tar is damaged."""
        number = 0
        for path in self.paths:
            members, key = _members(path), ""
            try:
                for key, group in itertools.groupby(members, key=lambda member: member.key):
                    sample = list(group)
                    number += 1
                    yield number, self._row(number, path, key, sample)
            except tarfile.ReadError as error:
                number += 1
                message = f"{path}: {error}, at or after sample {key!r}; that one and the rest of the tar are not read"
                yield number, RejectedSample(Reason.AUDIO_UNREADABLE, message)
            except OSError as error:
                raise ConfigError(f"{self.where}: {path} cannot be read: {error.strerror or error}") from error

    def _row(self, number: int, path: Path, key: str, members: list[Member]) -> RawRow:
        by_suffix = {member.suffix.rpartition(".")[2].lower(): member.at for member in members}
        try:
            row: dict[str, Any] = {"id": key}
            if "json" in by_suffix:
                row |= parse_object(_content(path, by_suffix["json"]))
            text = next((by_suffix[name] for name in TEXT_SUFFIXES if name in by_suffix), None)
            if text is not None:
                row.setdefault("text", _text(path, text))
            clip = next((by_suffix[name] for name in AUDIO_SUFFIXES if name in by_suffix), None)
            if clip is not None:
                row["audio"] = str(clip)
            return self.fields.apply(number, row)
        except RejectedSample as error:
            return error


def _members(path: Path) -> Iterator[Member]:
    """Files of a tar in order. Raises tarfile.ReadError where it is damaged, also where tarfile stops in silence."""
    with tarfile.open(path, "r:") as archive:
        for item in archive:
            folder, slash, name = item.name.removeprefix("./").rpartition("/")
            stem, _, suffix = name.partition(".")
            if item.isfile() and stem:
                yield Member(folder + slash + stem, suffix, ByteRange(path.name, name, item.offset_data, item.size))
            setattr(archive, "members", [])  # noqa: B010 - tarfile keeps every header; its stubs do not know the list
        with open(path, "rb") as file:
            file.seek(archive.offset)
            rest = file.read(tarfile.BLOCKSIZE)
        if rest.strip(b"\0"):
            raise tarfile.ReadError(f"damaged at byte {archive.offset}")


def _content(path: Path, at: ByteRange) -> bytes:
    if at.length > MAX_SIDE_FILE_BYTES:
        raise RejectedSample(Reason.INVALID_JSON, f"{at}: larger than {MAX_SIDE_FILE_BYTES >> 20} MiB")
    with open(path, "rb") as file:
        file.seek(at.offset)
        return file.read(at.length)


def _text(path: Path, at: ByteRange) -> str:
    try:
        return _content(path, at).decode("utf-8-sig").strip()
    except UnicodeDecodeError:
        raise RejectedSample(Reason.INVALID_ENCODING, f"{at}: not UTF-8; save the text as UTF-8") from None
