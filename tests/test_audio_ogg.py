"""Ogg pages that are made by hand: their checksums, numbers and ends."""

import io
import struct
from collections.abc import Sequence

import pytest

from hfprep.inputs.audio import ogg
from hfprep.inputs.audio.ogg import Pages, read_pages
from tests.av_files import ogg_checksum

HEAD = b"OpusHead" + bytes(11)


def page(number: int, flags: int = 0, body: bytes = b"sound" * 9, serial: int = 7) -> bytes:
    blank = struct.pack("<4sBBqIIIB", b"OggS", 0, flags, 100 * number, serial, number, 0, 1) + bytes([len(body)]) + body
    return blank[:22] + struct.pack("<I", ogg_checksum(blank)) + blank[26:]


def stream(count: int, serial: int = 7) -> list[bytes]:
    return [
        page(0, ogg.FIRST, HEAD, serial),
        *(page(number, 0, serial=serial) for number in range(1, count)),
        page(count, ogg.LAST, serial=serial),
    ]


def look(pages: Sequence[bytes]) -> Pages:
    return read_pages(io.BytesIO(b"".join(pages)))


def test_whole_files() -> None:
    assert (look(stream(5)).problem, look(stream(5)).num_links) == (None, 1)
    both = look([*stream(5), *stream(3, serial=8)])
    assert (both.problem, both.num_links, both.num_audio_streams) == (None, 2, 2)
    mixed = [
        page(0, ogg.FIRST, HEAD, 1),
        page(0, ogg.FIRST, b"\x80theora", 2),
        page(1, 0, serial=2),
        page(1, 4, serial=1),
    ]
    found = look(mixed)
    assert (found.problem, found.num_links, found.num_audio_streams) == (None, 1, 1)


def test_damage_and_cuts() -> None:
    pages = stream(5)
    assert look(pages[:-1]).problem == "cut off: the last audio page is missing"
    assert "is missing at byte" in str(look([*pages[:2], *pages[3:]]).problem)
    assert "is incomplete" in str(look([*pages[:-1], pages[-1][:-1]]).problem)
    assert "is incomplete" in str(look([*pages[:-1], pages[-1][:20]]).problem)
    assert "there is no Ogg page" in str(look([*pages[:2], b"foreign", *pages[2:]]).problem)
    flipped = bytearray(pages[2])
    flipped[40] ^= 1
    assert "has the wrong checksum" in str(look([*pages[:2], bytes(flipped), *pages[3:]]).problem)
    assert look([*pages, bytes(1_000)]).problem is None


def test_long_files_are_looked_at_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ogg, "CHUNK_BYTES", 100)
    pages = stream(300)
    assert look(pages).problem is None
    assert look(pages[:-1]).problem is not None
