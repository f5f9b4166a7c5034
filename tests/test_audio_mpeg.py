"""Frames of mp3 and ADTS files that are made by hand: their count, their tags, and what is no frame."""

import io
import struct
from pathlib import Path

import numpy as np
import pytest

from hfprep.errors import Reason, RejectedSample
from hfprep.inputs.audio import mpeg
from hfprep.inputs.audio.decode import load_waveform
from hfprep.inputs.audio.mpeg import Frames, walk_frames
from tests.av_files import encode, tone

MONO_128 = bytes([0xFF, 0xFB, 0x90, 0xC0])  # MPEG 1 layer III, 128 kbit/s, 44.1 kHz, one channel: 417 bytes
STEREO_128 = bytes([0xFF, 0xFB, 0x90, 0x00])
PADDED_128 = bytes([0xFF, 0xFB, 0x92, 0xC0])  # a byte longer
LOW_RATE = bytes([0xFF, 0xF3, 0x40, 0xC0])  # MPEG 2 layer III, 32 kbit/s, 22.05 kHz: 104 bytes, 576 samples
ID3V1 = b"TAG" + b"\1" * 125


def frame(header: bytes, size: int, content: bytes = b"") -> bytes:
    return (header + content).ljust(size, b"\x55")


ONE = frame(MONO_128, 417)


def walk(content: bytes) -> Frames | None:
    return walk_frames(io.BytesIO(content), len(content), lambda seconds: None)


def whole(content: bytes) -> Frames:
    found = walk(content)
    assert found is not None
    assert found.problem is None, found.problem
    return found


def problem(content: bytes) -> str:
    found = walk(content)
    assert found is not None
    assert found.problem is not None
    return found.problem


@pytest.mark.parametrize(
    ("header", "size", "samples", "rate"),
    [
        (MONO_128, 417, 1152, 44_100),
        (PADDED_128, 418, 1152, 44_100),
        (LOW_RATE, 104, 576, 22_050),
        (bytes([0xFF, 0xFD, 0xA4, 0xC0]), 576, 1152, 48_000),  # layer II, 192 kbit/s
        (bytes([0xFF, 0xFF, 0xA8, 0xC0]), 480, 384, 32_000),  # layer I, 320 kbit/s
        (bytes([0xFF, 0xE3, 0x88, 0xC0]), 576, 576, 8_000),  # MPEG 2.5 layer III, 64 kbit/s
    ],
)
def test_frames_of_every_version_and_layer(header: bytes, size: int, samples: int, rate: int) -> None:
    found = whole(frame(header, size) * 10)
    assert (found.num_frames, found.samples_per_frame, found.sampling_rate) == (10, samples, rate)
    assert found.num_samples == 10 * samples


def test_adts_frames() -> None:
    header = bytes([0xFF, 0xF1, 0x60, 0x40 | 200 >> 11, 200 >> 3 & 0xFF, (200 & 7) << 5, 0])  # 16 kHz, 200 bytes
    found = whole(b"ID3\3\0\0\0\0\0\x05hello" + frame(header, 200) * 7 + ID3V1)
    assert (found.kind, found.num_samples, found.sampling_rate) == ("aac", 7 * 1024, 16_000)


def test_bit_rates_may_vary() -> None:
    other = frame(bytes([0xFF, 0xFB, 0x50, 0xC0]), 208)  # 64 kbit/s
    assert whole((ONE + other) * 5).num_frames == 10


def tag(frames: int, *, name: bytes = b"Xing", added: tuple[int, int] | None = None) -> bytes:
    content = bytes(17) + name + struct.pack(">II", 1, frames)
    if added is not None:
        content += b"LAME3.100" + bytes(12) + (added[0] << 12 | added[1]).to_bytes(3, "big")
    return frame(MONO_128, 417, content)


def test_the_tag_is_no_sound_and_tells_what_was_added() -> None:
    assert whole(tag(6) + ONE * 6).num_samples == 6 * 1152
    assert whole(tag(6, name=b"Info", added=(576, 1000)) + ONE * 6).num_samples == 6 * 1152 - 1576
    assert problem(tag(7) + ONE * 6) == "cut off: its first frame promises 7 frames, but only 6 are there"
    assert whole(tag(3) + ONE * 6).num_frames == 6  # joined, or edited: all are counted
    vbri = frame(MONO_128, 417, bytes(32) + b"VBRI" + bytes(10) + struct.pack(">I", 6))
    assert whole(vbri + ONE * 6).num_samples == 6 * 1152


def test_tags_before_between_and_behind() -> None:
    id3 = b"ID3\4\0\0\0\0\1\0" + b"\xff" * 128
    footer = b"ID3\4\0\x10\0\0\0\5" + b"12345" + b"3DI\4\0\x10\0\0\0\5"
    ape = b"APETAGEX" + struct.pack("<IIII", 2000, 20, 1, 0) + bytes(8) + bytes(20)
    lyrics = b"LYRICSBEGINwords000100LYRICS200"
    assert whole(id3 + footer + ONE * 4 + ape + lyrics + ID3V1).num_frames == 4
    assert whole(id3 + bytes(50) + ONE * 4 + ID3V1 + id3 + ONE * 3).num_frames == 7
    assert whole(bytes(1_000) + ONE * 4).has_zeros
    assert whole(ONE * 4 + bytes(1_000)).num_frames == 4


def test_what_is_no_frame() -> None:
    assert "there is no mp3 frame at byte 834" in problem(ONE * 2 + b"foreign" + ONE * 2)
    assert "there is no mp3 frame at byte 834" in problem(ONE * 2 + bytes(2_000) + ONE * 2)
    assert "there is no mp3 frame at byte 834" in problem(ONE * 2 + bytes(100_000))  # an unfinished download
    assert problem(ONE * 2 + ONE[:-1]) == "cut off: its last frame should have 417 bytes, but only 416 are there"
    assert "change at byte 834" in problem(ONE * 2 + frame(LOW_RATE, 104) * 3)
    assert "change at byte 834" in problem(ONE * 2 + frame(STEREO_128, 417) * 3)
    assert whole(tag(4) + ONE * 4 + b"whatever follows the last of the promised frames" * 9).num_frames == 4
    for content in (
        b"",
        b"\xff",
        b"\xff\xfb\x90",
        b"RIFF" * 9,
        b"ID3\4\0\0\0\0\0\0",
        bytes(2_000),
    ):
        assert walk(content) is None


def test_long_files_are_walked_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mpeg, "CHUNK_BYTES", 500)
    assert whole(tag(50) + ONE * 50 + ID3V1).num_frames == 50


def test_the_walk_ends_where_the_length_is_refused() -> None:
    def check(seconds: float) -> None:
        if seconds > 60:
            raise RejectedSample(Reason.AUDIO_TOO_LONG, f"{seconds:.0f} s")

    content = io.BytesIO(ONE * 20_000)
    with pytest.raises(RejectedSample, match="66 s"):  # 2515 frames are in the first MiB, as many in the second
        walk_frames(content, 417 * 20_000, check)
    assert content.tell() < 417 * 10_000


FREE = bytes([0xFF, 0xFB, 0x00, 0xC0])  # MPEG 1 layer III, free format, 44.1 kHz, one channel
FREE_PADDED = bytes([0xFF, 0xFB, 0x02, 0xC0])
FREE_LAYER_1 = bytes([0xFF, 0xFF, 0x08, 0xC0])
FREE_LAYER_1_PADDED = bytes([0xFF, 0xFF, 0x0A, 0xC0])


@pytest.mark.parametrize("size", [24, 417, 5000])
def test_frames_of_free_format_have_the_length_of_the_first(size: int) -> None:
    found = whole((frame(FREE, size) + frame(FREE_PADDED, size + 1)) * 20 + ID3V1)
    assert (found.kind, found.is_free, found.num_frames, found.num_samples) == ("mp3", True, 40, 40 * 1152)
    padded_first = frame(FREE_PADDED, size + 1) + frame(FREE, size) * 10
    assert whole(padded_first).num_frames == 11
    assert not whole(ONE * 10).is_free


def test_padding_of_layer_1_has_four_bytes() -> None:
    found = whole((frame(FREE_LAYER_1, 400) + frame(FREE_LAYER_1_PADDED, 404)) * 10)
    assert (found.num_frames, found.num_samples, found.sampling_rate) == (20, 20 * 384, 32_000)


def test_free_format_that_is_not_whole_is_refused() -> None:
    frames = frame(FREE, 300) * 20
    assert "its last frame should have 300 bytes, but only 200 are there" in problem(frames[:-100])
    assert "there is no mp3 frame" in problem(frames[:3000] + b"foreign" * 50 + frames[3000:])
    assert "there is no mp3 frame" in problem(frames + frame(FREE, 301) * 20)
    assert "there is no mp3 frame" in problem(frames + ONE * 20)
    assert walk(frame(FREE, 300)) is None
    assert walk(FREE + bytes(50_000)) is None
    assert walk(FREE * 3) is None


@pytest.mark.parametrize(
    ("rate", "channels", "bit_rate"), [(44_100, 1, 64_000), (16_000, 1, 32_000), (44_100, 2, 128_000)]
)
def test_free_format_is_decoded_to_the_same_numbers(tmp_path: Path, rate: int, channels: int, bit_rate: int) -> None:
    plain = encode(
        tmp_path / "plain.mp3",
        "mp3",
        "libmp3lame",
        tone(3.0, rate, channels=channels),
        rate,
        bit_rate=bit_rate,
        options={"write_xing": "0", "id3v2_version": "0"},
    )
    content, at = bytearray(plain.read_bytes()), 0
    while at < len(content):
        length = mpeg._mp3_frame(content[at + 1], content[at + 2])[0]
        content[at + 2] &= 0x0F
        at += length
    free = tmp_path / "free.mp3"
    free.write_bytes(content)
    expected = load_waveform(plain)
    found = load_waveform(free)
    assert found.seconds == expected.seconds
    np.testing.assert_array_equal(found.samples, expected.samples)
    for damaged in (content[:-50], content[:5000] + b"x" * 300 + content[5000:], content[:5000] + content[5100:]):
        free.write_bytes(damaged)
        with pytest.raises(RejectedSample):
            load_waveform(free)
