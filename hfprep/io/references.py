"""References, as strings, to clips inside a tar, Arrow or Parquet file.

`FILE#NAME@OFFSET+LENGTH` is a byte range of a file, `FILE#NAME@COLUMN[ROW]` a cell of a Parquet file (rows count from
0). NAME is the clip's name, for people and for its suffix; it may be empty. Such a string can be used wherever the path
of an audio file can. This module reads no files.
"""

import dataclasses
import re
from dataclasses import dataclass
from pathlib import PurePosixPath

_RANGE = re.compile(r"(?P<file>.+)#(?P<name>[^#@]*)@(?P<offset>\d+)\+(?P<length>\d+)", re.DOTALL)
_CELL = re.compile(r"(?P<file>.+\.(?:parquet|pq))#(?P<name>[^#@]*)@(?P<column>[^#@]+)\[(?P<row>\d+)\]", re.DOTALL)
_RESERVED = re.compile(r"[%#@\x00-\x1f\x7f]")
_ESCAPED = re.compile(r"%([0-9A-F]{2})")


@dataclass(frozen=True, slots=True)
class ByteRange:
    """`length` bytes of `file` from `offset`: a member of a tar, a value in an Arrow file."""

    file: str
    name: str
    offset: int
    length: int

    def __str__(self) -> str:
        return f"{self.file}#{_escape(self.name)}@{self.offset}+{self.length}"


@dataclass(frozen=True, slots=True)
class ParquetCell:
    """One value of a binary (or Audio) column of a Parquet file; `row` counts from 0."""

    file: str
    name: str
    column: str
    row: int

    def __str__(self) -> str:
        return f"{self.file}#{_escape(self.name)}@{_escape(self.column)}[{self.row}]"


Reference = ByteRange | ParquetCell


def parse_reference(audio: str) -> Reference | None:
    """The clip inside another file that a string refers to; None for an ordinary path."""
    if "#" not in audio:
        return None
    if found := _RANGE.fullmatch(audio):
        return ByteRange(found["file"], _unescape(found["name"]), int(found["offset"]), int(found["length"]))
    if found := _CELL.fullmatch(audio):
        return ParquetCell(found["file"], _unescape(found["name"]), _unescape(found["column"]), int(found["row"]))
    return None


def file_of(audio: str) -> str:
    """The file that an audio is read from: the path itself, or the file that contains the clip."""
    reference = parse_reference(audio)
    return audio if reference is None else reference.file


def moved(reference: Reference, file: str) -> str:
    """The reference to the same clip in a file at another path, as a string."""
    return str(dataclasses.replace(reference, file=file))


def file_name_of(audio: str) -> str:
    """The name of a clip without folders: "a.wav" for "wavs/a.wav" and "x.tar#b/a.wav@512+10"."""
    reference = parse_reference(audio)
    return PurePosixPath(audio if reference is None else reference.name).name


def name_of(audio: str) -> str:
    """The name of a clip without folders and suffix: "a" for "wavs/a.wav" and "x.tar#b/a.wav@512+10"."""
    return PurePosixPath(file_name_of(audio)).stem


def suffix_of(audio: str) -> str:
    """The suffix of a clip's name, in lower case: ".wav"."""
    return PurePosixPath(file_name_of(audio)).suffix.lower()


def _escape(name: str) -> str:
    return _RESERVED.sub(lambda found: f"%{ord(found[0]):02X}", name)


def _unescape(name: str) -> str:
    return _ESCAPED.sub(lambda found: chr(int(found[1], 16)), name)
