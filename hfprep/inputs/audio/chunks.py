"""Checks that the audio of a wav, aiff, caf, w64, au or NIST file is complete and is not followed by unread data.

Decoders read as many samples as the header says and ignore what follows. Each function takes an open file and its size
in bytes, and returns why the file is rejected, or None. The audio itself is not read.
"""

import re
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import BinaryIO

STREAMED_BYTES = 0x7FFFF000  # a header claiming this many bytes or more was written before the length was known
UNKNOWN_LENGTH = 0xFFFFFFFF
SPHERE_BYTES = 1024
CHUNK_START_BYTES = 24
JOINED = "is several files joined together; only the first would be read"
MAX_BYTES_BEHIND = 4096  # padding and tags of other kinds
START_BYTES = 12
SCANNED_BYTES = 1 << 20
CHUNKS_BEHIND = frozenset({b"LIST", b"id3 ", b"ID3 ", b"fact", b"cue ", b"bext", b"PAD ", b"JUNK", b"junk", b"smpl"})
CUT = "cut off: {what} at byte {place} should have {promised} bytes, but only {present} are there"
MAX_CHUNKS = 1 << 16  # no clip has more

Check = Callable[[BinaryIO, int], str | None]


@dataclass(frozen=True, slots=True)
class _Chunks:
    """The chunks of a format: how name and length are stored, bytes of the header that the length leaves out, padding.

    `sound` is the name of audio chunks, `starts` are the names that files of the format begin with.
    """

    fields: struct.Struct
    header_bytes: int
    multiple: int
    sound: bytes
    starts: tuple[bytes, ...]

    def at(self, file: BinaryIO, place: int) -> tuple[bytes, int]:
        """Name of the chunk at a position, and its length with header and padding."""
        file.seek(place)
        name, length = self.fields.unpack_from(file.read(CHUNK_START_BYTES))
        return name, -(-(self.header_bytes + length) // self.multiple) * self.multiple


_RIFF = _Chunks(struct.Struct("<4sI"), 8, 2, b"data", (b"RIFF", b"RF64"))
_IFF = _Chunks(struct.Struct(">4sI"), 8, 2, b"SSND", (b"FORM",))
_CAF = _Chunks(struct.Struct(">4sq"), 12, 1, b"data", (b"caff",))
_W64 = _Chunks(struct.Struct("<4s12xQ"), 0, 8, b"data", (b"riff",))


def riff_problem(file: BinaryIO, size: int) -> str | None:
    """Check a wav file: its audio must be complete, with no other audio after it."""
    found = _data_chunk(file)
    if found is None:
        return None  # written without padding: left to the decoder
    place, length = found
    present = size - place
    if length == 0:
        file.seek(place)
        is_empty = not present or file.read(4) in CHUNKS_BEHIND
        return "contains no samples: its data chunk is empty" if is_empty else None
    if length >= STREAMED_BYTES:
        return None
    if present < length:
        return CUT.format(what="the data chunk", place=place - 8, promised=length, present=present)
    return _behind(file, size, place + length + length % 2, _RIFF)


def _data_chunk(file: BinaryIO) -> tuple[int, int] | None:
    """Byte position of the samples of a wav file, and their number of bytes according to the header."""
    place = 12
    wide = 0
    while True:
        file.seek(place)
        header = file.read(8)
        if len(header) < 8:
            return None
        name, length = struct.unpack("<4sI", header)
        if name == b"ds64":
            wide = int.from_bytes(file.read(16)[8:16], "little")
        if name == b"data":
            return place + 8, wide if wide and length >= STREAMED_BYTES else length
        place += 8 + length + length % 2


def _behind(file: BinaryIO, size: int, place: int, chunks: _Chunks) -> str | None:
    """Check what follows the audio of a chunked file: only other chunks, or a few bytes of anything, are allowed."""
    while size - place >= CHUNK_START_BYTES:
        name, length = chunks.at(file, place)
        if name in chunks.starts:
            return JOINED
        if not name.decode("latin-1").isprintable() or length <= 0 or place + length > size + 1:
            break
        if name == chunks.sound and length > CHUNK_START_BYTES:
            return f"has a second {name.decode()} chunk, which would not be read"
        place += length
    return bytes_behind(size, place)


def _behind_sound(place: int, chunks: _Chunks, file: BinaryIO, size: int) -> str | None:
    """Check what follows the audio chunk of a file whose chunks begin at `place`."""
    for _ in range(MAX_CHUNKS):
        if size - place < CHUNK_START_BYTES:
            return None
        name, length = chunks.at(file, place)
        if length <= 0 or place + length > size + 1:
            return None  # the decoder notices audio that is cut off
        place += length
        if name == chunks.sound:
            return _behind(file, size, place, chunks)
    return None


iff_problem: Check = partial(_behind_sound, 12, _IFF)
caf_problem: Check = partial(_behind_sound, 8, _CAF)
w64_problem: Check = partial(_behind_sound, 40, _W64)


def repeated_start_problem(file: BinaryIO, _size: int) -> str | None:
    """Look for a second occurrence of a file's first bytes: another file of the same format."""
    start = file.read(START_BYTES)
    return second_start(file, re.compile(re.escape(start)), len(start))


def second_start(file: BinaryIO, start: re.Pattern[bytes], length: int) -> str | None:
    """`JOINED` if the rest of a file contains another one, found by the `length` bytes that such files start with."""
    kept = b""
    while chunk := file.read(SCANNED_BYTES):
        data = kept + chunk
        if start.search(data):
            return JOINED
        kept = data[1 - length :]
    return None


def au_problem(file: BinaryIO, size: int) -> str | None:
    """Check what follows the samples of a Sun audio file."""
    start = file.read(12)
    byte_order = ">" if start.startswith(b".snd") else "<"
    if len(start) < 12:
        return None
    offset, length = struct.unpack_from(f"{byte_order}II", start, 4)
    return None if length == UNKNOWN_LENGTH else _file_behind(file, size, offset + length, start[:4])


def nist_problem(file: BinaryIO, size: int) -> str | None:
    """Compare the length of a NIST (SPHERE) file with its header, which is text."""
    lines = [line.split() for line in file.read(SPHERE_BYTES).splitlines()]
    said = {line[0]: line[2] for line in lines if len(line) == 3}
    try:
        header = int(lines[1][0])
        promised = int(said[b"sample_count"]) * int(said[b"sample_n_bytes"]) * int(said.get(b"channel_count", b"1"))
    except (KeyError, ValueError, IndexError):
        return "its header does not say how long it is; convert it to flac"
    if size < header + promised:
        return CUT.format(what="the audio", place=header, promised=promised, present=max(0, size - header))
    return _file_behind(file, size, header + promised, b"NIST")


def _file_behind(file: BinaryIO, size: int, end: int, magic: bytes) -> str | None:
    """Why the data after the audio is a problem: another file of the format, or too much of anything; else None."""
    file.seek(end)
    return JOINED if file.read(len(magic)) == magic else bytes_behind(size, end)


def bytes_behind(size: int, end: int) -> str | None:
    """Why the data after the audio is a problem: more than a tag or padding; else None."""
    if size - end <= MAX_BYTES_BEHIND:
        return None
    return f"{size - end} bytes after its audio would not be read; is it several files joined together?"


BEHIND: Mapping[bytes, Check] = {
    b"RIFF": riff_problem,
    b"RF64": riff_problem,
    b".snd": au_problem,
    b"dns.": au_problem,
    b"riff": w64_problem,
    b"caff": caf_problem,
    b"FORM": iff_problem,
    b"NIST": nist_problem,
}
"""Checks for data that libsndfile would not read, by a file's first bytes."""
