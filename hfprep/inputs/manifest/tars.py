"""WebDataset tars as rows: members of one key are a sample, its audio a range of the tar's bytes.

A name is split as WebDataset splits it: at the first dot of its last component. Samples are numbered from 1 through
all shards. The fields come from the .json, `text` from the .txt where the json has none, `id` from the key. Only
headers and small members are read here.
"""

import itertools
import os
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from hfprep.errors import ConfigError, Reason, RejectedSample
from hfprep.inputs.manifest.field_map import FieldMap
from hfprep.inputs.manifest.rows import RawRow, parse_object
from hfprep.io.references import ByteRange

AUDIO_SUFFIXES = ("flac", "wav", "ogg", "opus", "mp3", "m4a", "aac", "webm")
TEXT_SUFFIXES = ("txt", "text")
FIELDS_SUFFIXES = ("json",)
MAX_SIDE_FILE_BYTES = 1 << 24
MOST_MEMBERS = 1000  # of one sample; a tar of a million files of one key must not be gathered in memory
MAX_HEADER_BYTES = 1 << 20  # of a name or a pax header; a header can claim any number of bytes
SHOWN_NAMES = 4
# What tarfile raises at a bad header: its own errors, and whatever the parsing of an absurd number or name may raise.
DAMAGED = (tarfile.TarError, ValueError, ArithmeticError, LookupError, TypeError, MemoryError, RecursionError)


@dataclass(frozen=True, slots=True)
class Member:
    """One file in a tar: key and suffix of its name, and its bytes (None: it has none that could be read in place)."""

    key: str
    suffix: str
    at: ByteRange | None

    @property
    def name(self) -> str:
        """The name without folders."""
        return f"{self.key.rpartition('/')[2]}.{self.suffix}" if self.suffix else self.key.rpartition("/")[2]

    @property
    def kind(self) -> str:
        """What the file is, by the last part of its suffix: "wav" of "0.wav"."""
        return self.suffix.rpartition(".")[2].lower()

    @property
    def within(self) -> str:
        """What tells apart files of one kind in a sample: "0" of "0.wav", nothing of "wav"."""
        return self.suffix.rpartition(".")[0]


@dataclass(frozen=True)
class Tars:
    """The samples of some tars; names of clips start from `folder`."""

    where: str
    paths: tuple[Path, ...]
    fields: FieldMap
    folder: Path

    def lines(self) -> Iterator[tuple[int, RawRow]]:
        """Number and row of each sample; one that says so comes in place of all from where a tar is damaged."""
        number = 0
        for path in self.paths:
            members, key = _members(path, os.path.relpath(path, self.folder)), ""
            try:
                for key, group in itertools.groupby(members, key=lambda member: member.key):
                    sample = list(itertools.islice(group, MOST_MEMBERS + 1))
                    number += 1
                    yield number, self._row(number, path, key, sample)
            except OSError as error:
                raise ConfigError(f"{self.where}: {path} cannot be read: {error.strerror or error}") from error
            except DAMAGED as error:
                number += 1
                what = str(error) or type(error).__name__
                message = f"{path}: {what}, at or after sample {key!r}; that one and the rest of the tar are not read"
                yield number, RejectedSample(Reason.AUDIO_UNREADABLE, message)

    def _row(self, number: int, path: Path, key: str, members: Sequence[Member]) -> RawRow:
        try:
            if len(members) > MOST_MEMBERS:
                message = f"{path}: more than {MOST_MEMBERS} files belong to the sample {key!r}"
                raise RejectedSample(Reason.INVALID_FIELD, message)
            _check_names(members)
            row: dict[str, Any] = {"id": key}
            clip = _one_of(members, AUDIO_SUFFIXES, None)
            within = clip.within if clip is not None else ""
            fields = _one_of(members, FIELDS_SUFFIXES, within)
            if fields is not None:
                row |= parse_object(_content(path, fields))
            text = _one_of(members, TEXT_SUFFIXES, within)
            if text is not None and "text" not in row:
                row["text"] = _text(path, text)
            if clip is not None:
                row["audio"] = str(_place(clip))
            return self.fields.apply(number, row)
        except RejectedSample as error:
            return error


def _check_names(members: Sequence[Member]) -> None:
    names = [member.name for member in members]
    if len(set(names)) == len(names):
        return
    doubled = next(name for name in names if names.count(name) > 1)
    raise RejectedSample(Reason.INVALID_FIELD, f"the tar holds {doubled!r} twice for one sample; keep one of them")


def _one_of(members: Sequence[Member], suffixes: tuple[str, ...], within: str | None) -> Member | None:
    """The one file of these kinds: of an exact suffix, else of the same middle part as the audio (None: of any).

    Raises RejectedSample that names the candidates where there are several.
    """
    candidates = [member for member in members if member.kind in suffixes]
    exact = [member for member in candidates if not member.within]
    found = exact or [member for member in candidates if within is None or member.within == within]
    if len(found) > 1:
        names = ", ".join(repr(member.name) for member in found[:SHOWN_NAMES])
        message = (
            f"one sample (names are split at the first dot) has several files for one purpose: {names}; "
            "give each sample a name without dots of its own"
        )
        raise RejectedSample(Reason.INVALID_FIELD, message)
    return found[0] if found else None


def _place(member: Member) -> ByteRange:
    if member.at is None:
        message = f"{member.name!r} is a sparse file, or a link to a file that is not in the tar; create the tar again"
        raise RejectedSample(Reason.AUDIO_UNREADABLE, message)
    return member.at


def _members(path: Path, shown: str) -> Iterator[Member]:
    """Files of a tar in order. Raises tarfile.ReadError where it is damaged, also where tarfile stops in silence."""
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
    """A tar as tarfile reads it: headers alone, so that a read of many bytes is a header that claims them."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int) -> bytes:
        if not 0 <= size <= MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {size} bytes")
        return self._file.read(size)


def _headers(path: Path) -> Iterator[tarfile.TarInfo]:
    """The headers of a tar, each behind the one before. Raises one of `DAMAGED` where that cannot go on."""
    before = -1
    with open(path, "rb") as file, tarfile.open(fileobj=cast(BinaryIO, _BoundedFile(file)), mode="r:") as archive:
        for item in archive:
            if item.offset_data <= before or archive.offset < item.offset_data or item.size < 0:
                raise tarfile.ReadError(f"the header of {item.name[:80]!r} gives it an impossible size")
            before = item.offset_data
            yield item
            setattr(archive, "members", [])  # noqa: B010 - tarfile keeps every header; its stubs do not know the list
        file.seek(archive.offset)
        if file.read(tarfile.BLOCKSIZE).strip(b"\0"):
            raise tarfile.ReadError(f"damaged at byte {archive.offset}")


def _linked_files(path: Path) -> dict[str, tarfile.TarInfo]:
    """The files that hard links of a tar stand for, by their names; read only where there is such a link."""
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


def _text(path: Path, member: Member) -> str:
    try:
        return _content(path, member).decode("utf-8-sig").strip()
    except UnicodeDecodeError:
        message = f"{member.name!r} is not UTF-8; save the text as UTF-8"
        raise RejectedSample(Reason.INVALID_ENCODING, message) from None
