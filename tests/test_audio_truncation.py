"""Files that were cut off are refused, whatever their decoder makes of the rest; whole ones never are."""

from pathlib import Path

import numpy as np
import pytest
import soundfile

from hfprep.errors import Reason, RejectedSample
from hfprep.inputs.audio.decode import load_waveform
from hfprep.inputs.audio.sndfile_decode import cut_chunk

KINDS = [
    ("wav", "WAV", "PCM_16"),
    ("wav", "WAV", "FLOAT"),
    ("wav", "WAVEX", "PCM_24"),
    ("rf64", "RF64", "PCM_16"),
    ("w64", "W64", "PCM_16"),
    ("aiff", "AIFF", "PCM_16"),
    ("au", "AU", "PCM_16"),
    ("caf", "CAF", "PCM_16"),
    ("flac", "FLAC", "PCM_16"),
    ("ogg", "OGG", "VORBIS"),
    ("opus", "OGG", "OPUS"),
    ("mp3", "MP3", "MPEG_LAYER_III"),
]


def sound_file(folder: Path, suffix: str, container: str, subtype: str, seconds: float = 3.0) -> Path:
    path = folder / f"a.{suffix}"
    samples = 0.1 * np.random.default_rng(0).standard_normal((round(seconds * 48_000), 2))
    soundfile.write(path, samples, 48_000, format=container, subtype=subtype)
    return path


@pytest.mark.parametrize("share", [0.03, 0.5, 0.97])
@pytest.mark.parametrize(("suffix", "container", "subtype"), KINDS)
def test_a_part_of_a_file_is_refused(tmp_path: Path, suffix: str, container: str, subtype: str, share: float) -> None:
    path = sound_file(tmp_path, suffix, container, subtype)
    whole = path.read_bytes()
    assert load_waveform(path).seconds == pytest.approx(3.0, abs=1e-9)
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(RejectedSample) as caught:
        load_waveform(path)
    assert caught.value.reason == Reason.AUDIO_UNREADABLE


def test_mp3_tags_do_not_hide_the_cut(tmp_path: Path) -> None:
    path = sound_file(tmp_path, "mp3", "MP3", "MPEG_LAYER_III")
    whole = path.read_bytes()
    tag = b"ID3\x04\x00\x00" + bytes([0, 0, 2, 4]) + b"\0" * (2 * 128 + 4)  # 260 bytes follow, in 7-bit digits
    path.write_bytes(tag + whole)
    assert load_waveform(path).seconds == pytest.approx(3.0, abs=0.05)
    path.write_bytes(tag + whole[: len(whole) * 2 // 3])
    with pytest.raises(RejectedSample, match="cut off"):
        load_waveform(path)


def test_bytes_after_the_last_ogg_page_are_no_cut(tmp_path: Path) -> None:
    path = sound_file(tmp_path, "ogg", "OGG", "VORBIS")
    path.write_bytes(path.read_bytes() + b"\0" * 100)
    assert load_waveform(path).seconds == pytest.approx(3.0, abs=1e-9)


@pytest.mark.parametrize("length", range(0, 40, 3))
@pytest.mark.parametrize("start", [b"OggS\0\2", b"ID3\4\0\0\x7f\x7f\x7f\x7f", b"\xff\xfb\x90\x64", b"\xff"])
def test_scraps_do_not_crash(tmp_path: Path, start: bytes, length: int) -> None:
    path = tmp_path / "scrap"
    path.write_bytes(start + bytes(length))
    with pytest.raises(RejectedSample):
        load_waveform(path)


@pytest.mark.parametrize(
    ("log", "cut"),
    [
        ("RIFF : 68196 (should be 68100)\ndata : 68160\nEnd", False),  # a careless total, all samples there
        ("data : 68160 (should be 4000)\nEnd", True),
        ("data : 4294967295 (should be 4000)", False),  # written into a pipe
        ("data : 0 (should be 4000)", False),
        (" SSND : 160008 (should be 3155)", True),
        ("  Data Size   : 160000 (should be 79988)", True),
    ],
)
def test_the_log_of_libsndfile(log: str, cut: bool) -> None:
    assert (cut_chunk(log) is not None) == cut
