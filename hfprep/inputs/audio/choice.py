"""Chooses the decoder that reads a recording completely, by inspecting the file.

libsndfile is preferred: earlier outputs have its values. But it estimates the length of an mp3, skips damaged Ogg pages
and reads only the first of several joined recordings. So the frames of an mp3 and the pages of an Ogg file are checked,
and FFmpeg decodes what libsndfile would not read to the end.
"""

import contextlib
import io
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Any, BinaryIO, TypeVar

import soundfile

from hfprep.errors import Reason, RejectedSample
from hfprep.inputs.audio.chunks import BEHIND
from hfprep.inputs.audio.flac import MAGIC, flac_problem
from hfprep.inputs.audio.mpeg import Frames, walk_frames
from hfprep.inputs.audio.ogg import read_pages
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

_Found = TypeVar("_Found")
_cache: OrderedDict[tuple[Any, ...], object] = OrderedDict()


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
    with contextlib.ExitStack() as stack:
        sound = _Choice(clip, check_seconds, depth, stack).sound()
        if sound is None:
            raise clip.unreadable("damaged, or in an unsupported format; is it audio?")
        yield sound


@dataclass(frozen=True, slots=True)
class _Choice:
    """Opens one clip; what it opens is closed with `stack`."""

    clip: Clip
    check_seconds: CheckSeconds
    depth: Depth
    stack: contextlib.ExitStack

    def sound(self) -> Sound | None:
        """The recording; None if no decoder knows its format."""
        clip = self.clip
        start = clip.read_at(0, SNIFF_BYTES)
        if any(start[at : at + len(sign)] == sign for at, sign in FOREIGN_SIGNATURES):
            return self._by_av()
        if clip.suffix in BARE_SUFFIXES and not start.startswith(KNOWN_SIGNATURES):
            return self._by_av(Expected(bare_format=BARE_SUFFIXES[clip.suffix]))
        if start.startswith(b"OggS"):
            return self._ogg()
        if start.startswith(FRAMES_STARTS):
            frames = self._found(lambda file: walk_frames(file, clip.size, self.check_seconds))
            if frames is not None:
                return self._mpeg(frames)
        return self._other(start)

    def _by_sndfile(self, *, talkative: bool = False) -> SndfileSound:
        sound = SndfileSound(self.clip, talkative=talkative)
        self.stack.callback(sound.close)
        return sound

    def _by_av(self, expected: Expected = NOTHING_EXPECTED) -> Sound | None:
        """The recording opened by FFmpeg and checked as `depth` says; None if FFmpeg finds no supported container."""
        from hfprep.inputs.audio.av_decode import AvSound  # takes 0.1 s, and most data sets do not need it

        sound = AvSound.open(self.clip, expected)
        if sound is None:
            return None
        self.stack.callback(sound.close)
        self._check_length(sound)
        if self.depth is Depth.WHOLE:
            with self._reading() as file:
                self._refuse(sound.problem(file))
        return sound

    def _other(self, start: bytes) -> Sound:
        """wav, flac, aiff and other formats of libsndfile, otherwise FFmpeg."""
        clip = self.clip
        try:
            sound = self._by_sndfile(talkative=start.startswith(FRAMES_STARTS))
        except soundfile.LibsndfileError as error:
            found = self._by_av()
            if found is not None:
                return found
            hint = "; is it audio?" if error.code == UNRECOGNISED_FORMAT else ""
            raise clip.unreadable(f"{error.error_string.strip().rstrip('.')}{hint}") from error
        if sound.format == "MP3":
            raise clip.unreadable("damaged: its first frame is not where it should be")
        if sound.format not in CHECKED:
            message = f"{clip.name}: cannot check if a {sound.format} file is complete; convert it to flac or wav"
            raise RejectedSample(Reason.AUDIO_UNSUPPORTED, message)
        if sound.num_frames == 0 or sound.subtype.startswith("MPEG"):
            found = self._by_av()
            if found is not None:
                return found
        self._check_length(sound)
        if self.depth is Depth.WHOLE:
            self._refuse(sound.cut())
            look = flac_problem if start.startswith(MAGIC) else BEHIND.get(start[:4])
            if look is not None:
                with self._reading() as file:
                    self._refuse(look(file, clip.size))
        return sound

    def _ogg(self) -> Sound | None:
        sound = None
        with contextlib.suppress(soundfile.LibsndfileError):
            sound = self._by_sndfile()
            self._check_length(sound)
        if self.depth is Depth.HEADER:
            return sound or self._by_av(Expected(promising=False))
        pages = self._found(read_pages)
        self._refuse(pages.problem)
        if sound is not None and pages.num_audio_streams == 1:
            return sound
        return self._by_av(Expected(promising=pages.num_links == 1))

    def _mpeg(self, frames: Frames) -> Sound | None:
        """An mp3 or ADTS file whose frames have been counted."""
        self._refuse(frames.problem)
        if frames.kind == "mp3" and not frames.has_zeros:
            with contextlib.suppress(soundfile.LibsndfileError):
                sound = self._by_sndfile(talkative=True)
                least = frames.num_samples - frames.samples_per_frame
                if sound.num_frames is not None and sound.num_frames >= least:
                    sound.least_frames = least
                    if frames.promised_frames is None:
                        sound.num_frames = frames.num_samples
                    return sound
        seconds = (frames.num_samples + (frames.trimmed if frames.has_zeros else 0)) / frames.sampling_rate
        note = "; a free-format mp3 that cannot be decoded: convert it to flac" if frames.is_free else ""
        promised = frames.promised_frames
        if promised is not None and frames.num_frames > promised + 1:
            note = f"; its tag says {promised} frames, but it has {frames.num_frames}: is it several files?"
        return self._by_av(Expected(counted_seconds=seconds, note=note))

    def _check_length(self, sound: Sound) -> None:
        if sound.num_frames is not None:
            self.check_seconds(sound.num_frames / sound.sampling_rate)

    def _refuse(self, problem: str | None) -> None:
        if problem is not None:
            raise self.clip.unreadable(problem)

    def _found(self, look: Callable[[BinaryIO], _Found]) -> _Found:
        """What `look` finds in the file; for a segment kept, as other segments of the file are read next."""
        key = self.clip.version if self.depth is Depth.SEGMENT else None  # a clip in memory has no version
        found: Any = None if key is None else _cache.get(key)
        if found is None:
            with self._reading() as file:
                found = look(file)
            if key is not None:
                _cache[key] = found
            if len(_cache) > MAX_CACHED:
                with contextlib.suppress(KeyError):  # another thread was first
                    _cache.popitem(last=False)
        kept: _Found = found
        return kept

    def _reading(self) -> BinaryIO:
        """The clip's bytes as a file, to check them."""
        if self.clip.size <= READ_AT_ONCE_BYTES:
            return io.BytesIO(self.clip.read_at(0, self.clip.size))
        return io.BufferedReader(ClipReader(self.clip), LOOK_BYTES)
