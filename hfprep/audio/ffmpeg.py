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

    def blocks(self, block_frames: int) -> Iterator[np.ndarray]:
        """Blocks of at most `block_frames` frames: float32 (num_frames, channels)."""
        frame_bytes = 4 * self.channels
        total = 0
        while data := self._output.read(block_frames * frame_bytes):
            total += len(data)
            if total > MAX_OUTPUT_BYTES:
                raise FfmpegError(f"more than {MAX_OUTPUT_BYTES >> 30} GiB of samples")
            whole = len(data) - len(data) % frame_bytes
            yield np.frombuffer(data[:whole], "<f4").astype(np.float32, copy=False).reshape(-1, self.channels)


@contextlib.contextmanager
def decode(path: str) -> Iterator[DecodedStream]:
    """Decode the first audio stream of a file at its own rate.

    Raises FfmpegMissingError, or FfmpegError with ffmpeg's last message: on entry, while reading, or on leaving
    when ffmpeg found the file damaged after some samples.
    """
    with _run(path, "error", []) as (process, errors):
        try:
            yield DecodedStream(_output(process))
        except struct.error as error:
            _finish(process, errors)
            raise FfmpegError("it wrote no samples") from error
        _finish(process, errors)


def probe(path: str) -> Probe:
    """Read a file's length, rate and channels by decoding its first instant. Raises as `decode` does."""
    with _run(path, "info", ["-t", PROBE_SECONDS]) as (process, errors):
        try:
            stream = DecodedStream(_output(process))
            for _ in stream.blocks(1 << 16):
                pass
        except struct.error as error:
            _finish(process, errors)
            raise FfmpegError("it wrote no samples") from error
        _finish(process, errors)
        found = next(filter(None, map(DURATION_LINE.search, errors.lines())), None)
    seconds = None if found is None else int(found[1]) * 3600 + int(found[2]) * 60 + float(found[3])
    return Probe(seconds, stream.sampling_rate, stream.channels)


class _Errors:
    """Reads a process's error output in a thread, so that a talkative one never blocks; keeps the last lines."""

    def __init__(self, source: IO[bytes]) -> None:
        self._lines: deque[str] = deque(maxlen=MAX_ERROR_LINES)
        self._thread = threading.Thread(target=self._drain, args=(source,), daemon=True, name="ffmpeg-errors")
        self._thread.start()

    def _drain(self, source: IO[bytes]) -> None:
        while line := source.readline(4096):
            self._lines.append(line.decode("utf-8", "replace").strip())

    def lines(self) -> list[str]:
        self._thread.join()
        return [line for line in self._lines if line]


@contextlib.contextmanager
def _run(path: str, level: str, limits: list[str]) -> Iterator[tuple[subprocess.Popen[bytes], _Errors]]:
    program = shutil.which("ffmpeg")
    if program is None:
        raise FfmpegMissingError("ffmpeg is not on PATH")
    # "file:" keeps a name such as http:x or -x a name; the protocol list keeps a playlist from opening connections.
    source = ["-protocol_whitelist", "file,pipe", "-i", f"file:{path}"]
    wanted = ["-map", "0:a:0", "-vn", "-sn", "-dn", *limits, "-c:a", "pcm_f32le", "-f", "wav", "pipe:1"]
    command = [program, "-hide_banner", "-nostdin", "-nostats", "-loglevel", level, "-xerror", *source, *wanted]
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe)
    timer = threading.Timer(TIMEOUT_SECONDS, process.kill)
    timer.daemon = True
    timer.start()
    assert process.stderr is not None
    errors = _Errors(process.stderr)
    try:
        yield process, errors
    finally:
        timer.cancel()
        process.kill()
        process.wait()
        errors.lines()
        for stream in (process.stdout, process.stderr):
            if stream is not None:
                stream.close()


def _output(process: subprocess.Popen[bytes]) -> IO[bytes]:
    assert process.stdout is not None
    return process.stdout


def _finish(process: subprocess.Popen[bytes], errors: _Errors) -> None:
    """Wait for the end and turn a bad exit status into an error; the timer ends a process that does not end."""
    status = process.wait()
    if status:
        lines = errors.lines()
        ended = f"ended by signal {-status} (it has {TIMEOUT_SECONDS:.0f} s)" if status < 0 else f"exit status {status}"
        raise FfmpegError(lines[-1] if lines else ended)


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
