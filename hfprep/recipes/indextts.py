"""What the IndexTTS families share: w2v-bert-2.0 as the first network, its input and its precisions.

The input is a clip's input features, or its samples, from which a GPU computes them. Provides `SemanticModelSet`,
`SemanticAudio`, and `semantic_inputs` for the models.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hfprep.models.configs import POSITION_ROWS
from hfprep.models.input_features import SAMPLING_RATE, check_waveform, extract_input_features, num_input_frames
from hfprep.models.tensor_shapes import read_shapes
from hfprep.recipes.base import PRECISIONS, resampling
from hfprep.recipes.finding import ModelFiles

if TYPE_CHECKING:
    import torch
    from torch import Tensor

MIN_FRAMES = 3  # of 20 ms, of which a Conformer makes one; the other networks need fewer
MAX_FRAMES = 2 * POSITION_ROWS  # (frames - 1) // 2 must stay below the number of rows
TEXT_EMBEDDING = "text_embedding.weight"
TEXT_ROWS = (TEXT_EMBEDDING, "text_head.weight", "text_head.bias")
"""The tensors of gpt.pth with a row per text id, plus one row."""
LANGUAGE_EMBEDDING = "lang_embedding.weight"
"""IndexTTS-2.5 only: a row per language, plus one."""
_SEMANTIC = ("semantic_model", "w2v_stat")  # prefixes of its files' names

log = logging.getLogger(__name__)


def semantic_files(located: ModelFiles) -> dict[str, Path]:
    """The files of w2v-bert-2.0 that features depend on, by their names in stats.json."""
    return {f"semantic_model/{path.name}": path for path in (located.semantic_config, *located.semantic_weights)}


def semantic_settings(sha256: Mapping[str, str], *, precision: str, audio_sr: int) -> dict[str, str]:
    """What semantic features depend on."""
    files = {name: value for name, value in sha256.items() if name.startswith(_SEMANTIC)}
    return files | {"audio_sr": resampling(audio_sr), "precision": precision}


class SemanticModelSet:
    """The part of a model set that the semantic encoder determines."""

    precisions = PRECISIONS

    def packs(self, device: torch.device) -> bool:
        from hfprep.models.masking import packs  # it imports torch

        return packs(device)


@dataclass(frozen=True)
class SemanticAudio:
    """Samples at 16 kHz; a frame is 20 ms.

    On a CPU, input features, float32 (num_frames, 160), are computed while clips are loaded. On a GPU, or with
    `samples_only`, the model gets the samples.
    """

    samples_only: bool = False
    sampling_rate = SAMPLING_RATE

    def num_frames(self, num_samples: int) -> int:
        return num_input_frames(num_samples)

    def prepare(self, samples: np.ndarray, *, on_gpu: bool) -> np.ndarray:
        if on_gpu or self.samples_only:
            check_waveform(samples)
            return samples
        return extract_input_features(samples)


def semantic_inputs(inputs: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Input features, float32 (B, T, 160), and frames per clip, int64 (B,), of a padded batch.

    inputs: the output of `SemanticAudio`, either samples (B, S), or input features, which are returned unchanged.
    """
    if inputs.ndim != 2:
        return inputs, lengths
    import torch

    from hfprep.models.batch_input_features import batch_input_features

    frames = [num_input_frames(count) for count in lengths.tolist()]
    return batch_input_features(inputs, lengths), torch.tensor(frames)


def warn_of_larger(tokenizer: Path, size: int, checkpoint: Path, configured: int) -> None:
    """Warn if a tokenizer has more pieces than the checkpoint has rows. Features do not depend on these rows.

    `configured` is the number in config.yaml, used for a checkpoint without a text embedding.
    """
    embedding = read_shapes(checkpoint).get(TEXT_EMBEDDING)
    known = embedding[0] - 1 if embedding else configured
    if size > known:
        log.warning(
            "the tokenizer %s has %d pieces, but the checkpoint %s has rows for %d: features are unaffected, but "
            "the trainer will have to grow text_embedding and text_head (or use `extend-checkpoint`)",
            tokenizer, size, checkpoint, known,
        )  # fmt: skip
