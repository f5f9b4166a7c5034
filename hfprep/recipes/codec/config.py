"""A codec's config.json: sampling rate, samples per code, codebooks; and the codec's input.

Provides `CodecConfig`, `CodecAudio`, and `FAMILIES`, the supported codecs and what they call these settings. The file
is read with the library's own configuration classes, so derived values are the library's.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hfprep.errors import CheckpointError, ConfigError, Reason, RejectedSample


@dataclass(frozen=True)
class Family:
    """Names in a configuration class (samples per code, codebooks), and of the codebooks argument of `encode`.

    `codebooks_argument` is None if `encode` takes a bandwidth instead; the largest bandwidth gives all codebooks.
    `fewest` is the config's name for the smallest number of codebooks that can be requested.
    """

    hop_length: str
    num_codebooks: str
    codebooks_argument: str | None
    fewest: str | None = None


FAMILIES: Mapping[str, Family] = {
    "mimi": Family("frame_size", "num_quantizers", "num_quantizers", fewest="num_semantic_quantizers"),
    "encodec": Family("hop_length", "num_quantizers", None),
    "dac": Family("hop_length", "n_codebooks", "n_quantizers"),
}
MIN_FRAMES = 1
LOUDEST = 1e6  # full scale is 1.0; far beyond it, a network's sums overflow and its codes are meaningless
MAX_SECONDS = 300.0  # Mimi was trained with positions for 320 s; longer clips must be cut
NO_SCALES = "its codes can only be decoded together with scales, which are not stored; use a codec without them"


@dataclass(frozen=True)
class CodecConfig:
    """A codec's sampling rate (Hz), samples per code, codebook size and number of codebooks."""

    family: str
    sampling_rate: int
    hop_length: int
    codebook_size: int
    num_codebooks: int
    fewest_codebooks: int = 1
    bandwidth: float | None = None

    @property
    def code_rate(self) -> float:
        """Codes per second and codebook."""
        return self.sampling_rate / self.hop_length

    @property
    def code_dtype(self) -> str:
        """int16 if every code fits, and the codebook size too, which is the padding value; else int32."""
        return "int16" if self.codebook_size < 1 << 15 else "int32"

    def num_frames(self, num_samples: int) -> int:
        """Codes per codebook of a clip with `num_samples` samples; an incomplete last frame counts."""
        return math.ceil(num_samples / self.hop_length)

    @property
    def max_frames(self) -> int:
        """The number of frames of the longest clip that is accepted."""
        return int(MAX_SECONDS * self.code_rate)

    @classmethod
    def read(cls, path: Path) -> CodecConfig:
        """Read a config.json.

        Raises ConfigError for a codec that is not supported, CheckpointError for a file that is not a configuration.
        """
        family = _family(path)
        try:
            from transformers import AutoConfig

            found = AutoConfig.from_pretrained(path.parent, local_files_only=True, trust_remote_code=False)
            names = FAMILIES[family]
            config = cls(
                family=family,
                sampling_rate=int(found.sampling_rate),
                hop_length=int(getattr(found, names.hop_length)),
                codebook_size=int(found.codebook_size),
                num_codebooks=int(getattr(found, names.num_codebooks)),
                fewest_codebooks=int(getattr(found, names.fewest)) if names.fewest else 1,
                bandwidth=float(max(found.target_bandwidths)) if names.codebooks_argument is None else None,
            )
        except Exception as error:
            raise CheckpointError(f"{path}: transformers cannot read it ({error}); fetch the codec again") from error
        _check(path, found)
        return config


@dataclass(frozen=True)
class CodecAudio:
    """A codec's input: a clip's unmodified samples, float32 (num_samples,); a frame is the samples of one code."""

    config: CodecConfig

    @property
    def sampling_rate(self) -> int:
        return self.config.sampling_rate

    def num_frames(self, num_samples: int) -> int:
        return self.config.num_frames(num_samples)

    def prepare(self, samples: np.ndarray, *, on_gpu: bool) -> np.ndarray:
        del on_gpu
        # `not ... <` instead of `>=`, which would be false for NaN.
        if not max(samples.max(), -samples.min()) < LOUDEST:
            raise RejectedSample(Reason.AUDIO_NOT_FINITE, "the samples are far beyond full scale: scale them to +-1.0")
        return samples


def _family(path: Path) -> str:
    """The model type in a config.json, which must be one of `FAMILIES`."""
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
        family = content["model_type"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: is not the config.json of a transformers model ({error!r})") from error
    if family not in FAMILIES:
        raise ConfigError(f"--codec-model: {path} has the model type {family!r}; it must be {' or '.join(FAMILIES)}")
    return str(family)


def _check(path: Path, found: Any) -> None:
    """Raise ConfigError if the codec uses something that this recipe does not support."""
    channels = getattr(found, "audio_channels", 1)
    if channels != 1:
        raise ConfigError(f"--codec-model: {path} takes {channels} channels; it must take one, as clips are read mono")
    if getattr(found, "normalize", False):
        raise ConfigError(f"--codec-model: {path} normalises loudness (normalize); {NO_SCALES}")
    if getattr(found, "chunk_length_s", None) is not None:
        raise ConfigError(
            f"--codec-model: {path} encodes overlapping chunks (chunk_length_s); use a codec that does not"
        )
