"""Reads rows of WebDataset tars: members with the same key are a sample, its audio is a byte range of the tar.

Names are split as in WebDataset: at the first dot of the last component. Samples are numbered from 1 through all
shards. Fields come from the .json, `text` from the .txt if the json has none, `id` from the key. Only headers and small
members are read here.
"""

import itertools
import os
import tarfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, cast

from hfprep.errors import ConfigError, Reason, RejectedSample
from hfprep.inputs.manifest.field_map import FieldMap
from hfprep.inputs.manifest.rows import NumberedRow, parse_object
from hfprep.io.references import ByteRange

AUDIO_SUFFIXES = ("flac", "wav", "ogg", "opus", "mp3", "m4a", "aac", "webm")
TEXT_SUFFIXES = ("txt", "text")
FIELDS_SUFFIXES = ("json",)
MAX_SIDE_FILE_BYTES = 1 << 24
MAX_MEMBERS = 1000  # of one sample, as they are held in memory
MAX_HEADER_BYTES = 1 << 20  # of a name or a pax header, which can claim any number of bytes
SHOWN_NAMES = 4
# What tarfile raises for a bad header: its own errors, and errors from parsing invalid numbers and names.
DAMAGED = (tarfile.TarError, ValueError, ArithmeticError, LookupError, TypeError, MemoryError, RecursionError)


@dataclass(frozen=True, slots=True)
class Member:
    """One file in a tar: key and suffix of its name, and its byte range (None: it cannot be read in place)."""

    key: str
    suffix: str
    at: ByteRange | None

    @property
    def name(self) -> str:
        """The name without folders."""
        stem = self.key.rpartition("/")[2]
        return f"{stem}.{self.suffix}" if self.suffix else stem


def tar_rows(where: str, paths: Sequence[Path], fields: FieldMap, folder: Path) -> Iterator[NumberedRow]:
    """Number and row of each sample; a damaged tar yields one rejection for the rest of it.

    References to clips are relative to `folder`.
    """
    number = 0
    for path in paths:
        members, key = _members(path, os.path.relpath(path, folder)), ""
        try:
            for key, group in itertools.groupby(members, key=lambda member: member.key):
                sample = list(itertools.islice(group, MAX_MEMBERS + 1))
                number += 1
                yield number, fields.applied(number, partial(_row, path, key), sample)
        except OSError as error:
            raise ConfigError(f"{where}: {path} cannot be read: {error.strerror or error}") from error
        except DAMAGED as error:
            number += 1
            what = str(error) or type(error).__name__
            message = f"{path}: {what}, at or after sample {key!r}; it and the rest of the tar are skipped"
            yield number, RejectedSample(Reason.AUDIO_UNREADABLE, message)


def _row(path: Path, key: str, members: Sequence[Member]) -> dict[str, Any]:
    if len(members) > MAX_MEMBERS:
        raise RejectedSample(Reason.INVALID_FIELD, f"{path}: the sample {key!r} has more than {MAX_MEMBERS} files")
    name, count = Counter(member.name for member in members).most_common(1)[0]
    if count > 1:
        message = f"the tar contains {name!r} twice for one sample; keep one of them"
        raise RejectedSample(Reason.INVALID_FIELD, message)
    row: dict[str, Any] = {"id": key}
    clip = _one_of(members, AUDIO_SUFFIXES, None)
    within = clip.suffix.rpartition(".")[0] if clip is not None else ""
    fields = _one_of(members, FIELDS_SUFFIXES, within)
    if fields is not None:
        row |= parse_object(_content(path, fields))
    text = _one_of(members, TEXT_SUFFIXES, within)
    if text is not None and "text" not in row:
        try:
            row["text"] = _content(path, text).decode("utf-8-sig").strip()
        except UnicodeDecodeError:
            message = f"{text.name!r} is not UTF-8; save the text as UTF-8"
            raise RejectedSample(Reason.INVALID_ENCODING, message) from None
    if clip is not None:
        row["audio"] = str(_place(clip))
    return row


def _one_of(members: Sequence[Member], kinds: tuple[str, ...], within: str | None) -> Member | None:
    """The file of one of these kinds, which the last part of its suffix says: "wav" for "wav" and "0.wav".

    One with such a suffix alone, or else one whose suffix begins with the part `within` (None: any part). Raises a
    RejectedSample that names the candidates if there are several.
    """
    exact: list[Member] = []
    others: list[Member] = []
    for member in members:
        part, _, kind = member.suffix.rpartition(".")
        if kind.lower() in kinds and (not part or within in (None, part)):
            (others if part else exact).append(member)
    found = exact or others
    if len(found) > 1:
        names = ", ".join(repr(member.name) for member in found[:SHOWN_NAMES])
        message = (
            f"a sample has several files of the same type: {names}; names are split at the first dot, "
            "so use a separate name without dots for each sample"
        )
        raise RejectedSample(Reason.INVALID_FIELD, message)
    return found[0] if found else None


def _place(member: Member) -> ByteRange:
    if member.at is None:
        message = f"{member.name!r} is a sparse file, or a link to a file that is not in the tar; create the tar again"
        raise RejectedSample(Reason.AUDIO_UNREADABLE, message)
    return member.at


def _members(path: Path, shown: str) -> Iterator[Member]:
    """Files of a tar in order. Raises tarfile.ReadError if it is damaged, even where tarfile would silently stop."""
    linked: dict[str, tarfile.TarInfo] | None = None
    for item in _headers(path):
        folder, slash, name = item.name.removeprefix("./").rpartition("/")
        stem, _, suffix = name.partition(".")
        if not stem or not (item.isfile() or item.islnk()):
            continue
        target: tarfile.TarInfo | None = item
        if item.islnk():
            linked = _linked_files(path) if linked is None else linked
            target = linked.get(item.linkname)
        in_place = target is not None and not target.issparse()
        at = ByteRange(shown, name, target.offset_data, target.size) if target is not None and in_place else None
        yield Member(folder + slash + stem, suffix, at)


class _BoundedFile:
    """A tar from which tarfile reads only headers; rejects reads that are too large for one."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int) -> bytes:
        if not 0 <= size <= MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {size} bytes")
        return self._file.read(size)


def _headers(path: Path) -> Iterator[tarfile.TarInfo]:
    """The headers of a tar, in ascending order. Raises one of `DAMAGED` if the tar is damaged."""
    before = -1
    with open(path, "rb") as file, tarfile.open(fileobj=cast(BinaryIO, _BoundedFile(file)), mode="r:") as archive:
        for item in archive:
            if item.offset_data <= before or archive.offset < item.offset_data or item.size < 0:
                raise tarfile.ReadError(f"the header of {item.name[:80]!r} has an impossible size")
            before = item.offset_data
            yield item
            setattr(archive, "members", [])  # noqa: B010 - else tarfile keeps every header; its stubs lack the list
        file.seek(archive.offset)
        if file.read(tarfile.BLOCKSIZE).strip(b"\0"):
            raise tarfile.ReadError(f"damaged at byte {archive.offset}")


def _linked_files(path: Path) -> dict[str, tarfile.TarInfo]:
    """The targets of a tar's hard links, by name; only read if there are links."""
    wanted = {item.linkname for item in _headers(path) if item.islnk()}
    found: dict[str, tarfile.TarInfo] = {}
    for item in _headers(path):
        target = found.get(item.linkname) if item.islnk() else item if item.isfile() else None
        if item.name in wanted and target is not None:
            found[item.name] = target
    return found


def _content(path: Path, member: Member) -> bytes:
    at = _place(member)
    if at.length > MAX_SIDE_FILE_BYTES:
        raise RejectedSample(Reason.INVALID_JSON, f"{at}: larger than {MAX_SIDE_FILE_BYTES >> 20} MiB")
    with open(path, "rb") as file:
        file.seek(at.offset)
        return file.read(at.length)
