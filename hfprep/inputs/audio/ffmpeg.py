"""Decoding through the ffmpeg program, for the containers that libsndfile does not read.

Gives `decode` (float32 blocks as ffmpeg writes them) and `probe` (length, rate, channels). Takes a path. ffmpeg runs
without a shell, without the network, with bounded time and output. Knows nothing of rejections or of resampling.
"""

import contextlib
import re
import shutil
import struct
import subprocess
import threading
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO

import numpy as np

TIMEOUT_SECONDS = 600.0
MAX_OUTPUT_BYTES = 8 << 30  # 3 hours of 48 kHz in 4 channels: no utterance is longer
MAX_ERROR_LINES = 40
PROBE_SECONDS = "0.05"
DURATION_LINE = re.compile(r"Duration: (\d+):(\d\d):(\d\d(?:\.\d+)?)")
ERROR_LINE = re.compile(r"\[(?:error|fatal|panic)\] (.*)")
CUT_TOLERANCE_SECONDS, CUT_TOLERANCE_SHARE = 0.1, 0.02  # codecs add and drop a little at the ends
WAVE_FORMAT_FLOAT, WAVE_FORMAT_EXTENSIBLE = 3, 0xFFFE
MAX_CHANNELS = 1024


class FfmpegError(Exception):
    """ffmpeg did not decode the file; the message is its own."""


class FfmpegMissingError(FfmpegError):
    """There is no ffmpeg program on PATH."""


@dataclass(frozen=True, slots=True)
class Probe:
    """What ffmpeg says of a file; `seconds` is None where the container does not."""

    seconds: float | None
    sampling_rate: int
    channels: int


class DecodedStream:
    """The samples of one file as ffmpeg writes them."""

    def __init__(self, output: IO[bytes]) -> None:
        self._output = output
        self.channels, self.sampling_rate = _read_wav_header(output)
        self.frames_read = 0

    def blocks(self, block_frames: int) -> Iterator[np.ndarray]:
        """Blocks of at most `block_frames` frames: float32 (num_frames, channels)."""
        frame_bytes = 4 * self.channels
        total = 0
        while data := self._output.read(block_frames * frame_bytes):
            total += len(data)
            if total > MAX_OUTPUT_BYTES:
                raise FfmpegError(f"more than {MAX_OUTPUT_BYTES >> 30} GiB of samples")
            whole = len(data) - len(data) % frame_bytes
            self.frames_read += whole // frame_bytes
            yield np.frombuffer(data[:whole], "<f4").astype(np.float32, copy=False).reshape(-1, self.channels)


@contextlib.contextmanager
def decode(path: str) -> Iterator[DecodedStream]:
    """Decode the first audio stream of a file at its own rate.

    Raises FfmpegMissingError, or FfmpegError with ffmpeg's own message: on entry, while reading, or on leaving when
    the file turned out to be damaged or cut off after some samples.
    """
    with _run(path, []) as (process, log):
        stream = _open_stream(process, log)
        yield stream
        _finish(process, log)
        # Matroska is played to its last whole cluster without a word. Other containers guess at their length, and a
        # picture may go on after the sound.
        if log.promised_seconds is not None and log.is_matroska and not log.has_video:
            seconds = stream.frames_read / stream.sampling_rate
            if seconds < log.promised_seconds * (1 - CUT_TOLERANCE_SHARE) - CUT_TOLERANCE_SECONDS:
                promised = f"{log.promised_seconds:.2f} s"
                raise FfmpegError(f"cut off: the header promises {promised}, {seconds:.2f} s could be decoded")


def probe(path: str) -> Probe:
    """Read a file's length, rate and channels by decoding its first instant. Raises as `decode` does."""
    with _run(path, ["-t", PROBE_SECONDS]) as (process, log):
        stream = _open_stream(process, log)
        for _ in stream.blocks(1 << 16):
            pass
        _finish(process, log)
        return Probe(log.promised_seconds, stream.sampling_rate, stream.channels)


class _Log:
    """Reads what ffmpeg says, in a thread, so that much talk never blocks it; keeps the errors and what it promises."""

    def __init__(self, source: IO[bytes], path: str) -> None:
        self._own_name = f"file:{path}: "  # the caller names the file
        self._errors: deque[str] = deque(maxlen=MAX_ERROR_LINES)
        self.promised_seconds: float | None = None
        self.has_video = False
        self.is_matroska = False
        self._thread = threading.Thread(target=self._drain, args=(source,), daemon=True, name="ffmpeg-log")
        self._thread.start()

    def _drain(self, source: IO[bytes]) -> None:
        while raw := source.readline(4096):
            line = raw.decode("utf-8", "replace")
            if error := ERROR_LINE.search(line):
                self._errors.append(error[1].strip().removeprefix(self._own_name))
            elif self.promised_seconds is None and (found := DURATION_LINE.search(line)):
                self.promised_seconds = int(found[1]) * 3600 + int(found[2]) * 60 + float(found[3])
            elif "Input #0, matroska" in line:
                self.is_matroska = True
            elif "Stream #0:" in line and " Video: " in line:
                self.has_video = True

    def wait(self) -> None:
        """Until all is read: the process has ended."""
        self._thread.join()

    def last_error(self) -> str | None:
        """The last error line, once all is read."""
        self.wait()
        return next((line for line in reversed(self._errors) if line), None)


@contextlib.contextmanager
def _run(path: str, limits: list[str]) -> Iterator[tuple[subprocess.Popen[bytes], _Log]]:
    program = shutil.which("ffmpeg")
    if program is None:
        raise FfmpegMissingError("ffmpeg is not on PATH")
    # "file:" keeps a name such as http:x or -x a name; the protocol list keeps a playlist from opening connections.
    source = ["-protocol_whitelist", "file,pipe", "-i", f"file:{path}"]
    wanted = ["-map", "0:a:0", "-vn", "-sn", "-dn", *limits, "-c:a", "pcm_f32le", "-f", "wav", "pipe:1"]
    command = [program, "-hide_banner", "-nostdin", "-nostats", "-loglevel", "level+info", "-xerror", *source, *wanted]
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe)
    timer = threading.Timer(TIMEOUT_SECONDS, process.kill)
    timer.daemon = True
    timer.start()
    assert process.stderr is not None
    log = _Log(process.stderr, path)
    try:
        yield process, log
    finally:
        timer.cancel()
        process.kill()
        process.wait()
        log.wait()
        for stream in (process.stdout, process.stderr):
            if stream is not None:
                stream.close()


def _open_stream(process: subprocess.Popen[bytes], log: _Log) -> DecodedStream:
    assert process.stdout is not None
    try:
        return DecodedStream(process.stdout)
    except struct.error as error:
        _finish(process, log)
        raise FfmpegError("it wrote no samples") from error


def _finish(process: subprocess.Popen[bytes], log: _Log) -> None:
    """Wait for the end and turn a bad exit status into an error; the timer ends a process that does not end."""
    status = process.wait()
    log.wait()
    if status < 0:
        raise FfmpegError(f"ended by signal {-status} (it has {TIMEOUT_SECONDS:.0f} s)")
    if status:
        raise FfmpegError(log.last_error() or f"exit status {status}")


def _read_wav_header(output: IO[bytes]) -> tuple[int, int]:
    """Read up to the first sample of a float32 wav stream; returns channels and Hz. struct.error: it ends early.

    Written to a pipe, the sizes in the header are not known and not looked at, but for the chunks before the samples.
    """
    magic, _, kind = struct.unpack("<4sI4s", output.read(12))
    if magic not in {b"RIFF", b"RF64"} or kind != b"WAVE":
        raise FfmpegError(f"it wrote {magic!r}, not a wav stream")
    layout: tuple[int, int] | None = None
    while True:
        name, size = struct.unpack("<4sI", output.read(8))
        if name == b"data":
            break
        body = output.read(min(size + size % 2, 1 << 20))
        if name == b"fmt ":
            tag, channels, sampling_rate, _, _, bits = struct.unpack("<HHIIHH", body[:16])
            if tag not in {WAVE_FORMAT_FLOAT, WAVE_FORMAT_EXTENSIBLE} or bits != 32 or not 0 < channels <= MAX_CHANNELS:
                raise FfmpegError(f"it wrote wav format {tag:#x} with {bits} bits and {channels} channels")
            layout = channels, sampling_rate
    if layout is None:
        raise FfmpegError("its wav stream has no format chunk")
    return layout
