"""Checks the pages of an Ogg file: decoders silently skip a damaged page and stop at a missing one.

Every page must follow the previous one, be numbered in order and have the right checksum, and each audio stream must
end with a page marked as the last. Source: RFC 3533 (pages), RFC 7845 (Opus), the Vorbis, Speex and Ogg FLAC mappings.
"""

import os
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import BinaryIO

from hfprep.inputs.audio.chunks import bytes_behind

CHUNK_BYTES = 1 << 20
PAGE_HEADER = struct.Struct("<4sBBqIIIB")  # magic, version, flags, granule, serial, number, checksum, segments
MAX_PAGE_BYTES = PAGE_HEADER.size + 255 + 255 * 255
FIRST, LAST = 2, 4  # bits of the flags
NO_GRANULE = -1  # of a page on which no packet ends
TRIMMED_SAMPLES = 1 << 13  # that an encoder may trim at the end: one block
SERIAL, CHECKSUM = slice(14, 18), slice(22, 26)  # in a page

AUDIO_STARTS = (b"\x01vorbis", b"OpusHead", b"Speex   ", b"\x7fFLAC", b"fLaC")

# Ogg's checksum is zlib's CRC-32 with the bit order of all data reversed.
_REVERSED = bytes(int(f"{value:08b}"[::-1], 2) for value in range(256))


@dataclass
class Pages:
    """What checking all pages found. `num_links`: chained recordings; `problem`: what is damaged or missing."""

    num_links: int = 0
    num_audio_streams: int = 0
    problem: str | None = None
    unfinished: dict[int, int] = field(default_factory=dict)  # the next page number of each open audio stream
    _ends: dict[int, int] = field(default_factory=dict)  # the last sample of each so far

    def add(self, place: int, page: bytes) -> None:
        """Check one complete page with the right checksum."""
        _, _, flags, granule, serial, number, _, segments = PAGE_HEADER.unpack_from(page)
        if flags & FIRST:
            if not page.startswith(AUDIO_STARTS, PAGE_HEADER.size + segments):
                return
            if not self.unfinished:
                self.num_links += 1
            self.num_audio_streams += 1
            self.unfinished[serial], self._ends[serial] = number, 0
        expected = self.unfinished.get(serial)
        if expected is None:
            return
        if number != expected:
            self.problem = f"damaged: audio page {expected} is missing at byte {place}"
        self.unfinished[serial] = number + 1 & 0xFFFFFFFF
        self._check_granule(place, granule, serial, flags & LAST > 0, segments)
        if flags & LAST:
            del self.unfinished[serial]

    def _check_granule(self, place: int, granule: int, serial: int, is_last: bool, segments: int) -> None:
        """Compare a page's end time with that of the page before: decoders stop there."""
        if granule == NO_GRANULE:
            if is_last and segments:
                self.problem = f"damaged: the last audio page, at byte {place}, has no end time"
            return
        if granule < self._ends[serial] - (TRIMMED_SAMPLES if is_last else 0):
            self.problem = f"damaged: the page at byte {place} ends earlier than the page before it"
        self._ends[serial] = max(granule, self._ends[serial])


def read_pages(file: BinaryIO) -> Pages:
    """Check every page from the start of a file, up to the first problem. Raises OSError."""
    pages = Pages()
    file.seek(0)
    for place, page in _pages_of(file, pages):
        pages.add(place, page)
        if pages.problem is not None:
            return pages
    if pages.problem is None and pages.unfinished:
        pages.problem = "cut off: the last audio page is missing"
    return pages


def _pages_of(file: BinaryIO, pages: Pages) -> Iterator[tuple[int, bytes]]:
    """Positions and bytes of the pages; stops at a damaged or incomplete page and sets `pages.problem`."""
    data, at, base = file.read(CHUNK_BYTES), 0, 0
    while True:
        if len(data) - at < MAX_PAGE_BYTES and (more := file.read(CHUNK_BYTES)):
            data, base, at = data[at:] + more, base + at, 0
        place = base + at
        if not data.startswith(b"OggS\0", at):
            if b"OggS" in data[at:]:
                pages.problem = f"damaged: there is no Ogg page at byte {place}"
            else:
                pages.problem = pages.problem or bytes_behind(file.seek(0, os.SEEK_END), place)
            return
        length = page_length(data, at)
        if length is None or at + length > len(data):
            pages.problem = "cut off: its last Ogg page is incomplete"
            return
        page = data[at : at + length]
        if page_checksum(page) != struct.unpack_from("<I", page, CHECKSUM.start)[0]:
            pages.problem = f"damaged: the Ogg page at byte {place} has the wrong checksum"
            return
        yield place, page
        at += length


def page_length(data: bytes, at: int) -> int | None:
    """Bytes of the page at `at`; None if its header is incomplete."""
    body = at + PAGE_HEADER.size
    if body > len(data):
        return None
    segments = data[body - 1]
    if body + segments > len(data):
        return None
    return PAGE_HEADER.size + segments + sum(data[body : body + segments])


def page_checksum(page: bytes) -> int:
    """CRC-32 of a page with its checksum field set to zero."""
    blanked = page[: CHECKSUM.start] + b"\0\0\0\0" + page[CHECKSUM.stop :]
    crc = zlib.crc32(blanked.translate(_REVERSED), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return int(f"{crc:032b}"[::-1], 2)
