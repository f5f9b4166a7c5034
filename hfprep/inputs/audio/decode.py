"""Audio to mono samples at 16 kHz, or the reason why it cannot be used.

Provides `read_header` (length, rate and channels, mostly without decoding) and `load_waveform`. Takes a path, a URL, or
a reference to a clip inside another file (see `references`). libsndfile decodes the formats it reads exactly (wav,
flac, ogg, opus, mp3, aiff), FFmpeg's libraries the rest. A recording is read completely or rejected: where a decoder
would silently stop early, the file itself is checked. Knows nothing about manifests or features.
"""

import contextlib
import io
import os
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import soundfile

from hfprep.errors import Reason, RejectedSample
from hfprep.inputs.audio.choice import Depth, choose
from hfprep.inputs.audio.containers import opened
from hfprep.inputs.audio.resample import resample
from hfprep.inputs.audio.sound import CheckSeconds, Clip, Sound, no_limit
from hfprep.schema import Segment

TARGET_SAMPLING_RATE = 16_000  # Hz, the input of w2v-bert-2.0
OLDER_SCRIPTS_RATE = 24_000  # Hz, to which the older scripts first resample every file, even one at 16 kHz
BYTES_PER_SECOND = 16_000  # between wav and mp3, to estimate a length
CHECK_EVERY_SECONDS = 10.0  # of decoded sound
END_TOLERANCE_SECONDS = 0.05  # a segment may exceed the recording by this: manifests round
FLAT_RANGE = 1e-4  # peak to peak, 3 steps of 16 bits: inaudible


@dataclass(frozen=True, slots=True)
class AudioHeader:
    """A file's length in seconds, sampling rate in Hz, channels, and container name ("WAV", "MP3")."""

    seconds: float
    sampling_rate: int
    channels: int
    format: str


@dataclass(frozen=True, slots=True)
class Waveform:
    """Mono audio. samples: float32 (num_samples,) at `sampling_rate` Hz; `seconds` is the length of the source.

    `is_flat`: the mixed samples are almost constant, as in silence, a DC offset, or two channels that cancel out.
    """

    samples: np.ndarray
    sampling_rate: int
    seconds: float
    is_flat: bool = False


def read_header(
    path: str | os.PathLike[str], *, segment: Segment | None = None, check_seconds: CheckSeconds = no_limit
) -> AudioHeader:
    """Read a file's length, rate and channels; without a length in the header, frames are counted or decoded.

    With `segment`, the length of the segment within the file. `check_seconds` is called with lengths as they
    become known, and may raise to stop. Raises RejectedSample (AUDIO_MISSING, AUDIO_UNREADABLE, AUDIO_UNSUPPORTED,
    AUDIO_EMPTY).
    """
    with _opened(os.fspath(path), segment, check_seconds) as (clip, sound):
        frames = sound.num_frames
        if frames is None:
            frames = sum(map(len, _checked(sound.blocks(0, None), sound, check_seconds)))
        if frames == 0:
            raise clip.empty()
        if segment is not None:
            start, count = _sample_range(clip, sound, segment)
            frames = _within(clip, segment, sound, max(0, min(frames - start, frames if count is None else count)))
        return AudioHeader(frames / sound.sampling_rate, sound.sampling_rate, sound.channels, sound.format)


def guess_seconds(path: str | os.PathLike[str], segment: Segment | None = None) -> float:
    """Estimate a recording's length in seconds from its header, or else its size, without decoding or counting.

    Raises RejectedSample if it cannot be opened.
    """
    if segment is not None and segment.seconds is not None:
        return segment.seconds
    with (
        opened(os.fspath(path), in_part=segment is not None) as clip,
        _mapped(clip),
        choose(clip, depth=Depth.HEADER) as sound,
    ):
        frames = sound.num_frames
        seconds = clip.size / BYTES_PER_SECOND if frames is None else frames / sound.sampling_rate
        return max(0.0, seconds - (segment.offset if segment is not None else 0.0))


def load_waveform(
    path: str | os.PathLike[str],
    *,
    sampling_rate: int = TARGET_SAMPLING_RATE,
    via: int | None = None,
    segment: Segment | None = None,
    check_seconds: CheckSeconds = no_limit,
) -> Waveform:
    """Decode a file, mix it to mono (the mean of its channels) and resample it to `sampling_rate` Hz.

    With `via` a file is resampled to `via` Hz first, if `goes_through` says so. With `segment` only that part is read.
    `check_seconds` is called with the length from the header before decoding, and with the decoded length from time to
    time; it may raise to stop. Memory: one block of all channels and the mono samples, whatever the header promises.
    Raises RejectedSample: AUDIO_MISSING, AUDIO_UNREADABLE (damaged, cut off, no permission, not a regular file),
    AUDIO_UNSUPPORTED, AUDIO_EMPTY, AUDIO_NOT_FINITE. Thread-safe.
    """
    with _opened(os.fspath(path), segment, check_seconds) as (clip, sound):
        start, count = (0, None) if segment is None else _sample_range(clip, sound, segment)
        blocks = list(_checked(sound.blocks(start, count), sound, check_seconds))
        samples = blocks[0] if len(blocks) == 1 else np.concatenate([np.empty(0, np.float32), *blocks])
        source_rate = sound.sampling_rate
        if segment is not None:
            _within(clip, segment, sound, len(samples))
    if not len(samples):
        raise clip.empty()
    seconds = len(samples) / source_rate
    is_flat = bool(samples.max() - samples.min() <= FLAT_RANGE)
    if via is not None and goes_through(via, source_rate, sampling_rate):
        samples, source_rate = resample(samples, source_rate, via), via
    return Waveform(resample(samples, source_rate, sampling_rate), sampling_rate, seconds, is_flat)


def goes_through(via: int, source_rate: int, sampling_rate: int) -> bool:
    """Whether a file is resampled to `via` Hz first.

    At 24 kHz every file is, as in the older scripts; otherwise only files that are not at `sampling_rate`.
    """
    return via == OLDER_SCRIPTS_RATE or source_rate != sampling_rate


def segment_as_wav(path: str | os.PathLike[str], segment: Segment) -> bytes:
    """A segment as a wav file: mono, float32, at the recording's rate. Raises as `load_waveform` does."""
    rate = read_header(path, segment=segment).sampling_rate
    waveform = load_waveform(path, sampling_rate=rate, segment=segment)
    target = io.BytesIO()
    soundfile.write(target, waveform.samples, rate, format="WAV", subtype="FLOAT")
    return target.getvalue()


@contextlib.contextmanager
def _opened(name: str, segment: Segment | None, check_seconds: CheckSeconds) -> Iterator[tuple[Clip, Sound]]:
    """The recording, opened by the decoder that reads it completely; the length in its header is checked."""
    if segment is not None and segment.seconds is not None:
        check_seconds(segment.seconds)
    with opened(name, in_part=segment is not None) as clip, _mapped(clip):
        checked = choose(clip, check_seconds) if segment is None else choose(clip, depth=Depth.SEGMENT)
        with checked as sound:
            yield clip, sound


@contextlib.contextmanager
def _mapped(clip: Clip) -> Iterator[None]:
    """Turn errors of the file system and of libsndfile into rejections."""
    try:
        yield
    except soundfile.LibsndfileError as error:
        raise clip.unreadable(error.error_string.strip().rstrip(".")) from error
    except (OSError, soundfile.SoundFileRuntimeError) as error:
        raise clip.unreadable(getattr(error, "strerror", None) or str(error)) from error


def _checked(blocks: Iterator[np.ndarray], sound: Sound, check_seconds: CheckSeconds) -> Iterator[np.ndarray]:
    """Pass on the blocks and call `check_seconds` with the decoded length from time to time."""
    step = round(CHECK_EVERY_SECONDS * sound.sampling_rate)
    decoded, next_check = 0, step
    for block in blocks:
        decoded += len(block)
        if decoded >= next_check:
            check_seconds(decoded / sound.sampling_rate)
            next_check = decoded + step
        yield block


def _sample_range(clip: Clip, sound: Sound, segment: Segment) -> tuple[int, int | None]:
    """First sample and number of samples of a segment."""
    start = round(segment.offset * sound.sampling_rate)
    if sound.num_frames is not None and start >= sound.num_frames:
        length = sound.num_frames / sound.sampling_rate
        message = f"{clip.name}: the segment starts at {segment.offset:g} s, but the recording has only {length:.2f} s"
        raise RejectedSample(Reason.AUDIO_EMPTY, message)
    if segment.seconds is None:
        return start, None
    return start, round((segment.offset + segment.seconds) * sound.sampling_rate) - start


def _within(clip: Clip, segment: Segment, sound: Sound, frames: int) -> int:
    """`frames`, the samples found for a segment; raises RejectedSample if more are missing than rounding explains."""
    if segment.seconds is not None and frames < round((segment.seconds - END_TOLERANCE_SECONDS) * sound.sampling_rate):
        found = frames / sound.sampling_rate
        raise clip.unreadable(
            f"the segment of {segment.seconds:g} s at {segment.offset:g} s is cut off: "
            f"the recording ends after {found:.2f} s of it"
        )
    if frames == 0:
        raise clip.empty()
    return frames
