"""Sound files in the kinds that PyAV encodes, for tests of what reads them."""

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np


def tone(seconds: float, sampling_rate: int, *, channels: int = 1, seed: int = 0) -> np.ndarray:
    """A tone in a little noise, float32 (channels, num_samples), of which every encoder makes frames of some size."""
    time = np.arange(round(seconds * sampling_rate)) / sampling_rate
    noise = np.random.default_rng(seed).standard_normal(len(time))
    return np.tile(0.3 * np.sin(2 * np.pi * 440 * time) + 0.03 * noise, (channels, 1)).astype(np.float32)


def encode(
    path: Path,
    container: str,
    codec: str,
    samples: np.ndarray,
    sampling_rate: int,
    *,
    options: dict[str, str] | None = None,
    codec_options: dict[str, str] | None = None,
    bit_rate: int | None = None,
    late_seconds: float = 0.0,
) -> Path:
    """Write float32 (channels, num_samples) as FFmpeg's `container` and `codec` have it, from `late_seconds` on."""
    layout = "mono" if len(samples) == 1 else "stereo"
    with av.open(str(path), "w", format=container, options=options or {}) as output:
        stream: Any = output.add_stream(codec, rate=sampling_rate, layout=layout)
        stream.options = {"strict": "-2"} | (codec_options or {})
        if bit_rate is not None:
            stream.bit_rate = bit_rate
        whole = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples), format="fltp", layout=layout)
        whole.sample_rate, whole.time_base = sampling_rate, Fraction(1, sampling_rate)
        kinds = stream.codec_context.codec.audio_formats
        resampler = av.AudioResampler(kinds[0].name if kinds else "s16", layout, sampling_rate)
        queue: Any = av.AudioFifo()
        for frame in resampler.resample(whole):
            queue.write(frame)
        stream.codec_context.open()
        size = stream.codec_context.frame_size or 1024
        frames = [queue.read(min(size, queue.samples)) for _ in range(-(-queue.samples // size))]
        for frame in (*frames, None):
            for packet in stream.encode(frame):
                late = round(late_seconds / packet.time_base)
                packet.pts, packet.dts = packet.pts + late, packet.dts + late
                output.mux(packet)
    return path


# Suffix, FFmpeg's container and codec, Hz, and the bit rate where the encoder needs one.
KINDS: tuple[tuple[str, str, str, int, int | None], ...] = (
    ("m4a", "ipod", "aac", 44_100, None),
    ("mov", "mov", "alac", 44_100, None),
    ("aac", "adts", "aac", 16_000, None),
    ("webm", "webm", "libopus", 48_000, None),
    ("mka", "matroska", "flac", 16_000, None),
    ("wma", "asf", "wmav2", 44_100, 64_000),
    ("flv", "flv", "aac", 44_100, None),
    ("avi", "avi", "libmp3lame", 44_100, None),
    ("ts", "mpegts", "aac", 16_000, None),
    ("mpg", "mpeg", "mp2", 44_100, None),
    ("ac3", "ac3", "ac3", 48_000, None),
    ("eac3", "eac3", "eac3", 48_000, None),
    ("amr", "amr", "libopencore_amrnb", 8_000, 12_200),
    ("wv", "wv", "wavpack", 16_000, None),
    ("tta", "tta", "tta", 16_000, None),
    ("g722", "g722", "g722", 16_000, None),
    ("oga", "ogg", "flac", 16_000, None),
    ("caf", "caf", "alac", 16_000, None),
    ("mp2", "mp2", "mp2", 44_100, None),
    ("mp3", "mp3", "libmp3lame", 44_100, None),
    ("opus", "ogg", "libopus", 48_000, None),
    ("flac", "flac", "flac", 16_000, None),
    ("w64", "w64", "pcm_s16le", 16_000, None),
    ("au", "au", "pcm_s16be", 16_000, None),
    ("aiff", "aiff", "pcm_s16be", 16_000, None),
    ("wav", "wav", "pcm_s16le", 16_000, None),
)


def encode_kind(folder: Path, kind: tuple[str, str, str, int, int | None], seconds: float, *, seed: int = 0) -> Path:
    """A file of one of `KINDS`, of about that length: codecs fill up their last frame."""
    suffix, container, codec, rate, bit_rate = kind
    path = folder / f"{suffix}-{seed}.{suffix}"
    return encode(path, container, codec, tone(seconds, rate, seed=seed), rate, bit_rate=bit_rate)


def ogg_checksum(page: bytes) -> int:
    """CRC-32 of RFC 3533, bit by bit."""
    value = 0
    for byte in page:
        value ^= byte << 24
        for _ in range(8):
            value = (value << 1 ^ 0x04C11DB7 if value & 0x80000000 else value << 1) & 0xFFFFFFFF
    return value
