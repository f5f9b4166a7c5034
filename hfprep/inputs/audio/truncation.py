"""Signs that a file was cut off which decoders pass over in silence.

Gives the words for a rejection, or None. libsndfile plays what is left of a cut wav, ogg or mp3 file, and half a
recording with the whole text is worse than no sample. Knows nothing of samples; flac decoders notice by themselves.
"""

import os
import re
import struct
from typing import IO

STREAMED_BYTES = 0x7FFFF000  # a header claiming this many bytes or more was written before the length was known
LOGGED_SIZE = re.compile(r"\b(?:data|SSND|Data Size|Riff size|riff)\s*: (\d+) \(should be (\d+)\)")

OGG_MAX_PAGE_BYTES = 27 + 255 + 255 * 255
OGG_HEADER = struct.Struct("<4sBBqIIIB")  # magic, version, flags, granule, serial, number, checksum, segments

XING_MIN_SHARE = 0.99  # of the bytes that an mp3's first frame promises; rewritten tags move the count a little
MPEG_LAYER_3 = 1
MPEG_1 = 3
MONO = 3


def cut_chunk(log: str) -> str | None:
    """Look through libsndfile's log of opening a wav, w64, aiff, au or caf file for samples that are not there."""
    found = LOGGED_SIZE.search(log)
    if found is None:
        return None
    promised, present = int(found[1]), int(found[2])
    if not present < promised < STREAMED_BYTES:
        return None
    return f"cut off: the header promises {promised} bytes, {present} are there"


def cut_stream(path: str) -> str | None:
    """Look at the last page of an ogg or opus file, or at the first frame of an mp3 file. Raises OSError."""
    with open(path, "rb") as file:
        start = file.read(10)
        size = os.fstat(file.fileno()).st_size
        if start.startswith(b"OggS"):
            return _cut_ogg(file, size)
        if start.startswith(b"ID3") and len(start) == 10:
            # The length is in four bytes of seven bits.
            file.seek(10 + sum(byte << shift for byte, shift in zip(start[6:], (21, 14, 7, 0), strict=True)))
            return _cut_mp3(file, size)
        if len(start) > 1 and start[0] == 0xFF and start[1] & 0xE0 == 0xE0:
            file.seek(0)
            return _cut_mp3(file, size)
    return None


def _cut_ogg(file: IO[bytes], size: int) -> str | None:
    tail_start = max(0, size - OGG_MAX_PAGE_BYTES)
    file.seek(tail_start)
    tail = file.read(OGG_MAX_PAGE_BYTES)
    at = tail.rfind(b"OggS\0")
    if at < 0:
        return None
    header = tail[at : at + OGG_HEADER.size]
    if len(header) == OGG_HEADER.size:
        segments = OGG_HEADER.unpack(header)[-1]
        lengths = tail[at + OGG_HEADER.size :][:segments]
        page_end = at + OGG_HEADER.size + segments + sum(lengths)
        if len(lengths) == segments and page_end <= len(tail):
            return None
    return "cut off: its last ogg page is not whole"


def _cut_mp3(file: IO[bytes], size: int) -> str | None:
    """Compare an mp3's length with the Xing or Info tag that encoders put into the first frame."""
    first_frame = file.tell()
    frame = file.read(64)
    if len(frame) < 64 or frame[0] != 0xFF or frame[1] >> 1 & 3 != MPEG_LAYER_3:
        return None
    is_mono = frame[3] >> 6 == MONO
    side_info = (17 if is_mono else 32) if frame[1] >> 3 & 3 == MPEG_1 else (9 if is_mono else 17)
    tag, flags = struct.unpack_from(">4sI", frame, 4 + side_info)
    if tag not in {b"Xing", b"Info"} or not flags & 2:
        return None
    (promised,) = struct.unpack_from(">I", frame, 4 + side_info + 8 + (4 if flags & 1 else 0))
    present = size - first_frame
    if present >= promised * XING_MIN_SHARE:
        return None
    return f"cut off: its first frame promises {promised} bytes, {present} are there"
