"""The published IndexTTS-2 checkpoint files: which tensors they must have, and how they are loaded.

Provides loaders for the semantic codec and the conditioning branches, and `expected_shapes`, the name and shape of
every required tensor (random model sets can be made from it). Weights stay memory-mapped, so unused tensors (most of
gpt.pth) are never read. `recipes.networks` maps tensor names to the networks.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from hfprep.models.conditioner import Conditioner, EmotionConditioner
from hfprep.models.configs import NUM_LATENTS, SemanticEncoderConfig
from hfprep.models.semantic_codec import SemanticCodec
from hfprep.models.tensor_files import read_safetensors, read_torch_file
from hfprep.recipes.finding import GPT_FILE
from hfprep.recipes.indextts2.config import CODEC_FILE, ModelConfig
from hfprep.recipes.networks import (
    CODEC_IGNORED,
    CODEC_PREFIXES,
    EMOTION_PREFIXES,
    branch_shapes,
    codec_shapes,
    emotion_branch,
    encoder_shapes,
    load_branches,
    position_rows,
    semantic_codec,
)
from hfprep.recipes.tensors import Shapes, check_tensors, shape_of

CONDITIONER_PREFIXES = ("conditioning_encoder.", "perceiver_encoder.")


def expected_shapes(config: ModelConfig, semantic_config: SemanticEncoderConfig) -> dict[str, Shapes]:
    """The shapes of all required tensors: {file in a models folder: {tensor name: shape}}."""
    return {
        GPT_FILE: branch_shapes(*_branches({}, config, semantic_size=semantic_config.hidden_size)),
        CODEC_FILE: codec_shapes(config.semantic_codec),
        **encoder_shapes(semantic_config),
    }


def load_conditioners(path: Path, config: ModelConfig, *, semantic_size: int) -> tuple[Conditioner, EmotionConditioner]:
    """Load both conditioning branches from gpt.pth (a state dict, or {"model": state dict}), memory-mapped.

    Raises CheckpointError that lists what is missing, unexpected or of another shape.
    """
    tensors = read_torch_file(path)
    branches = _branches(tensors, config, semantic_size=semantic_size)
    load_branches(tensors, *branches, path=path, needed=CONDITIONER_PREFIXES + EMOTION_PREFIXES)
    return branches


def load_semantic_codec(path: Path, config: ModelConfig) -> SemanticCodec:
    """Load the RepCodec encoder and quantizer from a safetensors file, memory-mapped; its weight norm is folded.

    Raises CheckpointError that lists what is missing, unexpected or of another shape.
    """
    tensors = read_safetensors([path])
    wanted = codec_shapes(config.semantic_codec)
    check_tensors(tensors, wanted, path=path, needed=CODEC_PREFIXES, ignored=CODEC_IGNORED)
    return semantic_codec(tensors, config.semantic_codec)


def _branches(
    tensors: Mapping[str, Tensor], config: ModelConfig, *, semantic_size: int
) -> tuple[Conditioner, EmotionConditioner]:
    """Both branches on the meta device; widths that are not in the config come from the tensors' shapes."""
    latents = shape_of(tensors, "perceiver_encoder.latents", (NUM_LATENTS, config.model_dim))
    with torch.device("meta"):
        conditioner = Conditioner(
            config.condition,
            input_size=semantic_size,
            model_dim=config.model_dim,
            num_latents=latents[0],
            position_rows=position_rows(tensors, CONDITIONER_PREFIXES[0]),
        )
    return conditioner, emotion_branch(tensors, config, semantic_size=semantic_size)
