"""Audio file -> mono samples at 16 kHz, or the reason why the file cannot be used.

Gives `read_header` (length, rate and channels, cheaply) and `load_waveform`. Takes a path, or the string that stands
for a clip inside another file (see `references`). Reads wav, flac, ogg, opus, mp3 and what else libsndfile knows, and
hands other containers (m4a, webm, aac...) to the ffmpeg program where it is installed. Knows nothing of manifests or of
the features computed from the samples.
"""

import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import soundfile

from hfprep.errors import Reason, RejectedSample
from hfprep.inputs.audio import ffmpeg
from hfprep.inputs.audio.containers import readable_path
from hfprep.inputs.audio.resample import resample
from hfprep.inputs.audio.truncation import cut_chunk, cut_stream
from hfprep.io.references import suffix_of

TARGET_SAMPLING_RATE = 16_000  # Hz, what w2v-bert-2.0 hears
MIN_SAMPLING_RATE, MAX_SAMPLING_RATE = 1_000, 768_000  # Hz; beyond, the header is damaged
BLOCK_VALUES = 1 << 22  # samples times channels read at a time: 16 MiB, whatever the header promises
SNIFF_BYTES = 16

SEARCHED_FORMATS = frozenset({"MP3"})  # their frame count is found by a scan or a tag, not promised by the header

UNKNOWN_FRAMES = 1 << 62  # libsndfile's count for a flac stream that does not know its own length is above this
UNRECOGNISED_FORMAT = 1  # libsndfile's SF_ERR_UNRECOGNISED_FORMAT

CONTAINER_SIGNATURES: tuple[tuple[int, bytes, str], ...] = (
    (4, b"ftyp", "mp4/m4a"),
    (0, b"\x1aE\xdf\xa3", "webm/matroska"),
    (0, b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "wma/asf"),
    (0, b"#!AMR", "amr"),
    (0, b"ADIF", "aac"),
    (0, b"\xff\xf1", "aac"),
    (0, b"\xff\xf9", "aac"),
    (0, b"wvpk", "wavpack"),
    (0, b"MAC ", "monkey's audio"),
    (0, b"TTA1", "tta"),
    (0, b"FLV\x01", "flv"),
    (8, b"AVI ", "avi"),
)
# fmt: off
CONTAINER_SUFFIXES = frozenset({
    ".3gp", ".aac", ".ac3", ".amr", ".ape", ".asf", ".avi", ".flv", ".m4a", ".m4b", ".mka", ".mkv", ".mov", ".mp4",
    ".mpc", ".mpeg", ".mpg", ".ts", ".tta", ".webm", ".wma", ".wv",
})
# fmt: on


@dataclass(frozen=True, slots=True)
class AudioHeader:
    """What a file says of itself: length in seconds, rate in Hz, channels, and the container's name ("WAV", "MP3")."""

    seconds: float
    sampling_rate: int
    channels: int
    format: str


@dataclass(frozen=True, slots=True)
class Waveform:
    """Mono audio. samples: float32 (num_samples,) at `sampling_rate` Hz; `seconds` is the source file's own length."""

    samples: np.ndarray
    sampling_rate: int
    seconds: float


def read_header(path: str | os.PathLike[str]) -> AudioHeader:
    """Read a file's length, rate and channels without decoding it.

    A file that only ffmpeg reads and that does not say how long it is gets decoded to count. Raises RejectedSample
    (AUDIO_MISSING, AUDIO_UNREADABLE, AUDIO_UNSUPPORTED, AUDIO_EMPTY).
    """
    name = os.fspath(path)
    return _read_with(name, _header_by_soundfile, _header_by_ffmpeg)


def load_waveform(
    path: str | os.PathLike[str], *, sampling_rate: int = TARGET_SAMPLING_RATE, via: int | None = None
) -> Waveform:
    """Decode a file, mix it to mono (the mean of its channels) and resample it to `sampling_rate` Hz.

    With `via` a file at any rate other than `sampling_rate` is resampled to `via` Hz first. Decoding holds one
    block of all channels and the mono samples, never more than the file really has. Raises RejectedSample:
    AUDIO_MISSING, AUDIO_UNREADABLE (damaged, cut off, no permission, not a regular file), AUDIO_UNSUPPORTED,
    AUDIO_EMPTY, AUDIO_NOT_FINITE. Safe to call from many threads.
    """
    name = os.fspath(path)
    samples, source_rate = _read_with(name, _samples_by_soundfile, _samples_by_ffmpeg)
    if not len(samples):
        raise RejectedSample(Reason.AUDIO_EMPTY, f"{name}: holds no samples")
    seconds = len(samples) / source_rate
    if via is not None and source_rate != sampling_rate:
        samples, source_rate = resample(samples, source_rate, via), via
    return Waveform(resample(samples, source_rate, sampling_rate), sampling_rate, seconds)


_Found = TypeVar("_Found")


def _read_with(name: str, by_soundfile: Callable[[str], _Found], by_ffmpeg: Callable[[str, str], _Found]) -> _Found:
    """Use libsndfile, or ffmpeg for the containers that libsndfile does not know, and map their errors to ours."""
    with readable_path(name) as path:
        try:
            return _read_file(path, suffix_of(name), by_soundfile, by_ffmpeg)
        except RejectedSample as error:
            if path == name:
                raise
            raise RejectedSample(error.reason, error.message.replace(path, name)) from error


def _read_file(
    name: str, suffix: str, by_soundfile: Callable[[str], _Found], by_ffmpeg: Callable[[str, str], _Found]
) -> _Found:
    start = _first_bytes(name)
    container = _foreign_container(suffix, start)
    try:
        if container is None:
            return by_soundfile(name)
        return by_ffmpeg(name, container)
    except soundfile.LibsndfileError as error:
        hint = "; is it audio?" if error.code == UNRECOGNISED_FORMAT else ""
        raise _unreadable(name, f"{error.error_string.strip().rstrip('.')}{hint}") from error
    except ffmpeg.FfmpegMissingError as error:
        message = f"{name}: {container} is read through ffmpeg, which is not installed; install it or convert to flac"
        raise RejectedSample(Reason.AUDIO_UNSUPPORTED, message) from error
    except ffmpeg.FfmpegError as error:
        raise _unreadable(name, f"ffmpeg: {error}") from error
    except (OSError, soundfile.SoundFileRuntimeError) as error:
        raise _unreadable(name, str(error)) from error


def _first_bytes(name: str) -> bytes:
    """The start of a regular file that is not empty; anything else is refused without opening it."""
    try:
        status = os.stat(name)
        if not stat.S_ISREG(status.st_mode):
            # Opening a FIFO or a device can block for ever.
            raise _unreadable(name, "is a directory" if stat.S_ISDIR(status.st_mode) else "is not a regular file")
        if status.st_size == 0:
            raise RejectedSample(Reason.AUDIO_EMPTY, f"{name}: the file is empty (0 bytes)")
        with open(name, "rb") as file:
            return file.read(SNIFF_BYTES)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise RejectedSample(Reason.AUDIO_MISSING, f"{name}: no such file") from error
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise _unreadable(name, getattr(error, "strerror", None) or str(error)) from error


def _foreign_container(suffix: str, start: bytes) -> str | None:
    """Name of a container that libsndfile does not read, by signature or else by suffix; None if it may read it."""
    for offset, signature, container in CONTAINER_SIGNATURES:
        if start[offset : offset + len(signature)] == signature:
            return container
    return suffix[1:] if suffix in CONTAINER_SUFFIXES and not _known_to_soundfile(start) else None


def _known_to_soundfile(start: bytes) -> bool:
    """Whether a file is plainly wav, flac, ogg, aiff or mp3 in spite of its suffix."""
    return start.startswith((b"RIFF", b"RF64", b"fLaC", b"OggS", b"FORM", b"ID3", b"\xff\xfb", b"\xff\xf3"))


class _Stream(soundfile.SoundFile):
    """A file read once from its start, its rate and its completeness checked as it is opened.

    A seekable SoundFile seeks to where it is after each read, which resets an MP3 decoder in the middle of a word,
    and believes the header's frame count.
    """

    def __init__(self, name: str) -> None:
        cut = cut_stream(name)
        if cut is None:
            super().__init__(name)
            _check_rate(name, self.samplerate)
            cut = cut_chunk(self.extra_info)
        if cut is not None:
            raise _unreadable(name, cut)

    def seekable(self) -> bool:
        return False

    @property
    def promised_frames(self) -> int | None:
        """The header's count of frames; None where it has none."""
        return self.frames if 0 <= self.frames < UNKNOWN_FRAMES else None


def _header_by_soundfile(name: str) -> AudioHeader:
    with _Stream(name) as file:
        frames = file.promised_frames
        if frames is None:
            frames = len(_samples_of(name, file))
        if frames == 0:
            raise RejectedSample(Reason.AUDIO_EMPTY, f"{name}: holds no samples")
        return AudioHeader(frames / file.samplerate, file.samplerate, file.channels, file.format)


def _samples_by_soundfile(name: str) -> tuple[np.ndarray, int]:
    """Mono float32 samples at the file's own rate, and that rate in Hz."""
    with _Stream(name) as file:
        samples = _samples_of(name, file)
        promised = file.promised_frames
        if promised is not None and len(samples) < promised and file.format not in SEARCHED_FORMATS:
            raise _unreadable(name, f"cut off: {len(samples)} of {promised} samples could be decoded")
        return samples, file.samplerate


def _samples_of(name: str, file: _Stream) -> np.ndarray:
    block_frames = max(1, BLOCK_VALUES // file.channels)
    if file.promised_frames:
        block_frames = min(block_frames, file.promised_frames)
    blocks = []
    while len(block := file.read(block_frames, dtype="float32", always_2d=True)):
        blocks.append(_mono(name, block))
    return blocks[0] if len(blocks) == 1 else np.concatenate([np.empty(0, np.float32), *blocks])


def _samples_by_ffmpeg(name: str, _container: str) -> tuple[np.ndarray, int]:
    with ffmpeg.decode(name) as stream:
        _check_rate(name, stream.sampling_rate)
        block_frames = max(1, BLOCK_VALUES // stream.channels)
        blocks = [_mono(name, block) for block in stream.blocks(block_frames)]
        return np.concatenate([np.empty(0, np.float32), *blocks]), stream.sampling_rate


def _header_by_ffmpeg(name: str, container: str) -> AudioHeader:
    found = ffmpeg.probe(name)
    _check_rate(name, found.sampling_rate)
    seconds = found.seconds
    if seconds is None:
        seconds = len(_samples_by_ffmpeg(name, container)[0]) / found.sampling_rate
    if seconds <= 0:
        raise RejectedSample(Reason.AUDIO_EMPTY, f"{name}: holds no samples")
    return AudioHeader(seconds, found.sampling_rate, found.channels, container)


def _mono(name: str, block: np.ndarray) -> np.ndarray:
    """Mean of the channels, float32 (num_frames, channels) -> (num_frames,); refuses NaN, infinity and overflow."""
    with np.errstate(over="ignore", invalid="ignore"):
        mono: np.ndarray = block[:, 0] if block.shape[1] == 1 else block.mean(axis=1)
    if not np.isfinite(mono).all():
        # A channel's NaN or infinity cannot vanish in the mean.
        message = f"{name}: {int((~np.isfinite(mono)).sum())} samples are NaN or infinite; export the clip again"
        raise RejectedSample(Reason.AUDIO_NOT_FINITE, message)
    return mono


def _check_rate(name: str, sampling_rate: int) -> None:
    if not MIN_SAMPLING_RATE <= sampling_rate <= MAX_SAMPLING_RATE:
        allowed = f"{MIN_SAMPLING_RATE} to {MAX_SAMPLING_RATE} Hz"
        raise _unreadable(name, f"the header says {sampling_rate} Hz, which is not within {allowed}")


def _unreadable(name: str, what: str) -> RejectedSample:
    return RejectedSample(Reason.AUDIO_UNREADABLE, f"{name}: {what}")
