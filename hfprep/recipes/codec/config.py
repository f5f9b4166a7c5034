"""What a codec's config.json says: sampling rate, samples a code, codebooks.

Gives `CodecConfig`, and `FAMILIES`, the codecs whose names for these things are known. The library's own configuration
classes do the reading, so that what they derive from the file is theirs.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hfprep.errors import CheckpointError, ConfigError


@dataclass(frozen=True)
class Family:
    """The names that a configuration class has for samples a code and codebooks, and of the codebooks in `encode`.

    `codebooks_argument` is None where `encode` is asked for a bandwidth, and gives all codebooks at the largest.
    `fewest` names the least number of codebooks that can be asked for.
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
MAX_SECONDS = 300.0  # Mimi was trained with positions for 320 s; longer clips are to be cut
NO_SCALES = "its codes stand for sound only together with scales, which are not kept; use one without"


@dataclass(frozen=True)
class CodecConfig:
    """A codec's sizes: Hz, samples at that rate a code, values of a code, codebooks."""

    family: str
    sampling_rate: int
    hop_length: int
    codebook_size: int
    num_codebooks: int
    fewest_codebooks: int = 1
    bandwidth: float | None = None

    @property
    def code_rate(self) -> float:
        """Codes a second, of each codebook."""
        return self.sampling_rate / self.hop_length

    @property
    def code_dtype(self) -> str:
        """Of codes: int16 where every code fits, and the size itself, by which they are padded; else int32."""
        return "int16" if self.codebook_size < 1 << 15 else "int32"

    def num_frames(self, num_samples: int) -> int:
        """Codes, of each codebook, of a clip of so many samples; a last part of a frame counts as one."""
        return math.ceil(num_samples / self.hop_length)

    @classmethod
    def read(cls, path: Path) -> CodecConfig:
        """Read a config.json.

        Raises ConfigError for a codec that this recipe cannot use, CheckpointError for what is no configuration.
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


def max_frames(config: CodecConfig) -> int:
    """The frames of the longest clip that is taken."""
    return int(MAX_SECONDS * config.code_rate)


def _family(path: Path) -> str:
    """The model type that a config.json names; one of `FAMILIES`."""
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
        family = content["model_type"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: is not the config.json of a transformers model ({error!r})") from error
    if family not in FAMILIES:
        raise ConfigError(f"--codec-model: {path} is of a model {family!r}; it must be {' or '.join(FAMILIES)}")
    return str(family)


def _check(path: Path, found: Any) -> None:
    """Raise ConfigError for what this recipe does not do with a codec."""
    channels = getattr(found, "audio_channels", 1)
    if channels != 1:
        raise ConfigError(f"--codec-model: {path} takes {channels} channels; it must take one, as clips are read mono")
    if getattr(found, "normalize", False):
        raise ConfigError(f"--codec-model: {path} normalises loudness (normalize); {NO_SCALES}")
    if getattr(found, "chunk_length_s", None) is not None:
        raise ConfigError(f"--codec-model: {path} codes overlapping chunks (chunk_length_s); use one that does not")
