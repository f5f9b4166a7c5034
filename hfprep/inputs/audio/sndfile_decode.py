"""Decoding with libsndfile: wav, flac, ogg, opus, mp3, aiff and the other formats it knows."""

import contextlib
import io
import os
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import soundfile

from hfprep.inputs.audio import sound
from hfprep.inputs.audio.chunks import STREAMED_BYTES
from hfprep.inputs.audio.native_stderr import native_stderr_logged
from hfprep.inputs.audio.sound import Clip, ClipReader, check_rate, mono

READ_BYTES = 1 << 16
UNKNOWN_FRAMES = 1 << 62  # libsndfile's count for a flac stream of unknown length is above this
LOGGED_SIZE = re.compile(r"\b(?:data|SSND|Data Size|Riff size|riff)\s*: (\d+) \(should be (\d+)\)")
# An mp3 decoder needs the preceding frames: they contain bits of the wanted one and set the state of its filters.
MP3_WARM_UP_SECONDS = 0.5


class _Stream(soundfile.SoundFile):
    """A file read once, from its start.

    A seekable SoundFile seeks to its current position after each read, which resets an MP3 decoder, and it trusts the
    header's frame count.
    """

    def seekable(self) -> bool:
        return False


class _Reader(io.BufferedReader):
    """A clip that is not a separate file, for libsndfile: read by callbacks, which cannot raise."""

    def __init__(self, clip: Clip) -> None:
        super().__init__(ClipReader(clip), READ_BYTES)
        self.error: Exception | None = None

    def readinto(self, buffer: Any) -> int:
        try:
            return super().readinto(buffer)
        except Exception as error:  # noqa: BLE001 - raised again by `_reraised`
            self.error = error
            return 0


class SndfileSound:
    """A recording that libsndfile reads; with `talkative` (mp3), notes that its decoder prints are captured.

    Raises soundfile.LibsndfileError, or RejectedSample for an invalid sampling rate.
    """

    def __init__(self, clip: Clip, *, talkative: bool = False) -> None:
        self.clip = clip
        self._talkative = talkative
        self._reader = None if clip.is_file else _Reader(clip)
        if self._reader is None:
            os.lseek(clip.descriptor, 0, os.SEEK_SET)
        with self._quiet(), self._reraised():
            self._file = _Stream(self._reader or clip.descriptor, closefd=False)
        self.sampling_rate: int = self._file.samplerate
        self.channels: int = self._file.channels
        self.format: str = self._file.format
        self.subtype: str = self._file.subtype
        frames = self._file.frames
        self.num_frames: int | None = frames if 0 <= frames < UNKNOWN_FRAMES else None
        # Fewer decoded samples than this mean damage. The count of an mp3 is an estimate; its caller sets a better one.
        self.least_frames = self.num_frames
        check_rate(clip, self.sampling_rate)

    def cut(self) -> str | None:
        """Why the file is cut off, if its header promises more bytes than there are; else None."""
        return cut_chunk(self._file.extra_info)

    def blocks(self, start: int, count: int | None) -> Iterator[np.ndarray]:
        """See `Sound`."""
        skipped = 0
        if start:
            skipped = min(start, round(MP3_WARM_UP_SECONDS * self.sampling_rate)) if self.format == "MP3" else 0
            with self._quiet(), self._reraised():
                self._file.seek(start - skipped)
        block_frames = max(1, sound.BLOCK_VALUES // self.channels)
        if self.num_frames:
            block_frames = min(block_frames, self.num_frames)
        wanted = None if count is None else skipped + count
        decoded = 0
        if 0 <= self._file.frames < UNKNOWN_FRAMES:  # libsndfile returns no more, so this saves a call
            rest = max(0, self._file.frames - start + skipped)
            wanted = rest if wanted is None else min(wanted, rest)
        while wanted is None or decoded < wanted:
            size = block_frames if wanted is None else min(block_frames, wanted - decoded)
            with self._quiet(), self._reraised():
                block = self._file.read(size, dtype="float32", always_2d=True)
            if not len(block):
                break
            decoded += len(block)
            yield mono(self.clip, block[max(0, skipped - decoded + len(block)) :])
        promised = self.least_frames
        if count is None and promised is not None and start - skipped + decoded < promised:
            raise self.clip.unreadable(f"cut off: only {decoded} of {promised} samples could be decoded")

    def _quiet(self) -> contextlib.AbstractContextManager[None]:
        return native_stderr_logged(self.clip.name) if self._talkative else contextlib.nullcontext()

    @contextlib.contextmanager
    def _reraised(self) -> Iterator[None]:
        """Raise an error that occurred while libsndfile read bytes; libsndfile only sees the end of the file."""
        try:
            yield
        finally:
            if self._reader is not None and self._reader.error is not None:
                raise self._reader.error

    def close(self) -> None:
        """See `Sound`."""
        self._file.close()


def cut_chunk(log: str) -> str | None:
    """Why a wav, w64, aiff, au or caf file is cut off, from libsndfile's log of opening it; else None."""
    found = LOGGED_SIZE.search(log)
    if found is None:
        return None
    promised, present = int(found[1]), int(found[2])
    if not present < promised < STREAMED_BYTES:
        return None
    return f"cut off: the header promises {promised} bytes, but only {present} are there"
