"""A codec from transformers on a device: samples to codes, with the library's class and weights unchanged.

Provides `CodecModel`. On loading, it encodes short clips alone and padded beside a longer one, to find out whether
padding changes real frames. It always does if the codec looks ahead, and in the shortest clips if the codec pads the
left with a reflection of the clip. Such clips may only be batched with clips of the same length.

An incomplete last frame is filled up with zeros, in a batch and alone. So the networks always see whole frames, and a
causal codec gives the same codes whatever follows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hfprep.errors import CheckpointError, ConfigError
from hfprep.models.precision import computing
from hfprep.recipes.codec.config import FAMILIES, MIN_FRAMES, CodecConfig
from hfprep.recipes.codec.schema import CODES

PRECISION = "fp32"
# The effect of padding is measured on noise of this many frames, beside a longer clip. A change may be too small to
# change a code here and still change codes of other clips, so all clips up to twice the longest that changed are
# suspect.
PROBE_FRAMES = (1, 3, 6, 10)
PROBE_LOUDNESS = 0.1
SUSPECT = 2


def open_codec(folder: Path) -> Any:
    """Load the library's model from the safetensors files of a folder, float32 on the CPU.

    Raises CheckpointError if the weights do not match config.json.
    """
    from transformers import AutoModel

    try:
        codec, report = AutoModel.from_pretrained(
            folder,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            dtype=torch.float32,
            output_loading_info=True,
        )
    except (torch.OutOfMemoryError, MemoryError):
        raise
    except Exception as error:
        raise CheckpointError(f"{folder}: transformers cannot load it ({error}); fetch the codec again") from error
    absent = sorted(report["missing_keys"])
    if absent:
        raise CheckpointError(f"{folder}: weights are missing: {', '.join(absent[:5])} ({len(absent)} in all)")
    return codec


def encode_plainly(
    folder: Path, config: CodecConfig, num_codebooks: int
) -> Callable[[np.ndarray], Mapping[str, np.ndarray]]:
    """The library's plain `encode`, one clip at a time on the CPU, as a reference for this module.

    Returns a function from samples, float32 (num_samples,), to `codes` (codebooks, T).
    """
    codec = open_codec(folder).eval()

    def codes(samples: np.ndarray) -> Mapping[str, np.ndarray]:
        whole = np.pad(samples, (0, -len(samples) % config.hop_length))
        with torch.no_grad():
            return {"codes": _encode(codec, torch.from_numpy(whole)[None], config, num_codebooks)[0].numpy()}

    return codes


def _encode(codec: Any, samples: Tensor, config: CodecConfig, num_codebooks: int) -> Tensor:
    """The library's codes (B, codebooks, T) of samples (B, T * hop_length)."""
    argument = FAMILIES[config.family].codebooks_argument
    wanted = {"bandwidth": config.bandwidth} if argument is None else {argument: num_codebooks}
    codes = codec.encode(samples[:, None], **wanted).audio_codes
    codes = codes[0] if codes.ndim == 4 else codes  # (num_chunks = 1, B, codebooks, T)
    return codes[:, :num_codebooks]


class CodecModel:
    """A codec's encoder and quantizer."""

    packs = False
    min_frames = MIN_FRAMES

    def __init__(self, codec: nn.Module, config: CodecConfig, num_codebooks: int) -> None:
        """Take a codec that is already on its device. Raises CheckpointError if its codes have the wrong shape."""
        self.codec: Any = codec.eval().requires_grad_(False)
        self.config = config
        self.num_codebooks = num_codebooks
        self.max_frames = config.max_frames
        self.dtype: torch.dtype = getattr(torch, config.code_dtype)
        self.pads_from = self._pads_from()

    @classmethod
    def load(
        cls, folder: Path, config: CodecConfig, num_codebooks: int, *, device: torch.device, precision: str = PRECISION
    ) -> CodecModel:
        """Load the safetensors files of a folder with AutoModel, to compute in float32.

        Raises ConfigError for another precision, CheckpointError if the weights do not match config.json.
        """
        if precision != PRECISION:
            raise ConfigError(f"--precision is {precision!r}; codecs compute in {PRECISION} only")
        return cls(open_codec(folder).to(device), config, num_codebooks)

    @property
    def device(self) -> torch.device:
        return self.codec.device

    def __call__(
        self, inputs: Tensor, lengths: Tensor, groups: frozenset[str] = frozenset({CODES})
    ) -> dict[str, Tensor]:
        """Codes of a padded batch: `codes` (B, codebooks, T), int16 or int32; T is the longest clip's frames.

        `inputs`: float32 (B, S) on the model's device, zero-padded; `lengths`: int64 (B,) on the CPU, in samples.
        Raises ValueError for a batch of another shape, and for padding that would change codes.
        """
        if inputs.ndim != 2 or lengths.shape != inputs.shape[:1]:
            raise ValueError(f"inputs {tuple(inputs.shape)} and lengths {tuple(lengths.shape)} must be (B, S) and (B,)")
        frames = [self.config.num_frames(count) for count in lengths.tolist()]
        if min(frames) < self.min_frames or max(frames) > self.max_frames:
            raise ValueError(f"clips have from {min(frames)} to {max(frames)} frames; allowed: 1 to {self.max_frames}")
        if min(frames) != max(frames) and min(frames) < self.pads_from:
            raise ValueError(
                f"padding changes the codes of clips under {self.pads_from} frames; batch them by equal length"
            )
        if CODES not in groups:
            return {}
        whole = max(frames) * self.config.hop_length
        return {"codes": self._codes(F.pad(inputs[:, :whole], (0, max(0, whole - inputs.shape[1]))))}

    def _codes(self, samples: Tensor) -> Tensor:
        """Codes (B, codebooks, T) of samples (B, T * hop_length)."""
        with torch.inference_mode(), computing(PRECISION, samples.device):
            return _encode(self.codec, samples, self.config, self.num_codebooks).to(self.dtype)

    def _pads_from(self) -> int:
        """The smallest number of frames from which a clip has the same codes in a padded batch as alone."""
        hop, longest, count = self.config.hop_length, PROBE_FRAMES[-1] + 1, len(PROBE_FRAMES)
        clips = PROBE_LOUDNESS * torch.randn(count, longest * hop, generator=torch.Generator().manual_seed(0))
        for clip, frames in zip(clips, PROBE_FRAMES, strict=True):
            clip[frames * hop :] = 0.0
        clips = clips.to(self.device)
        together = self._checked(self._codes(clips), count, longest)
        changed = 0
        for row, frames in enumerate(PROBE_FRAMES):
            alone = self._checked(self._codes(clips[row : row + 1, : frames * hop]), 1, frames)
            if not torch.equal(alone[0], together[row, :, :frames]):
                changed = frames
        return self.max_frames + 1 if changed == PROBE_FRAMES[-1] else SUSPECT * changed + 1

    def _checked(self, codes: Tensor, rows: int, frames: int) -> Tensor:
        """The codes, if they have the shape that follows from config.json; raises CheckpointError otherwise."""
        found, wanted = tuple(codes.shape), (rows, self.num_codebooks, frames)
        if found != wanted:
            raise CheckpointError(f"the codec's codes have the shape {found}; its config.json implies {wanted}")
        return codes
