"""Decoding with FFmpeg's libraries (PyAV): containers that libsndfile does not read, or does not read to the end.

FFmpeg is given an open file, never a name, and may only use real containers (`CONTAINERS`) and no protocols: playlists
and lists of files are excluded, so it cannot open another file. Time is limited in proportion to the file's size. Any
decoding error rejects the file.
"""

import errno
import math
import time
from collections.abc import Iterator
from fractions import Fraction
from typing import Any, BinaryIO

import av
import numpy as np
from av.codec.context import Flags2
from av.error import FFmpegError

from hfprep.errors import Reason, RejectedSample
from hfprep.inputs.audio.sound import Clip, ClipReader, Expected, check_rate, mono
from hfprep.inputs.audio.structure import PROBLEMS

# fmt: off
CONTAINERS = (
    "aac", "ac3", "aiff", "amr", "amrnb", "amrwb", "ape", "asf", "au", "avi", "caf", "dts", "dtshd", "eac3", "flac",
    "flv", "loas", "matroska", "webm", "mlp", "mov", "mp4", "m4a", "3gp", "3g2", "mj2", "mp3", "mpc", "mpc8", "mpeg",
    "mpegts", "ogg", "rm", "tak", "truehd", "tta", "w64", "wav", "wv",
)
# fmt: on
# The header of these gives the length of the audio; it is not estimated from the bit rate.
PROMISING = frozenset(
    {"aiff", "ape", "asf", "au", "avi", "caf", "flac", "flv", "matroska,webm", "mov,mp4,m4a,3gp,3g2,mj2", "mpc"}
    | {"mpc8", "ogg", "tak", "tta", "w64", "wav", "wv"}
)
COUNTED = frozenset({"mp3", "aac"})  # only counting the frames shows whether these are complete
EXACT = frozenset({"aiff", "au", "caf", "flac", "ogg", "tak", "tta", "w64", "wav", "wv"})  # give the exact length
SEEKABLE = frozenset({"matroska,webm", "mov,mp4,m4a,3gp,3g2,mj2"})  # by an index whose times are exact
SHORT_NAMES = {"mov,mp4,m4a,3gp,3g2,mj2": "MP4", "matroska,webm": "MATROSKA"}

CHECKED_FOR_CUTS = frozenset({"wav"})  # FFmpeg reports the last packet as corrupt if the header has no length
READ_IN_ORDER = frozenset({"ape", "caf", "mpc", "mpc8", "tak", "tta", "w64", "wv"})  # nothing follows their audio
WITHOUT_GAPS = frozenset({"asf", "flv", "avi"})  # a gap means that a packet is damaged
MAX_UNREAD_BYTES = 1 << 16  # tags, and what FFmpeg reads ahead

TOLERANCE_SECONDS = 0.1  # codecs add and drop a little at the ends, and Matroska counts in milliseconds
WARM_UP_SECONDS = 0.5  # decoded before the requested segment
BASE_SECONDS, BYTES_PER_SECOND = 20.0, 100_000  # time limit of decoding: a constant, plus time for the file's size
SCALES = {"u8": 2.0**-7, "s16": 2.0**-15, "s32": 2.0**-31, "s64": 2.0**-63}


class _File(ClipReader):
    """The clip as a nameless file for PyAV, with a time limit."""

    def __init__(self, clip: Clip) -> None:
        super().__init__(clip)
        self.allowed_seconds = BASE_SECONDS + clip.size / BYTES_PER_SECOND
        self.deadline = time.monotonic() + self.allowed_seconds
        self._failed = False

    def readinto(self, buffer: Any) -> int:
        if self._failed:
            return 0  # PyAV raises the first error, but prints later ones
        self._failed = True
        if time.monotonic() > self.deadline:
            raise TimeoutError(errno.ETIMEDOUT, "reading the file takes too long")
        count = super().readinto(buffer)
        self._failed = False
        return count


class AvSound:
    """A recording that FFmpeg reads: the best audio stream of a container.

    Opening decodes the first frame, to get the actual sampling rate. Raises RejectedSample.
    """

    @classmethod
    def open(cls, clip: Clip, expected: Expected) -> "AvSound | None":
        """Open a clip; None if FFmpeg finds no supported container."""
        file = _File(clip)
        kinds = expected.bare_format or ",".join(CONTAINERS)
        try:
            container = av.open(
                file,
                format=expected.bare_format,
                options={"format_whitelist": kinds, "protocol_whitelist": "none"},
                metadata_errors="replace",
            )
        except (FFmpegError, OSError, ValueError):
            return None
        return cls(clip, file, container, expected)

    def __init__(self, clip: Clip, file: _File, container: Any, expected: Expected) -> None:
        self.clip = clip
        self._file = file
        self._container = container
        self._note = expected.note
        self._sought = False
        self.num_frames: int | None = None
        try:
            self._start()
        except BaseException:
            self.close()
            raise
        self._is_counted = expected.counted_seconds is not None
        if expected.counted_seconds is not None:
            self.num_frames = round(expected.counted_seconds * self.sampling_rate)
        elif expected.promising:
            self.num_frames = self._promised()

    def _start(self) -> None:
        audio = self._container.streams.best("audio")
        if audio is None:
            raise RejectedSample(Reason.AUDIO_UNSUPPORTED, f"{self.clip.name}: has no audio stream")
        if audio.codec_context is None:
            message = f"{self.clip.name}: its codec is not supported by this FFmpeg; convert it to flac"
            raise RejectedSample(Reason.AUDIO_UNSUPPORTED, message)
        self._stream = audio
        audio.codec_context.thread_count = 1  # samples are decoded in parallel already
        if audio.codec_context.codec.lossless:  # checksums, such as WavPack's, are not checked by default
            audio.codec_context.options = {"err_detect": "crccheck+explode"}
        self._name: str = self._container.format.name
        self.format = SHORT_NAMES.get(self._name, self._name.upper())
        if self._name == "caf" and audio.codec_context.codec.lossless:
            # FFmpeg would remove padding from a last packet that has none.
            audio.codec_context.flags2 |= int(Flags2.skip_manual)
        self._frames = self._decoded()
        self._first = next(self._frames, None)
        if self._first is None:
            raise self.clip.empty()
        self.sampling_rate: int = self._first.sample_rate
        self.channels: int = self._first.layout.nb_channels
        check_rate(self.clip, self.sampling_rate)
        self._origin = self._place(self._first)

    def _promised(self) -> int | None:
        """Samples per channel according to the header, from the first decoded one to the last."""
        if self._name not in PROMISING:
            return None
        seconds = self._stream.duration * self._stream.time_base if self._stream.duration else None
        if seconds is None:
            end = _tagged_seconds(self._stream.metadata.get("DURATION"))
            if end is None and len(self._container.streams) == 1 and self._container.duration:
                end = Fraction(self._container.duration, av.time_base)
            if end is not None and self._first is not None and self._first.pts is not None:
                seconds = end - self._first.pts * self._first.time_base
        return None if seconds is None or seconds <= 0 else round(seconds * self.sampling_rate)

    def problem(self, file: BinaryIO) -> str | None:
        """Why the container is incomplete; None if it is complete."""
        if self._name in COUNTED and not self._is_counted:
            return "damaged: its first frame is not where it should be"
        check = PROBLEMS.get(self._name)
        return None if check is None else check(file, self.clip.size)

    def blocks(self, start: int, count: int | None) -> Iterator[np.ndarray]:
        """See `Sound`."""
        at = end = 0
        for frame in self._frames_from(start):
            if frame.sample_rate != self.sampling_rate:
                rates = f"{self.sampling_rate} to {frame.sample_rate} Hz"
                raise self.clip.unreadable(f"its sampling rate changes from {rates}; convert it to flac")
            if self._sought:
                at = self._place(frame) - self._origin
            wanted = slice(max(0, start - at), None if count is None else max(0, start + count - at))
            block = _samples(frame)[wanted]
            self._check_gap(frame, max(at, end))
            at += frame.samples
            end = max(end, self._place(frame) - self._origin + frame.samples if frame.pts is not None else at)
            if len(block):
                yield mono(self.clip, block)
            if count is not None and at >= start + count:
                return
        if count is None:
            self._check_end(max(at, end))

    def _check_gap(self, frame: Any, before: int) -> None:
        """Reject a gap in a container that has none: packets are damaged."""
        gap = 0 if frame.pts is None else self._place(frame) - self._origin - before
        if self._name in WITHOUT_GAPS and gap > TOLERANCE_SECONDS * self.sampling_rate:
            lost, place = gap / self.sampling_rate, before / self.sampling_rate
            raise self.clip.unreadable(f"damaged: {lost:.2f} s of audio are missing after {place:.2f} s")

    def _check_end(self, decoded: int) -> None:
        unread = self.clip.size - self._file.tell()
        if self._name in READ_IN_ORDER and unread > MAX_UNREAD_BYTES:
            raise self.clip.unreadable(f"its audio ends {unread} bytes before the file does; are several files joined?")
        if self.num_frames is None:
            return
        counts_samples = self._stream.time_base == Fraction(1, self.sampling_rate)
        is_lossless = self._stream.codec_context.codec.lossless and counts_samples
        tolerance = 0 if self._name in EXACT and is_lossless else round(TOLERANCE_SECONDS * self.sampling_rate)
        if decoded < self.num_frames - tolerance:
            raise self.clip.unreadable(f"cut off: only {decoded} of {self.num_frames} samples could be decoded")

    def _frames_from(self, start: int) -> Iterator[Any]:
        """Decoded frames in order, from one at or before sample `start`."""
        assert self._first is not None
        warm = start - round(WARM_UP_SECONDS * self.sampling_rate)
        if warm > self._first.samples and self._name in SEEKABLE and self._first.pts is not None:
            self._seek(warm)
            first = next(self._frames, None)
            self._sought = first is not None and first.pts is not None and self._place(first) - self._origin <= start
            if self._sought:
                yield first
            else:
                self._seek(0)
        else:
            yield self._first
        yield from self._frames

    def _seek(self, frame: int) -> None:
        when = Fraction(self._origin + frame, self.sampling_rate) / self._stream.time_base
        try:
            self._container.seek(math.floor(when), stream=self._stream, backward=True)
        except FFmpegError as error:
            raise self.clip.unreadable(_message(error)) from error
        self._frames = self._decoded()

    def _place(self, frame: Any) -> int:
        """Start of a frame in the stream's time, in samples; 0 if it has no timestamp."""
        return 0 if frame.pts is None else round(frame.pts * frame.time_base * self.sampling_rate)

    def _decoded(self) -> Iterator[Any]:
        """Every frame of the stream. Raises RejectedSample at the first sign of damage."""
        try:
            for packet in self._container.demux(self._stream):
                if time.monotonic() > self._file.deadline:
                    allowed = f"{self._file.allowed_seconds:.0f} s"
                    raise self.clip.unreadable(f"could not be decoded within {allowed}; convert it to flac")
                if packet.is_corrupt and self._name not in CHECKED_FOR_CUTS:
                    raise self.clip.unreadable("damaged or cut off: an audio packet is incomplete")
                for frame in packet.decode():
                    if frame.is_corrupt:
                        raise self.clip.unreadable("damaged: part of its audio could not be decoded")
                    if frame.samples:
                        yield frame
        except RejectedSample:
            raise
        except (FFmpegError, OSError, ValueError) as error:
            raise self.clip.unreadable(f"damaged or cut off: {_message(error)}{self._note}") from error

    def close(self) -> None:
        """See `Sound`."""
        self._container.close()


def _samples(frame: Any) -> np.ndarray:
    """A frame as float32 (num_samples, channels), full scale 1.0, converted as FFmpeg does it."""
    values = frame.to_ndarray()
    values = values.T if frame.format.is_planar else values.reshape(-1, frame.layout.nb_channels)
    samples = values.astype(np.float32, copy=False)
    scale = SCALES.get(frame.format.packed.name)
    if scale is None:
        return samples
    samples = samples * np.float32(scale)
    return samples - np.float32(1) if values.dtype == np.uint8 else samples


def _tagged_seconds(text: str | None) -> Fraction | None:
    """Seconds of a Matroska tag like "00:00:02.008000000", the end of a track."""
    if text is None:
        return None
    try:
        hours, minutes, seconds = text.split(":")
        return int(hours) * 3600 + int(minutes) * 60 + Fraction(seconds)
    except (ValueError, ZeroDivisionError):
        return None


def _message(error: BaseException) -> str:
    return f"FFmpeg says: {getattr(error, 'strerror', None) or error}"
