"""The way through ffmpeg, with a stand-in program so that it is always tested, and with the real one where it is."""

import json
import os
import shutil
import stat
import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile

from hfprep.errors import Reason, RejectedSample
from hfprep.inputs.audio import decode, ffmpeg
from hfprep.inputs.audio.decode import AudioHeader, load_waveform, read_header
from hfprep.inputs.audio.resample import resample

REAL_FFMPEG = shutil.which("ffmpeg")
M4A = b"\0\0\0\x20ftypM4A \0\0\0\0"


def float_wav(samples: np.ndarray, rate: int, *, tag: int = 3, extra: bytes = b"") -> bytes:
    """As ffmpeg writes it into a pipe: the sizes are not known."""
    channels = samples.shape[1]
    layout = struct.pack("<HHIIHH", tag, channels, rate, rate * channels * 4, channels * 4, 32)
    layout += b"\x16\0" + bytes(22) if tag == 0xFFFE else b""
    chunks = b"WAVEfmt " + struct.pack("<I", len(layout)) + layout + extra
    return b"RIFF\xff\xff\xff\xff" + chunks + b"data\xff\xff\xff\xff" + samples.astype("<f4").tobytes()


class FakeFfmpeg:
    """A program named ffmpeg, alone on PATH, that keeps its arguments and does what its body says."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        folder.mkdir()
        monkeypatch.setenv("PATH", str(folder))

    def does(self, body: str, output: bytes = b"") -> None:
        (self.folder / "output").write_bytes(output)
        program = self.folder / "ffmpeg"
        lines = [
            f"#!{sys.executable} -S",
            "import sys, os, time, json, signal",
            f"folder = {str(self.folder)!r}",
            "open(folder + '/arguments', 'w').write(json.dumps(sys.argv[1:]))",
            "output = open(folder + '/output', 'rb').read()",
            "write = lambda data: (sys.stdout.buffer.write(data), sys.stdout.buffer.flush())",
            "say = lambda text: print(text, file=sys.stderr, flush=True)",
            body,
        ]
        program.write_text("\n".join(lines))
        program.chmod(program.stat().st_mode | stat.S_IXUSR)

    def arguments(self) -> list[str]:
        found: list[str] = json.loads((self.folder / "arguments").read_text())
        return found


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeFfmpeg:
    return FakeFfmpeg(tmp_path / "bin", monkeypatch)


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    path = tmp_path / "a clip; $(touch x).m4a"
    path.write_bytes(M4A)
    return path


def stereo(seconds: float = 0.5, rate: int = 44_100) -> np.ndarray:
    return np.random.default_rng(0).uniform(-0.5, 0.5, (round(seconds * rate), 2)).astype(np.float32)


def rejection(path: Path) -> RejectedSample:
    with pytest.raises(RejectedSample) as caught:
        load_waveform(path)
    assert str(path) in caught.value.message
    return caught.value


@pytest.mark.parametrize("tag", [3, 0xFFFE])
@pytest.mark.parametrize("extra", [b"", b"LIST\x1b\0\0\0" + b"x" * 28])  # odd sizes are padded
def test_samples_come_through_the_pipe(fake: FakeFfmpeg, clip: Path, tag: int, extra: bytes) -> None:
    samples = stereo()
    fake.does("write(output)", float_wav(samples, 44_100, tag=tag, extra=extra))
    waveform = load_waveform(clip)
    np.testing.assert_array_equal(waveform.samples, resample(samples.mean(axis=1), 44_100, 16_000))
    assert waveform.seconds == 0.5


def test_it_is_called_without_shell_network_or_questions(fake: FakeFfmpeg, clip: Path) -> None:
    fake.does("write(output)", float_wav(stereo(), 44_100))
    load_waveform(clip)
    arguments = fake.arguments()
    assert f"file:{clip}" in arguments
    assert "-nostdin" in arguments
    assert arguments[arguments.index("-protocol_whitelist") + 1] == "file,pipe"
    assert not (Path.cwd() / "x").exists()


def test_header_from_what_it_says(fake: FakeFfmpeg, clip: Path) -> None:
    fake.does(
        "say('[info]   Duration: 00:01:02.50, start: 0.000000, bitrate: 127 kb/s'); write(output)",
        float_wav(stereo(0.05), 44_100),
    )
    assert read_header(clip) == AudioHeader(62.5, 44_100, 2, "mp4/m4a")
    assert "-t" in fake.arguments()


def test_header_of_a_file_that_does_not_say_is_counted(fake: FakeFfmpeg, clip: Path) -> None:
    fake.does(
        "say('[info]   Duration: N/A, start: 0.000000, bitrate: N/A'); write(output)", float_wav(stereo(0.75), 44_100)
    )
    assert read_header(clip).seconds == 0.75


def test_its_error_is_passed_on(fake: FakeFfmpeg, clip: Path) -> None:
    fake.does(f"say('[mov @ 0x55d0] [error] file:{clip}: moov atom not found'); say('[info] bye'); sys.exit(183)")
    error = rejection(clip)
    assert error.reason == Reason.AUDIO_UNREADABLE
    assert error.message == f"{clip}: ffmpeg: moov atom not found"


def test_an_error_after_some_samples_is_an_error(fake: FakeFfmpeg, clip: Path) -> None:
    fake.does("write(output); say('[error] corrupt packet'); sys.exit(1)", float_wav(stereo(), 44_100))
    assert "corrupt packet" in rejection(clip).message


@pytest.mark.parametrize(
    ("body", "output", "said"),
    [
        ("write(output)", b"", "no samples"),
        ("write(output)", b"RIFF", "no samples"),
        ("write(output)", b"ID3\4" + b"\0" * 60, "not a wav"),
        ("write(output)", b"RIFF\0\0\0\0WAVEdata\0\0\0\0", "no format chunk"),
        ("write(output)", float_wav(stereo(), 44_100, tag=1), "wav format 0x1"),
        ("sys.exit(7)", b"", "exit status 7"),
        ("os.kill(os.getpid(), signal.SIGSEGV)", b"", "signal 11"),
    ],
)
def test_odd_programs(fake: FakeFfmpeg, clip: Path, body: str, output: bytes, said: str) -> None:
    fake.does(body, output)
    error = rejection(clip)
    assert error.reason == Reason.AUDIO_UNREADABLE
    assert said in error.message


def test_no_samples_and_bad_samples(fake: FakeFfmpeg, clip: Path) -> None:
    fake.does("write(output)", float_wav(stereo(0), 44_100))
    assert rejection(clip).reason == Reason.AUDIO_EMPTY
    samples = stereo()
    samples[9_000, 1] = np.nan
    fake.does("write(output)", float_wav(samples, 44_100))
    assert rejection(clip).reason == Reason.AUDIO_NOT_FINITE
    fake.does("write(output)", float_wav(stereo(), 20))
    assert "20 Hz" in rejection(clip).message


def test_much_talk_does_not_block_it(fake: FakeFfmpeg, clip: Path) -> None:
    fake.does("for _ in range(3000): say('[warning] ' + 'x' * 200)\nwrite(output)", float_wav(stereo(), 44_100))
    assert load_waveform(clip).seconds == 0.5


def test_a_program_that_hangs_is_ended(fake: FakeFfmpeg, clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ffmpeg, "TIMEOUT_SECONDS", 1.0)
    fake.does("write(output[:100])\ntime.sleep(60)", float_wav(stereo(), 44_100))
    started = time.monotonic()
    assert "ended by signal 9" in rejection(clip).message
    assert time.monotonic() - started < 20


def test_endless_output_is_bounded(fake: FakeFfmpeg, clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ffmpeg, "MAX_OUTPUT_BYTES", 50 << 20)
    fake.does("write(output)\nwhile True: write(bytes(1 << 20))", float_wav(stereo(), 44_100))
    assert "GiB" in rejection(clip).message


def test_a_cut_off_matroska_file_is_noticed(fake: FakeFfmpeg, tmp_path: Path) -> None:
    clip = tmp_path / "a.webm"
    clip.write_bytes(b"\x1aE\xdf\xa3" + bytes(30))
    said = "say('[info] Input #0, matroska,webm, from ...:'); say('[info]   Duration: 00:00:02.00, start: 0')"
    fake.does(f"{said}; write(output)", float_wav(stereo(1.2), 44_100))
    assert "promises 2.00 s, 1.20 s could be decoded" in rejection(clip).message
    fake.does(f"{said}; write(output)", float_wav(stereo(1.97), 44_100))
    assert load_waveform(clip).seconds == pytest.approx(1.97, abs=1e-4)
    video = "say('[info]   Stream #0:1: Video: vp9, 640x360')"  # which may go on after the sound
    fake.does(f"{said}; {video}; write(output)", float_wav(stereo(1.2), 44_100))
    assert load_waveform(clip).seconds == pytest.approx(1.2, abs=1e-4)


def test_sound_that_libsndfile_reads_never_goes_through_it(fake: FakeFfmpeg, tmp_path: Path) -> None:
    fake.does("sys.exit(1)")
    for suffix in ("wav", "flac", "ogg"):
        path = tmp_path / f"a.{suffix}"
        soundfile.write(path, stereo(), 44_100)
        assert load_waveform(path).seconds == 0.5
    assert not (fake.folder / "arguments").exists()


def test_nothing_is_left_running_or_open(fake: FakeFfmpeg, clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode, "BLOCK_VALUES", 10_000)
    folder = Path("/proc/self/fd")
    if not folder.is_dir():
        pytest.skip("there is no /proc here")
    samples = stereo(2)
    samples[0] = np.nan  # the reader gives up while the program still writes
    fake.does("write(output)\ntime.sleep(60)", float_wav(samples, 44_100))
    before = len(os.listdir(folder))
    started = time.monotonic()
    assert rejection(clip).reason == Reason.AUDIO_NOT_FINITE
    assert time.monotonic() - started < 20
    assert len(os.listdir(folder)) <= before


@pytest.mark.skipif(REAL_FFMPEG is None, reason="ffmpeg is not installed")
@pytest.mark.parametrize("suffix", ["m4a", "webm", "aac", "mka", "wma"])
def test_the_real_program(tmp_path: Path, suffix: str) -> None:
    assert REAL_FFMPEG is not None
    tone = 0.4 * np.sin(2 * np.pi * 300 * np.arange(48_000) / 48_000)
    source, path = tmp_path / "a.wav", tmp_path / f"a.{suffix}"
    soundfile.write(source, np.stack([tone, tone], axis=1), 48_000)
    subprocess.run([REAL_FFMPEG, "-v", "error", "-nostdin", "-i", source, path], check=True)
    header, waveform = read_header(path), load_waveform(path)
    assert (header.sampling_rate, header.channels) == (48_000, 2)
    assert header.seconds == pytest.approx(1.0, abs=0.1)
    assert waveform.seconds == pytest.approx(1.0, abs=0.1)
    heard = np.abs(np.fft.rfft(waveform.samples[4_000:12_000]))
    assert np.argmax(heard) == 150  # 300 Hz in half a second
    path.write_bytes(path.read_bytes()[:40])
    assert rejection(path).reason == Reason.AUDIO_UNREADABLE
