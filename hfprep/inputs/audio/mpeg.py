"""Counts the frames of an mp3 or ADTS AAC file by walking from header to header, without decoding.

Neither format stores its length: decoders estimate it from the bit rate or trust a tag. The walk finds the actual
number of frames and anything else in the file: foreign bytes, a last frame that is cut off, a second recording at
another rate.
Sources: ISO/IEC 11172-3 and 13818-3 (frame headers), 13818-7 (ADTS), and the published layouts of the Xing, LAME,
ID3v1, ID3v2, APEv2 and Lyrics3 tags.
"""

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import BinaryIO

from hfprep.inputs.audio.chunks import bytes_behind

CHUNK_BYTES = 1 << 20
MIN_FREE_BYTES, MAX_FREE_BYTES = 24, 1 << 13  # of a free-format frame, at up to 640 kbit/s
MAX_LEADING_ZEROS = 1 << 20
MAX_TRAILING_ZEROS = 4096  # bytes of padding; more means an unfinished download
MAX_TAG_BYTES = 1 << 28  # the range of four 7-bit digits
ID3V1_BYTES, APE_HEADER_BYTES, MP3_HEADER_BYTES, ADTS_HEADER_BYTES = 128, 32, 4, 7

# kbit/s by (MPEG-1?, layer); index 0 is "free format".
_BIT_RATES = {
    (True, 1): (32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (True, 2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (True, 3): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (False, 1): (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (False, 2): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (False, 3): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_SAMPLING_RATES = {3: (44100, 48000, 32000), 2: (22050, 24000, 16000), 0: (11025, 12000, 8000)}  # by version bits
_AAC_RATES = (96000, 88200, 64000, 48000, 44100, 32000, 24000, 22050, 16000, 12000, 11025, 8000, 7350)


@dataclass(frozen=True, slots=True)
class Frames:
    """What a walk found: the rate in Hz, and the number of frames and of their samples.

    `num_samples` excludes the samples that the encoder added according to the LAME tag (`trimmed`), and the frame that
    contains the tag. `problem` says why the file is not one complete recording, None if it is. `promised_frames` is the
    number in the tag, None without a tag. With `has_zeros` there is padding before the first frame, and decoders miss
    the tag. `is_free`: the frames are free-format, which FFmpeg does not read.
    """

    kind: str
    sampling_rate: int
    samples_per_frame: int
    num_frames: int
    trimmed: int
    promised_frames: int | None
    problem: str | None
    has_zeros: bool
    is_free: bool = False

    @property
    def num_samples(self) -> int:
        return max(0, self.num_frames * self.samples_per_frame - self.trimmed)


def _mp3_frame(first: int, second: int) -> tuple[int, int, int]:
    """Length in bytes, samples and Hz of a frame by its second and third header bytes; zeros if they are invalid.

    The length of a free-format frame is 0: its header does not contain it.
    """
    version, layer = first >> 3 & 3, 4 - (first >> 1 & 3)
    rate_index, bit_rate_index = second >> 2 & 3, second >> 4
    if first & 0xE0 != 0xE0 or version == 1 or layer == 4 or rate_index == 3 or bit_rate_index == 15:
        return 0, 0, 0
    rate = _SAMPLING_RATES[version][rate_index]
    samples = 384 if layer == 1 else 576 if layer == 3 and version != 3 else 1152
    if not bit_rate_index:
        return 0, samples, rate
    bits = _BIT_RATES[version == 3, layer][bit_rate_index - 1] * 1000
    padding = second >> 1 & 1
    if layer == 1:
        return (12 * bits // rate + padding) * 4, samples, rate
    return samples // 8 * bits // rate + padding, samples, rate


_MP3_LENGTHS = tuple(_mp3_frame(value >> 8, value & 0xFF)[0] for value in range(1 << 16))


def _mp3_length(data: bytes, at: int) -> int:
    return _MP3_LENGTHS[data[at + 1] << 8 | data[at + 2]] if data[at] == 0xFF else 0


def _is_free(header: bytes) -> bool:
    """Whether a header starts a free-format frame; all frames of such a file have the same length, plus padding."""
    is_whole = len(header) == MP3_HEADER_BYTES and header[0] == 0xFF
    return is_whole and not header[2] >> 4 and _mp3_frame(header[1], header[2])[1] > 0


def _padding(header: bytes) -> int:
    """Bytes of padding in a frame."""
    return (header[2] >> 1 & 1) * (4 if header[1] >> 1 & 3 == 3 else 1)


def _adts_length(data: bytes, at: int) -> int:
    if data[at] != 0xFF or data[at + 1] & 0xF6 != 0xF0:
        return 0
    length = (data[at + 3] & 3) << 11 | data[at + 4] << 3 | data[at + 5] >> 5
    return length if length >= ADTS_HEADER_BYTES and data[at + 2] >> 2 & 15 < len(_AAC_RATES) else 0


@dataclass(frozen=True, slots=True)
class _Kind:
    """How frames of one format are recognised: header size, frame length, and the bits that never change."""

    name: str
    header_bytes: int
    length: Callable[[bytes, int], int]
    fixed: tuple[int, int, int]  # masks of the second, third and fourth byte


def _free_format(window: "_Window", start: int) -> _Kind | None:
    """The kind of a free-format file, with its frame length, found from where the second and third frame begin."""
    header = window.bytes_at(start, MP3_HEADER_BYTES)
    if not _is_free(header):
        return None
    found = window.bytes_at(start, 2 * MAX_FREE_BYTES + MP3_HEADER_BYTES)

    def is_like_it(data: bytes, at: int) -> bool:
        other = data[at : at + MP3_HEADER_BYTES]
        return _is_free(other) and other[1] == header[1] and other[2] & 0xFC == header[2] & 0xFC

    def of_length(length: int) -> _Kind:
        def length_at(data: bytes, at: int) -> int:
            return length + _padding(data[at : at + MP3_HEADER_BYTES]) if is_like_it(data, at) else 0

        return _Kind("mp3", MP3_HEADER_BYTES, length_at, (0xFE, 0xFC, 0))

    second = MIN_FREE_BYTES
    while 0 < (second := found.find(header[:2], second)) <= MAX_FREE_BYTES:
        kind = of_length(second - _padding(header))
        third = second + kind.length(found, second)
        if third > second and (is_like_it(found, third) or third >= len(found)):
            return kind
        second += 1
    return None


# Of an mp3's fourth byte only "one channel" against "two" matters, which is not one bit: see `_is_mono`.
_MP3 = _Kind("mp3", MP3_HEADER_BYTES, _mp3_length, (0xFE, 0x0C, 0))
_ADTS = _Kind("aac", ADTS_HEADER_BYTES, _adts_length, (0xFE, 0xFD, 0xC0))


class _Window:
    """Random access to a file through a buffer."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file, self.size = file, size
        self.base, self.data = 0, b""

    def at(self, position: int, length: int) -> int:
        """Load up to `length` bytes from `position` into `data`; returns the index of the first."""
        if position < self.base or position + length > self.base + len(self.data):
            self._file.seek(position)
            self.base, self.data = position, self._file.read(max(length, CHUNK_BYTES))
        return position - self.base

    def bytes_at(self, position: int, length: int) -> bytes:
        at = self.at(position, length)
        return self.data[at : at + length]


def walk_frames(file: BinaryIO, size: int, check_seconds: Callable[[float], None]) -> Frames | None:
    """Walk an mp3 or ADTS file of `size` bytes; None if it does not start like one.

    `check_seconds` is called with the length so far from time to time, and may raise. Raises OSError.
    """
    window = _Window(file, size)
    start = _skip_zeros(window, _skip_tags(window, 0))
    for kind in (_MP3, _ADTS, _free_format(window, start)):
        if kind is not None and _begins_here(window, start, kind):
            return _walk(window, start, kind, check_seconds)
    return None


def _begins_here(window: _Window, start: int, kind: _Kind) -> bool:
    """Whether there is a frame at `start`, followed by another of its kind, a known tag or the end of the file."""
    header = window.bytes_at(start, kind.header_bytes)
    length = kind.length(header, 0) if len(header) == kind.header_bytes else 0
    following = window.bytes_at(start + length, kind.header_bytes) if length else b""
    if len(following) < kind.header_bytes:
        return length > 0
    return kind.length(following, 0) > 0 or _skip_tags(window, start + length) > start + length


def _walk(window: _Window, start: int, kind: _Kind, check_seconds: Callable[[float], None]) -> Frames:
    header = window.bytes_at(start, kind.header_bytes)
    samples, rate = _samples_and_rate(kind, header)
    promised, trimmed = _promise(window.bytes_at(start, 256)) if kind.name == "mp3" else (None, 0)
    is_tag = promised is not None
    position, frames, problem = start, -int(is_tag), None
    while problem is None:
        position, found = _run(window, position, kind, header)
        frames += found
        check_seconds(frames * samples / rate)
        if position >= window.size:
            break
        if promised is not None and frames >= promised and found == 0:
            problem = bytes_behind(window.size, position)
            break  # all frames of the tag are there; what follows is not part of this recording
        following = _skip_tags(window, position)
        if following == position and found == 0:
            problem = _problem_at(window, position, kind)
            if problem is None:
                break
        position = following
    if promised is not None and frames < promised and problem is None:
        problem = f"cut off: its first frame promises {promised} frames, but only {frames} are there"
    zeros = window.bytes_at(0, 1) == b"\0"
    return Frames(
        kind.name, rate, samples, frames, trimmed, promised, problem, zeros, is_free=kind not in (_MP3, _ADTS)
    )


def _run(window: _Window, position: int, kind: _Kind, header: bytes) -> tuple[int, int]:
    """Walk consecutive frames like the first one in the buffer; returns the end position and the number of frames."""
    length_of, header_bytes, size = kind.length, kind.header_bytes, window.size
    at = window.at(position, header_bytes)
    data, base = window.data, window.base
    first_mask, second_mask, third_mask = kind.fixed
    first, second, third = header[1] & first_mask, header[2] & second_mask, header[3] & third_mask
    mono = _is_mono(header) if kind.name == "mp3" else None
    last = len(data) - header_bytes
    frames = 0
    is_mp3 = kind is _MP3
    while at <= last:
        # Inlined for mp3, the most common format: the function call would take half of the time.
        if is_mp3:
            length = _MP3_LENGTHS[data[at + 1] << 8 | data[at + 2]] if data[at] == 0xFF else 0
        else:
            length = length_of(data, at)
        if (
            not length
            or data[at + 1] & first_mask != first
            or data[at + 2] & second_mask != second
            or data[at + 3] & third_mask != third
            or (mono is not None and (data[at + 3] >> 6 == 3) != mono)
            or base + at + length > size
        ):
            break
        at += length
        frames += 1
    return base + at, frames


def _is_mono(header: bytes) -> bool:
    return header[3] >> 6 == 3


def _samples_and_rate(kind: _Kind, header: bytes) -> tuple[int, int]:
    if kind.name == "mp3":
        _, samples, rate = _mp3_frame(header[1], header[2])
        return samples, rate
    return 1024 * ((header[6] & 3) + 1), _AAC_RATES[header[2] >> 2 & 15]


def _problem_at(window: _Window, position: int, kind: _Kind) -> str | None:
    """Why no frame like the first begins here; None if only padding follows."""
    found = window.bytes_at(position, kind.header_bytes)
    if len(found) < kind.header_bytes:
        return None
    length = kind.length(found, 0)
    if length and position + length > window.size:
        return f"cut off: its last frame should have {length} bytes, but only {window.size - position} are there"
    if length and _begins_here(window, position, kind):
        return f"its sampling rate or channels change at byte {position}; convert it to flac"
    if window.size - position <= MAX_TRAILING_ZEROS and not window.bytes_at(position, MAX_TRAILING_ZEROS).strip(b"\0"):
        return None
    return f"damaged: there is no {kind.name} frame at byte {position}"


def _promise(frame: bytes) -> tuple[int | None, int]:
    """Number of frames and of added samples from the tag in an mp3's first frame; (None, 0) without a tag."""
    if len(frame) < 64 or 4 - (frame[1] >> 1 & 3) != 3:
        return None, 0
    is_mpeg1 = frame[1] >> 3 & 3 == 3
    side_info = (17 if _is_mono(frame) else 32) if is_mpeg1 else (9 if _is_mono(frame) else 17)
    if frame[36:40] == b"VBRI" and len(frame) >= 54:
        return struct.unpack_from(">I", frame, 50)[0], 0
    at = 4 + side_info
    name, flags = struct.unpack_from(">4sI", frame, at)
    if name not in {b"Xing", b"Info"}:
        return None, 0
    frames = struct.unpack_from(">I", frame, at + 8)[0] if flags & 1 else 0
    lame = at + 8 + 4 * (flags & 1) + 4 * (flags >> 1 & 1) + 100 * (flags >> 2 & 1) + 4 * (flags >> 3 & 1)
    delays = frame[lame + 21 : lame + 24]
    added = 0
    if frame[lame : lame + 4] in {b"LAME", b"Lavf", b"Lavc"} and len(delays) == 3:
        packed = int.from_bytes(delays, "big")
        added = (packed >> 12) + (packed & 0xFFF)
    return frames, added


def _skip_tags(window: _Window, position: int) -> int:
    """The position after the ID3, APE and Lyrics3 tags that begin at `position`."""
    while position < window.size:
        start = window.bytes_at(position, 32)
        if start.startswith(b"ID3") and len(start) >= 10 and not any(byte & 0x80 for byte in start[6:10]):
            # The length is in four bytes of seven bits; a tag with a footer is ten bytes longer.
            digits = zip(start[6:10], (21, 14, 7, 0), strict=True)
            length = 10 + sum(byte << shift for byte, shift in digits) + (10 if start[5] & 0x10 else 0)
        elif start.startswith(b"TAG+"):
            length = 227
        elif start.startswith(b"TAG"):
            length = ID3V1_BYTES
        elif start.startswith(b"APETAGEX") and len(start) == APE_HEADER_BYTES:
            length = APE_HEADER_BYTES + min(struct.unpack_from("<I", start, 12)[0], MAX_TAG_BYTES)
        elif start.startswith(b"LYRICSBEGIN"):
            text = window.bytes_at(position, CHUNK_BYTES)
            end = max(text.find(b"LYRICS200"), text.find(b"LYRICSEND"))
            if end < 0:
                break
            length = end + 9
        else:
            break
        position += length
    return position


def _skip_zeros(window: _Window, position: int) -> int:
    if window.bytes_at(position, 1) != b"\0":
        return position
    found = window.bytes_at(position, MAX_LEADING_ZEROS)
    return position + len(found) - len(found.lstrip(b"\0"))
