"""Decoding: every format, every kind of bad file, and bounds on what a file may cost."""

import json
import os
import socket
import struct
import threading
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile

from hfprep.errors import Reason, RejectedSample
from hfprep.inputs.audio import sndfile_decode, sound
from hfprep.inputs.audio.decode import AudioHeader, load_waveform, read_header
from hfprep.inputs.audio.resample import resample

RATE = 16_000


def tone(seconds: float = 1.0, rate: int = RATE, frequency: float = 440.0) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * frequency * np.arange(round(seconds * rate)) / rate)


def write(path: Path, samples: np.ndarray, rate: int = RATE, subtype: str = "PCM_16", **kind: str) -> Path:
    soundfile.write(path, samples, rate, subtype=subtype, **kind)
    return path


def reason_of(path: str | Path) -> Reason:
    """Both entry points refuse the file, naming it, for the same reason."""
    reasons = []
    for function in (load_waveform, read_header):
        with pytest.raises(RejectedSample) as caught:
            function(path)
        assert str(path) in caught.value.message
        reasons.append(caught.value.reason)
    assert reasons[0] == reasons[1]
    return reasons[0]


FORMATS = [
    ("wav", "WAV", "PCM_16", 8_000, 1, 1e-4),
    ("wav", "WAV", "PCM_24", 22_050, 2, 1e-6),
    ("wav", "WAV", "FLOAT", 48_000, 1, 1e-7),
    ("wav", "WAV", "PCM_U8", 11_025, 1, 1e-2),
    ("wav", "WAVEX", "PCM_32", 96_000, 6, 1e-6),
    ("flac", "FLAC", "PCM_16", 44_100, 2, 1e-4),
    ("flac", "FLAC", "PCM_24", 32_000, 1, 1e-6),
    ("ogg", "OGG", "VORBIS", 44_100, 2, 0.05),
    ("opus", "OGG", "OPUS", 48_000, 1, 0.1),
    ("mp3", "MP3", "MPEG_LAYER_III", 44_100, 2, 0.05),
    ("mp3", "MP3", "MPEG_LAYER_III", 22_050, 1, 0.05),
    ("aiff", "AIFF", "PCM_16", 16_000, 1, 1e-4),
]


@pytest.mark.parametrize(("suffix", "container", "subtype", "rate", "channels", "tolerance"), FORMATS)
def test_formats_rates_and_channels(
    tmp_path: Path, suffix: str, container: str, subtype: str, rate: int, channels: int, tolerance: float
) -> None:
    sound = tone(1.5, rate)
    loudness = np.linspace(0.4, 1.0, channels)
    path = write(tmp_path / f"a.{suffix}", sound[:, None] * loudness, rate, subtype, format=container)
    header = read_header(path)
    assert (header.sampling_rate, header.channels, header.format) == (rate, channels, container)
    assert header.seconds == pytest.approx(1.5, abs=0.03)
    waveform = load_waveform(path)
    assert waveform.samples.dtype == np.float32
    assert waveform.sampling_rate == RATE
    assert waveform.seconds == pytest.approx(1.5, abs=1 / rate)
    expected = resample((sound * loudness.mean()).astype(np.float32), rate, RATE)
    assert waveform.samples.shape == expected.shape
    middle = slice(800, -800)
    np.testing.assert_allclose(waveform.samples[middle], expected[middle], rtol=0, atol=tolerance)


def test_mono_is_the_mean_of_the_channels(tmp_path: Path) -> None:
    samples = np.array([[0.5, -0.25], [0.25, 0.75], [-0.5, -0.5], [0.0, 1 / 8]] * 200, np.float32)
    path = write(tmp_path / "a.wav", samples, subtype="FLOAT")
    np.testing.assert_array_equal(load_waveform(path).samples, np.tile([0.125, 0.5, -0.5, 0.0625], 200))


def test_via_resamples_twice(tmp_path: Path) -> None:
    sound = tone(0.5, 44_100).astype(np.float32)
    path = write(tmp_path / "a.wav", sound, 44_100, "FLOAT")
    expected = resample(resample(sound, 44_100, 24_000), 24_000, RATE)
    np.testing.assert_array_equal(load_waveform(path, via=24_000).samples, expected)
    assert not np.array_equal(load_waveform(path).samples, expected)


def test_via_24_khz_is_gone_through_at_every_rate_and_others_only_where_needed(tmp_path: Path) -> None:
    """The older scripts read every file at 24 kHz."""
    sound = tone(0.5).astype(np.float32)
    path = write(tmp_path / "a.wav", sound, RATE, "FLOAT")
    expected = resample(resample(sound, RATE, 24_000), 24_000, RATE)
    np.testing.assert_array_equal(load_waveform(path, via=24_000).samples, expected)
    assert not np.array_equal(expected, sound)
    np.testing.assert_array_equal(load_waveform(path, via=22_050).samples, sound)


def test_another_target_rate(tmp_path: Path) -> None:
    path = write(tmp_path / "a.wav", tone(0.5))
    waveform = load_waveform(path, sampling_rate=8_000)
    assert (len(waveform.samples), waveform.sampling_rate, waveform.seconds) == (4_000, 8_000, 0.5)


@pytest.mark.parametrize("name", ["synth3.flac", "synth4.mp3", "synth6.ogg", "synth7.wav"])
def test_blocks_give_the_same_samples_as_one_read(
    golden_small: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    path = golden_small / "audio" / name
    samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    expected = resample(samples.mean(axis=1), rate, RATE)
    monkeypatch.setattr(sound, "BLOCK_VALUES", 1_000)
    np.testing.assert_array_equal(load_waveform(path).samples, expected)


def test_headers_agree_with_the_golden_manifest(golden_small: Path) -> None:
    for row in map(json.loads, (golden_small / "manifest.jsonl").read_text().splitlines()):
        path = golden_small / row["audio"]
        assert read_header(path).seconds == pytest.approx(row["duration"], abs=1e-3)
        assert load_waveform(path).seconds == pytest.approx(row["duration"], abs=1e-3)


def test_missing_files(tmp_path: Path) -> None:
    file = write(tmp_path / "file.wav", tone())
    for path in (tmp_path / "none.wav", tmp_path / "no" / "folder.wav", file / "inside.wav"):
        assert reason_of(path) == Reason.AUDIO_MISSING


def test_a_path_that_cannot_be_one(tmp_path: Path) -> None:
    assert reason_of(f"{tmp_path}/nul\0.wav") == Reason.AUDIO_UNREADABLE
    assert reason_of(tmp_path / ("x" * 5_000)) == Reason.AUDIO_UNREADABLE


def test_what_is_no_regular_file_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo.wav")
    listener = socket.socket(socket.AF_UNIX)
    here = os.getcwd()
    os.chdir(tmp_path)  # a socket's path must be short
    try:
        listener.bind("socket.wav")
    finally:
        os.chdir(here)
    (tmp_path / "folder.wav").mkdir()
    (tmp_path / "link.wav").symlink_to(tmp_path / "fifo.wav")
    for name in ("fifo.wav", "socket.wav", "folder.wav", "link.wav"):
        assert reason_of(tmp_path / name) == Reason.AUDIO_UNREADABLE
    assert reason_of("/dev/zero") == Reason.AUDIO_UNREADABLE
    listener.close()


def test_loops_of_links_and_permissions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "loop.wav").symlink_to(tmp_path / "loop.wav")
    assert reason_of(tmp_path / "loop.wav") == Reason.AUDIO_UNREADABLE
    path = write(tmp_path / "secret.wav", tone())
    if os.geteuid() != 0:
        path.chmod(0)
    else:  # root may read everything

        def refuse(*_: object, **__: object) -> None:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(RejectedSample, match="Permission denied") as caught:
        load_waveform(path)
    assert caught.value.reason == Reason.AUDIO_UNREADABLE


@pytest.mark.parametrize(
    "content", [b"\0" * 4_000, b"RIFF" + b"\0" * 3, b"fLaC", b"OggS" + b"\1" * 60, b"plain text\n" * 9]
)
@pytest.mark.parametrize("suffix", ["wav", "flac", "mp3", "txt", ""])
def test_what_is_no_audio_is_unreadable(tmp_path: Path, content: bytes, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(content)
    assert reason_of(path) == Reason.AUDIO_UNREADABLE


def test_the_librarys_message_is_passed_on(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    path.write_bytes(b"plain text\n" * 9)
    with pytest.raises(RejectedSample, match="Format not recognised"):
        load_waveform(path)


def test_empty_files(tmp_path: Path) -> None:
    (tmp_path / "nothing.wav").write_bytes(b"")
    write(tmp_path / "no_samples.wav", tone(0))
    write(tmp_path / "no_samples.flac", tone(0))
    assert reason_of(tmp_path / "nothing.wav") == Reason.AUDIO_EMPTY
    assert reason_of(tmp_path / "no_samples.wav") == Reason.AUDIO_EMPTY
    with pytest.raises(RejectedSample):
        load_waveform(tmp_path / "no_samples.flac")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38])
@pytest.mark.parametrize("channels", [1, 2])
def test_samples_that_are_not_finite(tmp_path: Path, value: float, channels: int) -> None:
    samples = np.repeat(tone()[:, None], channels, axis=1).astype(np.float32)
    samples[5_000] = value
    path = write(tmp_path / "a.wav", samples, subtype="FLOAT")
    if value == 3e38 and channels == 1:
        assert np.isfinite(load_waveform(path).samples).all()  # large, but a number: the features will say
        return
    with pytest.raises(RejectedSample, match="1 samples are NaN or infinite") as caught:
        load_waveform(path)
    assert caught.value.reason == Reason.AUDIO_NOT_FINITE


@pytest.mark.parametrize("rate", [1, 999, 768_001, 2_000_000_000])
def test_absurd_rates(tmp_path: Path, rate: int) -> None:
    path = write(tmp_path / "a.wav", tone())
    content = bytearray(path.read_bytes())
    struct.pack_into("<I", content, 24, rate)
    path.write_bytes(content)
    assert reason_of(path) == Reason.AUDIO_UNREADABLE


def test_a_header_that_promises_too_much_costs_nothing(tmp_path: Path) -> None:
    path = write(tmp_path / "a.wav", tone(), subtype="PCM_16")
    content = bytearray(path.read_bytes())
    for size, reason in ((0x7FFFEFFF, Reason.AUDIO_UNREADABLE), (0xFFFFFFFF, None)):
        struct.pack_into("<I", content, 40, size)  # the data chunk
        path.write_bytes(content)
        tracemalloc.start()
        if reason is None:  # as ffmpeg writes it into a pipe: until the end
            np.testing.assert_allclose(load_waveform(path).samples, tone(), atol=1e-4)
        else:
            assert reason_of(path) == reason
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 64 << 20


def test_a_flac_that_promises_too_much_costs_nothing(tmp_path: Path) -> None:
    path = write(tmp_path / "a.flac", tone())
    content = bytearray(path.read_bytes())
    content[21] |= 0x0F  # the upper bits of the 36-bit count of samples in STREAMINFO
    path.write_bytes(content)
    tracemalloc.start()
    with pytest.raises(RejectedSample) as caught:
        load_waveform(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert caught.value.reason == Reason.AUDIO_UNREADABLE
    assert peak < 64 << 20


def test_a_flac_that_promises_nothing_is_read_to_its_end(tmp_path: Path) -> None:
    path = write(tmp_path / "a.flac", tone(1.25))
    content = bytearray(path.read_bytes())
    content[21] &= 0xF0
    content[22:26] = bytes(4)
    path.write_bytes(content)
    assert read_header(path) == AudioHeader(1.25, RATE, 1, "FLAC")
    np.testing.assert_allclose(load_waveform(path).samples, tone(1.25), atol=1e-4)


@pytest.mark.parametrize("change", ["shrinks", "grows", "vanishes"])
@pytest.mark.parametrize("suffix", ["wav", "flac", "mp3"])
def test_a_file_that_changes_while_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str, suffix: str
) -> None:
    subtype = "MPEG_LAYER_III" if suffix == "mp3" else "PCM_16"
    path = write(tmp_path / f"a.{suffix}", np.random.default_rng(0).uniform(-0.5, 0.5, 400_000), RATE, subtype)
    monkeypatch.setattr(sound, "BLOCK_VALUES", 10_000)
    mix, calls = sndfile_decode.mono, iter(range(1_000_000))

    def mix_and_change(clip: sound.Clip, block: np.ndarray) -> np.ndarray:
        if next(calls) == 1:
            if change == "shrinks":
                os.truncate(path, path.stat().st_size // 3)
            elif change == "grows":
                with open(path, "ab") as file:
                    file.write(b"\0" * 100_000)
            else:
                path.unlink()
        return mix(clip, block)

    monkeypatch.setattr(sndfile_decode, "mono", mix_and_change)
    if change == "shrinks":
        with pytest.raises(RejectedSample) as caught:
            load_waveform(path)
        assert caught.value.reason == Reason.AUDIO_UNREADABLE
    else:
        assert np.isfinite(load_waveform(path).samples).all()


BROKEN: list[tuple[str, bytes]] = [
    ("m4a", b"\0\0\0\x20ftypM4A \0\0\0\0"),
    ("webm", b"\x1aE\xdf\xa3" + b"\0" * 20),
    ("aac", b"\xff\xf1\x50\x80" + b"\0" * 20),
    ("wma", b"\x30\x26\xb2\x75\x8e\x66\xcf\x11" + b"\0" * 20),
    ("mp4", b"no signature at all"),
    ("dat", b"\0\0\0\x20ftypisom\0\0\0\0"),
]


@pytest.mark.parametrize(("suffix", "content"), BROKEN)
def test_the_start_of_a_container_is_no_sound(tmp_path: Path, suffix: str, content: bytes) -> None:
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(content)
    assert reason_of(path) == Reason.AUDIO_UNREADABLE


def test_a_wav_file_under_another_suffix_is_one(tmp_path: Path) -> None:
    for suffix in ("m4a", "g722", "raw", "mp3"):
        path = tmp_path / f"a.{suffix}"
        write(tmp_path / "a.wav", tone()).rename(path)
        assert len(load_waveform(path).samples) == RATE
        assert read_header(path).format == "WAV"


def test_many_threads_at_once(golden_small: Path) -> None:
    paths = sorted((golden_small / "audio").iterdir())
    expected = [load_waveform(path).samples for path in paths]
    failures: list[str] = []

    def work() -> None:
        for path, alone in zip(paths, expected, strict=True):
            if not np.array_equal(load_waveform(path).samples, alone):
                failures.append(path.name)

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


@pytest.fixture(autouse=True)
def files_are_closed() -> Iterator[None]:
    """Nothing that is read or refused leaves a file open."""
    folder = Path("/proc/self/fd")
    before = len(list(folder.iterdir())) if folder.is_dir() else 0
    yield
    if folder.is_dir():
        assert len(list(folder.iterdir())) <= before + 1
