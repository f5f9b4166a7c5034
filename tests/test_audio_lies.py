"""Headers that say less or more than there is, and sound of another kind behind a recording: whole or refused."""

import io
import re
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from hfprep.errors import Reason, RejectedSample
from hfprep.inputs.audio import flac
from hfprep.inputs.audio.decode import load_waveform
from hfprep.inputs.audio.ogg import PAGE_HEADER, read_pages
from tests.av_files import KINDS, encode, encode_kind, ogg_checksum, tone

RATE = 16_000
SOUND = tone(2.0, RATE)[0]
PCM = (SOUND * 32767).astype("<i2").tobytes()


def saved(container: str, subtype: str = "PCM_16", rate: int = RATE) -> bytes:
    target = io.BytesIO()
    soundfile.write(target, tone(2.0, rate)[0], rate, format=container, subtype=subtype)
    return target.getvalue()


WAV, FLAC, VORBIS, OPUS = saved("WAV"), saved("FLAC"), saved("OGG", "VORBIS"), saved("OGG", "OPUS", 48_000)


def seconds_of(folder: Path, name: str, content: bytes) -> float:
    path = folder / name
    path.write_bytes(content)
    return load_waveform(path).seconds


def refusal_of(folder: Path, name: str, content: bytes) -> str:
    with pytest.raises(RejectedSample) as caught:
        seconds_of(folder, name, content)
    return caught.value.message


# Flac


def with_total(total: int, content: bytes = FLAC) -> bytes:
    changed = bytearray(content)
    changed[21] = changed[21] & 0xF0 | total >> 32
    changed[22:26] = (total & 0xFFFFFFFF).to_bytes(4, "big")
    return bytes(changed)


@pytest.mark.parametrize("total", [1, 4096, 16_000, 31_999, 32_001, 64_000, (1 << 36) - 1])
def test_a_flac_header_that_lies_about_the_length_is_refused(tmp_path: Path, total: int) -> None:
    refusal_of(tmp_path, "x.flac", with_total(total))


@pytest.mark.parametrize("level", ["0", "5", "12"])
def test_flac_of_every_kind_ends_where_its_header_says(tmp_path: Path, level: str) -> None:
    assert seconds_of(tmp_path, "x.flac", FLAC) == 2.0
    assert seconds_of(tmp_path, "x.flac", with_total(0)) == 2.0
    assert seconds_of(tmp_path, "x.flac", FLAC + b"TAG" + bytes(125)) == 2.0
    for rate, channels, length in ((44_100, 2, 1.2345), (8_000, 1, 0.02), (96_000, 1, 3.0)):
        samples = tone(length, rate, channels=channels)
        path = encode(tmp_path / "y.flac", "flac", "flac", samples, rate, codec_options={"compression_level": level})
        assert load_waveform(path).seconds == pytest.approx(length, abs=1 / rate)


def test_the_number_of_a_flac_frame_may_have_36_bits() -> None:
    for number, coded in ((0x7F, b"\x7f"), (0x80, b"\xc2\x80"), (0x7FFFFFFF, b"\xfd\xbf\xbf\xbf\xbf\xbf")):
        assert flac._coded_number(b"\xff\xf8\xc9\x08" + coded) == (number, 4 + len(coded))
    assert flac._coded_number(b"\xff\xf9\xc9\x08\xfe" + b"\xbf" * 6) == ((1 << 36) - 1, 11)
    assert flac._coded_number(b"\xff\xf8\xc9\x08\xc2\x10")[0] is None
    assert flac._coded_number(b"\xff\xf8\xc9\x08\xff" + b"\xbf" * 9)[0] is None


# Sound behind a recording


@pytest.mark.parametrize("behind", [WAV, FLAC, VORBIS, OPUS, saved("AIFF"), saved("AU")])
@pytest.mark.parametrize("first", ["WAV", "FLAC", "AIFF", "AU", "CAF", "W64", "RF64", "NIST", "VORBIS", "OPUS"])
def test_sound_of_another_kind_behind_a_recording_is_not_lost(tmp_path: Path, first: str, behind: bytes) -> None:
    content = {"VORBIS": VORBIS, "OPUS": OPUS}.get(first) or saved(first)
    assert seconds_of(tmp_path, "x", content) == pytest.approx(2.0, abs=1e-6)
    if content[:4] == behind[:4] == b"OggS" and content[28:40] == behind[28:40]:
        assert seconds_of(tmp_path, "x", content + behind) == pytest.approx(4.0, abs=0.02)  # they are chained
    else:
        refusal_of(tmp_path, "x", content + behind)


@pytest.mark.parametrize("container", ["WAV", "AIFF", "AU", "CAF", "W64", "RF64"])
def test_a_header_that_says_half_is_refused(tmp_path: Path, container: str) -> None:
    """The chunk of the sound says that it is half as long as it is."""
    content = saved(container)
    header, changed = content[: content.find(b"data") + 20 if container == "CAF" else 100], 0
    for form in ("<I", ">I", "<Q", ">Q"):
        for length in range(64_000, 64_000 + 40):
            at = header.find(struct.pack(form, length))
            if at > 0 and at % 2 == 0 and (at > 16 or container == "AU"):
                half = struct.pack(form, length - 32_000)
                changed += 1
                refusal_of(tmp_path, "x", content[:at] + half + content[at + len(half) :])
    assert changed


def chunk(name: bytes, content: bytes) -> bytes:
    return name + struct.pack("<I", len(content)) + content


def riff(*chunks: bytes) -> bytes:
    body = b"WAVE" + chunk(b"fmt ", struct.pack("<HHIIHH", 1, 1, RATE, 2 * RATE, 2, 16)) + b"".join(chunks)
    return chunk(b"RIFF", body)


def test_a_wav_file_with_two_chunks_of_sound_is_refused(tmp_path: Path) -> None:
    halves = chunk(b"data", PCM[:32_000]), chunk(b"data", PCM[32_000:])
    assert "a second data chunk" in refusal_of(tmp_path, "x.wav", riff(*halves))
    notes = chunk(b"LIST", b"INFO" + bytes(100))
    assert "a second data chunk" in refusal_of(tmp_path, "x.wav", riff(halves[0], notes, halves[1]))
    assert "a second data chunk" in refusal_of(tmp_path, "x.wav", riff(halves[0], chunk(b"data", PCM[:100])))
    assert seconds_of(tmp_path, "x.wav", riff(chunk(b"data", PCM), notes)) == 2.0
    assert seconds_of(tmp_path, "x.wav", riff(chunk(b"data", PCM)) + bytes(100)) == 2.0


# Ogg


def repaged(content: bytes, change: Callable[[int, bytearray], None]) -> bytes:
    """The pages of an Ogg file after `change(number, page)`, a negative number from the end, with right checksums."""
    starts = [found.start() for found in re.finditer(b"OggS", content)]
    pages = [bytearray(content[a:b]) for a, b in zip(starts, [*starts[1:], len(content)], strict=True)]
    for number, page in enumerate(pages):
        change(number - len(pages), page)
        page[22:26] = bytes(4)
        page[22:26] = struct.pack("<I", ogg_checksum(bytes(page)))
    return b"".join(pages)


def with_last_granule(content: bytes, granule: int) -> bytes:
    def change(number: int, page: bytearray) -> None:
        if number == -1:
            struct.pack_into("<q", page, 6, granule)

    return repaged(content, change)


@pytest.mark.parametrize("content", [VORBIS, OPUS], ids=["vorbis", "opus"])
def test_an_ogg_file_ends_where_its_pages_say(tmp_path: Path, content: bytes) -> None:
    last = PAGE_HEADER.unpack_from(content, content.rindex(b"OggS"))[3]
    assert seconds_of(tmp_path, "x.ogg", with_last_granule(content, last)) == pytest.approx(2.0, abs=1e-6)
    assert "ends earlier than the page before it" in refusal_of(tmp_path, "x.ogg", with_last_granule(content, 4000))
    assert "has no end time" in refusal_of(tmp_path, "x.ogg", with_last_granule(content, -1))
    refusal_of(tmp_path, "x.ogg", with_last_granule(content, 10**9))
    assert "bytes after its audio" in refusal_of(tmp_path, "x.ogg", content + bytes(5000))
    assert seconds_of(tmp_path, "x.ogg", content + b"TAG" + bytes(125)) == pytest.approx(2.0, abs=1e-6)
    assert read_pages(io.BytesIO(content + b"TAG" + bytes(125))).problem is None


# Kinds whose end cannot be told


@pytest.mark.parametrize("container", ["VOC", "IRCAM", "PAF", "SVX", "AVR", "PVF", "MAT4", "MAT5", "MPC2K", "XI"])
def test_a_file_of_which_nobody_can_tell_whether_it_is_whole_is_refused(tmp_path: Path, container: str) -> None:
    content = saved(container, soundfile.default_subtype(container))
    for name in ("x.wav", f"x.{container.lower()}"):
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(RejectedSample, match=r"convert it to flac or wav|is it audio") as caught:
            load_waveform(path)
        assert caught.value.reason in (Reason.AUDIO_UNSUPPORTED, Reason.AUDIO_UNREADABLE)


def test_nist_files_are_held_against_their_headers(tmp_path: Path) -> None:
    content = saved("NIST")
    np.testing.assert_allclose(load_waveform_of(tmp_path, content), SOUND, atol=1e-4)
    assert "cut off: the audio at byte 1024" in refusal_of(tmp_path, "x.sph", content[:-10])
    assert "bytes after its audio" in refusal_of(tmp_path, "x.sph", content.replace(b"32000", b"16000"))
    refusal_of(tmp_path, "x.sph", content.replace(b"sample_count", b"sample_mount"))


def load_waveform_of(folder: Path, content: bytes) -> np.ndarray:
    (folder / "x.sph").write_bytes(content)
    return load_waveform(folder / "x.sph").samples


# Containers that FFmpeg reads


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("kinds")
    return {kind[0]: encode_kind(folder, kind, 2.0).read_bytes() for kind in KINDS if kind[0] in CONTAINERS}


CONTAINERS = ("m4a", "mov", "webm", "mka", "wma", "flv", "avi", "ts", "mpg", "caf", "oga", "mp3", "aac", "wv")


@pytest.mark.parametrize("suffix", CONTAINERS)
def test_sound_behind_a_container_is_not_lost(kinds: dict[str, bytes], tmp_path: Path, suffix: str) -> None:
    content = kinds[suffix]
    assert seconds_of(tmp_path, "x", content) == pytest.approx(2.0, abs=2 * 1024 / RATE)  # an encoder fills up frames
    refusal_of(tmp_path, "x", content + WAV)


@pytest.mark.parametrize("suffix", ["wma", "avi", "wv"])
def test_a_hole_in_a_container_is_noticed(kinds: dict[str, bytes], tmp_path: Path, suffix: str) -> None:
    content = kinds[suffix]
    middle, some = len(content) // 2, len(content) // 10
    refusal_of(tmp_path, "x", content[:middle] + bytes(some) + content[middle + some :])
    refusal_of(tmp_path, "x", content[:middle] + b"\x5a" * some + content[middle:])
    refusal_of(tmp_path, "x", content[:middle] + content[middle - some :])


def test_a_program_stream_is_cut_where_no_pack_ends(kinds: dict[str, bytes], tmp_path: Path) -> None:
    refusal_of(tmp_path, "x.mpg", kinds["mpg"][:-1000])
    ended = kinds["mpg"] + b"\0\0\1\xb9"
    assert seconds_of(tmp_path, "x.mpg", ended) == pytest.approx(2.0, abs=0.05)
