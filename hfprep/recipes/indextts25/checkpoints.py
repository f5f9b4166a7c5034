"""The published IndexTTS-2.5 checkpoint files: which tensors they must have, and how they are loaded.

Provides loaders for codec.pth and the emotion branch of gpt.pth, and `expected_shapes` (random model sets can be made
from it). Weights stay memory-mapped, so unused tensors (the GPT; the optimizer state, two thirds of codec.pth) are
never read. campplus.py loads the speaker network; `recipes.networks` maps tensor names to the networks.
"""

from __future__ import annotations

from pathlib import Path

import torch

from hfprep.models.conditioner import EmotionConditioner
from hfprep.models.configs import SemanticEncoderConfig
from hfprep.models.downsampled_codec import DownsampledCodec
from hfprep.models.tensor_files import read_torch_file
from hfprep.recipes.finding import GPT_FILE
from hfprep.recipes.indextts25.campplus import PUBLISHED, campplus_shapes
from hfprep.recipes.indextts25.config import CAMPPLUS_FILE, CODEC_FILE, Config
from hfprep.recipes.networks import (
    CODEC_IGNORED,
    CODEC_PREFIXES,
    EMOTION_PREFIXES,
    branch_shapes,
    codec_shapes,
    emotion_branch,
    encoder_shapes,
    load_branches,
    semantic_codec,
)
from hfprep.recipes.tensors import Shapes, check_tensors, fill

_DOWN = "down."


def load_codec(path: Path, config: Config) -> DownsampledCodec:
    """Load the codec from codec.pth ({"model": state dict, ...}), memory-mapped; its weight norm is folded.

    Raises CheckpointError that lists what is missing, unexpected or of another shape.
    """
    tensors = read_torch_file(path)
    shapes = downsampled_codec_shapes(config)
    check_tensors(tensors, shapes, path=path, needed=(_DOWN, *CODEC_PREFIXES), ignored=CODEC_IGNORED)
    codec = semantic_codec(tensors, config.semantic_codec)
    with torch.device("meta"):
        whole = DownsampledCodec(codec)
    fill(whole.down, {kind: tensors[f"{_DOWN}{kind}"] for kind in ("weight", "bias")})
    return whole


def load_emotion(path: Path, config: Config, *, semantic_size: int) -> EmotionConditioner:
    """Load the emotion branch from gpt.pth (a state dict, or {"model": state dict}), memory-mapped.

    Raises CheckpointError that lists what is missing, unexpected or of another shape.
    """
    tensors = read_torch_file(path)
    emotion = emotion_branch(tensors, config, semantic_size=semantic_size)
    load_branches(tensors, emotion, path=path, needed=EMOTION_PREFIXES)
    return emotion


def downsampled_codec_shapes(config: Config) -> Shapes:
    """Names and shapes of the required tensors of codec.pth."""
    size = config.semantic_codec.hidden_size
    shapes: Shapes = {f"{_DOWN}weight": (size, size, 3), f"{_DOWN}bias": (size,)}
    return shapes | codec_shapes(config.semantic_codec)


def expected_shapes(config: Config, semantic_config: SemanticEncoderConfig) -> dict[str, Shapes]:
    """The shapes of all required tensors, CAM++ at its published widths: {file in a models folder: {name: shape}}."""
    return {
        GPT_FILE: branch_shapes(emotion_branch({}, config, semantic_size=semantic_config.hidden_size)),
        CODEC_FILE: downsampled_codec_shapes(config),
        CAMPPLUS_FILE: campplus_shapes(PUBLISHED),
        **encoder_shapes(semantic_config),
    }
