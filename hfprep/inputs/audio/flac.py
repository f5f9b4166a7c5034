"""Checks that a flac file ends where its header says: decoders stop at the header's sample count, whatever follows.

The last frame of the file must end at that count. Frames are searched backwards from the end, by their sync code and
header checksum, without decoding. Source: RFC 9639.
"""

import re
import struct
from typing import BinaryIO

from hfprep.inputs.audio.chunks import MAX_BYTES_BEHIND, second_start

STREAM_INFO_BYTES = 34
MAGIC = b"fLaC"
START = re.compile(rb"fLaC[\0\x80]\0\0\x22")  # with the header of the first block, whose length is 34 bytes
START_BYTES = 8
FRAME_SYNC = re.compile(rb"\xff[\xf8\xf9]")  # fixed block size (numbered by frame) and variable block size (by sample)
MAX_HEADER_BYTES = 16
SCANNED_BYTES = 1 << 16
_BLOCK_SIZES = (0, 192, *(576 << power for power in range(4)), 0, 0, *(256 << power for power in range(8)))
_RATE_BYTES = {12: 1, 13: 2, 14: 2}  # bytes of a sampling rate after the frame number, by its code
_UNKNOWN_RATE, _RESERVED_CHANNELS, _RESERVED_SAMPLE_SIZE = 15, 11, 3


def _crc8_table() -> bytes:
    table = []
    for value in range(256):
        for _ in range(8):
            value = (value << 1 ^ 0x07 if value & 0x80 else value << 1) & 0xFF
        table.append(value)
    return bytes(table)


_CRC8 = _crc8_table()


def flac_problem(file: BinaryIO, size: int) -> str | None:
    """Why a flac file does not end where its header says, or is followed by another file; else None."""
    file.seek(0)
    start = file.read(START_BYTES + STREAM_INFO_BYTES)
    if len(start) < START_BYTES + STREAM_INFO_BYTES or not START.match(start):
        return None  # the decoder reports what is wrong
    min_block, max_block = struct.unpack_from(">HH", start, 8)
    fields = int.from_bytes(start[18:26], "big")
    channels, bits, total = (fields >> 41 & 7) + 1, (fields >> 36 & 31) + 1, fields & (1 << 36) - 1
    file.seek(len(MAGIC))
    joined = second_start(file, START, START_BYTES)
    if joined is not None or not total:
        return joined
    place, end = _last_frame(file, size, min_block if min_block == max_block else 0, total)
    if end < total:
        return f"cut off: its header promises {total} samples, but its last frame ends at sample {end}"
    if end > total:
        return f"damaged: its header says {total} samples, but its last frame ends at sample {end}"
    largest = MAX_HEADER_BYTES + channels * (max_block * (bits + 1) // 8 + MAX_HEADER_BYTES)
    behind = size - place - largest
    if behind > MAX_BYTES_BEHIND:
        return f"at least {behind} bytes after its audio would not be read; is it several files joined together?"
    return None


def _last_frame(file: BinaryIO, size: int, block_size: int, total: int) -> tuple[int, int]:
    """Byte position of the last frame and the sample it ends at, preferring a frame that ends at `total`.

    Audio data can look like a frame header, but hardly like one that ends at `total`.
    """
    found = (0, 0)
    end = size
    while end > 0:
        begin = max(0, end - SCANNED_BYTES)
        file.seek(begin)
        data = file.read(min(size, end + MAX_HEADER_BYTES) - begin)
        for at in reversed([sync.start() for sync in FRAME_SYNC.finditer(data)]):
            sample = _end_of_frame(data[at : at + MAX_HEADER_BYTES], block_size)
            if sample == total:
                return begin + at, sample
            if sample is not None and found == (0, 0):
                found = begin + at, sample
        if found != (0, 0):
            break
        end = begin
    return found


def _end_of_frame(header: bytes, block_size: int) -> int | None:
    """The sample that a frame with this header ends at; None if it is not a frame header."""
    if len(header) < 6 or header[3] & 1:
        return None
    size_code, rate_code = header[2] >> 4, header[2] & 15
    if not size_code or rate_code == _UNKNOWN_RATE:
        return None
    if header[3] >> 4 >= _RESERVED_CHANNELS or header[3] >> 1 & 7 == _RESERVED_SAMPLE_SIZE:
        return None
    number, at = _coded_number(header)
    if number is None:
        return None
    size_bytes = {6: 1, 7: 2}.get(size_code, 0)
    samples = int.from_bytes(header[at : at + size_bytes], "big") + 1 if size_bytes else _BLOCK_SIZES[size_code]
    at += size_bytes + _RATE_BYTES.get(rate_code, 0)
    if at >= len(header) or _crc8(header[:at]) != header[at]:
        return None
    first = number if header[1] & 1 else number * (block_size or samples)
    return first + samples


def _coded_number(header: bytes) -> tuple[int | None, int]:
    """The number of a frame or sample (up to 36 bits, coded as in UTF-8), and the position after it."""
    first = header[4]
    if first < 0x80:
        return first, 5
    more = 7 - (first ^ 0xFF).bit_length()  # bytes that follow
    rest = header[5 : 5 + more]
    if not 1 <= more <= 6 or len(rest) < more or any(byte & 0xC0 != 0x80 for byte in rest):
        return None, 0
    number = first & (0x3F >> more)
    for byte in rest:
        number = number << 6 | byte & 0x3F
    return number, 5 + more


def _crc8(data: bytes) -> int:
    value = 0
    for byte in data:
        value = _CRC8[value ^ byte]
    return value
