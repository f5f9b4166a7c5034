"""The interface of both decoders: a recording that is read once, as blocks of mono samples at its own rate."""

import errno
import io
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO, Protocol

import numpy as np

from hfprep.errors import Reason, RejectedSample

MIN_SAMPLING_RATE, MAX_SAMPLING_RATE = 1_000, 768_000  # Hz; outside this range the header is damaged
BLOCK_VALUES = 1 << 22  # samples times channels read at a time: 16 MiB, whatever the header promises

CheckSeconds = Callable[[float], None]  # called with a lower bound of a recording's length; raises if that is too long


def no_limit(seconds: float) -> None:
    """Accept recordings of any length."""


@dataclass(frozen=True, slots=True)
class Clip:
    """An open recording: its name for messages, size in bytes and suffix, and where its bytes are.

    The bytes begin at `start` in a regular file, or in a seekable `stream`. `is_file`: the file contains nothing else.
    `version` changes when the bytes change.
    """

    name: str
    size: int
    suffix: str
    descriptor: int = -1
    start: int = 0
    is_file: bool = True
    stream: BinaryIO | None = None
    version: tuple[Any, ...] | None = None

    def read_at(self, place: int, length: int) -> bytes:
        """`length` bytes from `place`, fewer only at the end. Raises OSError or StoreError."""
        length = max(0, min(length, self.size - place))
        if self.stream is None:
            return os.pread(self.descriptor, length, self.start + place)
        self.stream.seek(self.start + place)
        return self.stream.read(length)

    def unreadable(self, what: str) -> RejectedSample:
        """The rejection of a file that is damaged or not audio."""
        return RejectedSample(Reason.AUDIO_UNREADABLE, f"{self.name}: {what}")

    def empty(self) -> RejectedSample:
        """The rejection of a file without samples."""
        return RejectedSample(Reason.AUDIO_EMPTY, f"{self.name}: contains no samples")


@dataclass(frozen=True, slots=True)
class Expected:
    """What inspecting the file found.

    `counted_seconds` is the length from counting the frames; without it the decoded length is compared with the header,
    if `promising`. `note` is added to error messages. `bare_format` is FFmpeg's name for a stream without any header.
    """

    counted_seconds: float | None = None
    promising: bool = True
    note: str = ""
    bare_format: str | None = None


class ClipReader(io.RawIOBase):
    """Reads a clip's bytes with its own position, so that other readers of the descriptor are not affected."""

    def __init__(self, clip: Clip) -> None:
        self._clip = clip
        self._place = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if self._clip.is_file:
            count = os.preadv(self._clip.descriptor, [buffer], self._place)
        else:
            content = self._clip.read_at(self._place, len(buffer))
            count = len(content)
            buffer[:count] = content
        self._place += count
        return count

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._place, os.SEEK_END: self._clip.size}[whence]
        if base + offset < 0:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        self._place = base + offset
        return self._place


class Sound(Protocol):
    """An open recording. `num_frames` is the header's number of samples per channel, None if it has none."""

    sampling_rate: int
    channels: int
    format: str
    num_frames: int | None

    def blocks(self, start: int, count: int | None) -> Iterator[np.ndarray]:
        """Mono samples, float32 (num_samples,), from frame `start`: `count` of them, or all to the end.

        Can be called once. Raises RejectedSample if the recording is damaged or shorter than its file promises.
        """
        ...

    def close(self) -> None:
        """Free the decoder's resources; the file stays open."""
        ...


def mono(clip: Clip, block: np.ndarray) -> np.ndarray:
    """Mean of the channels, float32 (num_frames, channels) -> (num_frames,); rejects NaN, infinity and overflow."""
    with np.errstate(over="ignore", invalid="ignore"):
        mean: np.ndarray = block[:, 0] if block.shape[1] == 1 else block.mean(axis=1)
    if not np.isfinite(mean).all():
        # A channel's NaN or infinity cannot vanish in the mean.
        message = f"{clip.name}: {int((~np.isfinite(mean)).sum())} samples are NaN or infinite; export the clip again"
        raise RejectedSample(Reason.AUDIO_NOT_FINITE, message)
    return mean


def check_rate(clip: Clip, sampling_rate: int) -> None:
    """Reject a sampling rate that only a damaged header has."""
    if not MIN_SAMPLING_RATE <= sampling_rate <= MAX_SAMPLING_RATE:
        allowed = f"{MIN_SAMPLING_RATE} to {MAX_SAMPLING_RATE} Hz"
        raise clip.unreadable(f"the header's sampling rate, {sampling_rate} Hz, is not within {allowed}")
