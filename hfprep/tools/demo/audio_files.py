"""Writes audio files in many formats, whose bytes depend only on their samples.

Provides `AudioKind`, the list `KINDS` and `write_audio`. libsndfile writes the current time into float wav files and a
random number into ogg files; both are replaced.
"""

import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile

from hfprep.inputs.audio.ogg import CHECKSUM, SERIAL, page_checksum, page_length

OGG_SERIAL = 1


@dataclass(frozen=True, slots=True)
class AudioKind:
    """A kind of file: its suffix, libsndfile's format and subtype, sampling rate (Hz) and channels."""

    suffix: str
    format: str
    subtype: str
    sampling_rate: int
    channels: int = 1


KINDS = (
    AudioKind("wav", "WAV", "PCM_16", 16_000),
    AudioKind("wav", "WAV", "PCM_24", 22_050),
    AudioKind("wav", "WAV", "FLOAT", 24_000),
    AudioKind("flac", "FLAC", "PCM_16", 44_100, 2),
    AudioKind("ogg", "OGG", "VORBIS", 16_000),
    AudioKind("mp3", "MP3", "MPEG_LAYER_III", 48_000),
    AudioKind("wav", "WAV", "PCM_16", 8_000),
    AudioKind("opus", "OGG", "OPUS", 48_000),
    AudioKind("flac", "FLAC", "PCM_24", 32_000),
    AudioKind("wav", "WAV", "PCM_16", 48_000, 2),
    AudioKind("mp3", "MP3", "MPEG_LAYER_III", 24_000, 2),
    AudioKind("wav", "WAV", "PCM_16", 11_025),
)


def write_audio(path: Path, samples: np.ndarray, kind: AudioKind) -> None:
    """Write float samples, (num_samples,) or (num_samples, channels), full scale 1.0."""
    soundfile.write(path, samples, kind.sampling_rate, format=kind.format, subtype=kind.subtype)
    if kind.format == "WAV" and kind.subtype == "FLOAT":
        path.write_bytes(_without_peak_time(path.read_bytes()))
    elif kind.format == "OGG":
        path.write_bytes(_with_serial(path.read_bytes(), OGG_SERIAL))


def _without_peak_time(wav: bytes) -> bytes:
    """Zero the time stamp of the PEAK chunk: magic, size, version, time."""
    at = wav.find(b"PEAK", 0, 256)
    return wav if at < 0 else wav[: at + 12] + bytes(4) + wav[at + 16 :]


def _with_serial(ogg: bytes, serial: int) -> bytes:
    """Set the serial number of every page of a stream, and recompute the checksums."""
    found, at = b"", 0
    while length := page_length(ogg, at):
        page = bytearray(ogg[at : at + length])
        struct.pack_into("<I", page, SERIAL.start, serial)
        struct.pack_into("<I", page, CHECKSUM.start, page_checksum(bytes(page)))
        found, at = found + page, at + length
    return found
