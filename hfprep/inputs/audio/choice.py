"""Chooses the decoder that reads a recording completely, by inspecting the file.

libsndfile is preferred: earlier outputs have its values. But it estimates the length of an mp3, skips damaged Ogg pages
and reads only the first of several joined recordings. So the frames of an mp3 and the pages of an Ogg file are checked,
and FFmpeg decodes what libsndfile would not read to the end.
"""

import contextlib
import io
from collections import OrderedDict
from collections.abc import Callable, Iterator
from enum import Enum
from typing import Any, BinaryIO, TypeVar

import soundfile

from hfprep.errors import Reason, RejectedSample
from hfprep.inputs.audio.chunks import BEHIND
from hfprep.inputs.audio.flac import MAGIC, flac_problem
from hfprep.inputs.audio.mpeg import Frames, walk_frames
from hfprep.inputs.audio.ogg import Pages, read_pages
from hfprep.inputs.audio.sndfile_decode import SndfileSound
from hfprep.inputs.audio.sound import CheckSeconds, Clip, ClipReader, Expected, Sound, no_limit

SNIFF_BYTES = 16
LOOK_BYTES, READ_AT_ONCE_BYTES = 1 << 16, 1 << 20
FRAMES_STARTS = (b"ID3", b"\xff", b"\0", b"TAG", b"APETAGEX")  # how an mp3 or ADTS file can begin
FOREIGN_SIGNATURES: tuple[tuple[int, bytes], ...] = (
    (4, b"ftyp"),  # mp4, m4a
    (0, b"\x1aE\xdf\xa3"),  # matroska, webm
    (0, b"\x30\x26\xb2\x75\x8e\x66\xcf\x11"),  # asf, wma
    (0, b"#!AMR"),
    (0, b"ADIF"),
    (0, b"wvpk"),
    (0, b"MAC "),
    (0, b"TTA1"),
    (0, b"FLV\x01"),
    (8, b"AVI "),
)
KNOWN_SIGNATURES = (b"RIFF", b"RF64", b"OggS", b"fLaC", b"FORM", b"ID3")  # take precedence over the suffix
BARE_SUFFIXES = {".g722": "g722", ".gsm": "gsm"}  # streams without a header, recognised by their suffix only
# Formats of libsndfile whose files are checked for being complete, and for data after the audio.
CHECKED = frozenset({"WAV", "WAVEX", "RF64", "W64", "AIFF", "AU", "CAF", "FLAC", "OGG", "NIST"})
UNRECOGNISED_FORMAT = 1  # libsndfile's SF_ERR_UNRECOGNISED_FORMAT
NOTHING_EXPECTED = Expected()
MAX_CACHED = 64  # files whose segments are read one after another


class Depth(Enum):
    """How much of a file is checked before it is decoded."""

    HEADER = "header"  # for an estimate
    SEGMENT = "segment"  # what decoding a segment depends on
    WHOLE = "whole"


@contextlib.contextmanager
def choose(clip: Clip, check_seconds: CheckSeconds = no_limit, depth: Depth = Depth.WHOLE) -> Iterator[Sound]:
    """The recording, opened by the decoder that reads it to its end.

    `check_seconds` is called with its length as soon as that is known. Raises RejectedSample, OSError, or
    soundfile.LibsndfileError.
    """
    sound = _choose(clip, check_seconds, depth)
    try:
        yield sound
    finally:
        sound.close()


def _choose(clip: Clip, check_seconds: CheckSeconds, depth: Depth) -> Sound:
    start = clip.read_at(0, SNIFF_BYTES)
    if any(start[at : at + len(sign)] == sign for at, sign in FOREIGN_SIGNATURES):
        return _by_av(clip, check_seconds, depth)
    if clip.suffix in BARE_SUFFIXES and not start.startswith(KNOWN_SIGNATURES):
        return _by_av(clip, check_seconds, depth, Expected(bare_format=BARE_SUFFIXES[clip.suffix]))
    if start.startswith(b"OggS"):
        return _ogg(clip, check_seconds, depth)
    if start.startswith(FRAMES_STARTS):
        frames = _frames(clip, check_seconds, depth)
        if frames is not None:
            return _mpeg(clip, frames, check_seconds, depth)
    return _other(clip, start, check_seconds, depth)


def _other(clip: Clip, start: bytes, check_seconds: CheckSeconds, depth: Depth) -> Sound:
    """wav, flac, aiff and other formats of libsndfile, otherwise FFmpeg."""
    try:
        sound = SndfileSound(clip, talkative=start.startswith(FRAMES_STARTS))
    except soundfile.LibsndfileError as error:
        found = _by_av_if_any(clip, check_seconds, depth)
        if found is not None:
            return found
        hint = "; is it audio?" if error.code == UNRECOGNISED_FORMAT else ""
        raise clip.unreadable(f"{error.error_string.strip().rstrip('.')}{hint}") from error
    with contextlib.ExitStack() as stack:
        stack.callback(sound.close)
        if sound.format == "MP3":
            raise clip.unreadable("damaged: its first frame is not where it should be")
        if sound.format not in CHECKED:
            message = f"{clip.name}: cannot check if a {sound.format} file is complete; convert it to flac or wav"
            raise RejectedSample(Reason.AUDIO_UNSUPPORTED, message)
        if sound.num_frames == 0 or sound.subtype.startswith("MPEG"):
            found = _by_av_if_any(clip, check_seconds, depth)
            if found is not None:
                return found
        if sound.num_frames is not None:
            check_seconds(sound.num_frames / sound.sampling_rate)
        problem = sound.cut() or _unread(clip, start) if depth is Depth.WHOLE else None
        if problem is not None:
            raise clip.unreadable(problem)
        stack.pop_all()
    return sound


def _unread(clip: Clip, start: bytes) -> str | None:
    """Why libsndfile would not read all of the file; None if it would."""
    look = flac_problem if start.startswith(MAGIC) else BEHIND.get(start[:4])
    if look is None:
        return None
    with _reading(clip) as file:
        return look(file, clip.size)


def _ogg(clip: Clip, check_seconds: CheckSeconds, depth: Depth) -> Sound:
    try:
        sound = SndfileSound(clip)
    except soundfile.LibsndfileError:
        sound = None
    with contextlib.ExitStack() as stack:
        if sound is not None:
            stack.callback(sound.close)
            if sound.num_frames is not None:
                check_seconds(sound.num_frames / sound.sampling_rate)
        pages = _pages(clip, depth)
        if sound is not None and (pages is None or pages.num_audio_streams == 1):
            stack.pop_all()
            return sound
    return _by_av(clip, check_seconds, depth, Expected(promising=pages is not None and pages.num_links == 1))


def _mpeg(clip: Clip, frames: Frames, check_seconds: CheckSeconds, depth: Depth) -> Sound:
    """An mp3 or ADTS file whose frames have been counted."""
    if frames.problem is not None:
        raise clip.unreadable(frames.problem)
    seconds = (frames.num_samples + (frames.trimmed if frames.has_zeros else 0)) / frames.sampling_rate
    if frames.kind == "mp3" and not frames.has_zeros:
        with contextlib.suppress(soundfile.LibsndfileError):
            sound = SndfileSound(clip, talkative=True)
            least = frames.num_samples - frames.samples_per_frame
            if sound.num_frames is not None and sound.num_frames >= least:
                sound.least_frames = least
                if frames.promised_frames is None:
                    sound.num_frames = frames.num_samples
                return sound
            sound.close()
    note = "; a free-format mp3 that cannot be decoded: convert it to flac" if frames.is_free else ""
    if frames.promised_frames is not None and frames.num_frames > frames.promised_frames + 1:
        note = f"; its tag says {frames.promised_frames} frames, but it has {frames.num_frames}: is it several files?"
    return _by_av(clip, check_seconds, depth, Expected(counted_seconds=seconds, note=note))


def _by_av(clip: Clip, check_seconds: CheckSeconds, depth: Depth, expected: Expected = NOTHING_EXPECTED) -> Sound:
    found = _by_av_if_any(clip, check_seconds, depth, expected)
    if found is None:
        raise clip.unreadable("damaged, or in an unsupported format; is it audio?")
    return found


def _by_av_if_any(
    clip: Clip, check_seconds: CheckSeconds, depth: Depth, expected: Expected = NOTHING_EXPECTED
) -> Sound | None:
    """The recording opened by FFmpeg and checked as `depth` says; None if FFmpeg finds no supported container."""
    from hfprep.inputs.audio.av_decode import AvSound  # takes 0.1 s, and most data sets do not need it

    sound = AvSound.open(clip, expected)
    if sound is None:
        return None
    with contextlib.ExitStack() as stack:
        stack.callback(sound.close)
        if sound.num_frames is not None:
            check_seconds(sound.num_frames / sound.sampling_rate)
        if depth is Depth.WHOLE:
            with _reading(clip) as file:
                problem = sound.problem(file)
            if problem is not None:
                raise clip.unreadable(problem)
        stack.pop_all()
    return sound


def _frames(clip: Clip, check_seconds: CheckSeconds, depth: Depth) -> Frames | None:
    def look() -> Frames | None:
        with _reading(clip) as file:
            return walk_frames(file, clip.size, check_seconds)

    return _cached(clip, look) if depth is Depth.SEGMENT else look()


def _pages(clip: Clip, depth: Depth) -> Pages | None:
    """What a check of an Ogg file's pages finds; None for an estimate. Raises RejectedSample if they are damaged."""

    def look() -> Pages:
        with _reading(clip) as file:
            return read_pages(file)

    if depth is Depth.HEADER:
        return None
    pages = _cached(clip, look) if depth is Depth.SEGMENT else look()
    if pages.problem is not None:
        raise clip.unreadable(pages.problem)
    return pages


_Found = TypeVar("_Found")
_cache: OrderedDict[tuple[Any, ...], object] = OrderedDict()


def _cached(clip: Clip, look: Callable[[], _Found]) -> _Found:
    """`look()`, or the cached result for the same file, of which another segment was read before."""
    key = clip.version
    if key is None:  # a clip in memory is read for one segment only
        return look()
    if key not in _cache:
        _cache[key] = look()
        if len(_cache) > MAX_CACHED:
            with contextlib.suppress(KeyError):  # another thread was first
                _cache.popitem(last=False)
    found: _Found = _cache.get(key) or look()  # type: ignore[assignment]
    return found


def _reading(clip: Clip) -> BinaryIO:
    """The clip's bytes as a file, to check them."""
    if clip.size <= READ_AT_ONCE_BYTES:
        return io.BytesIO(clip.read_at(0, clip.size))
    return io.BufferedReader(ClipReader(clip), LOOK_BYTES)
