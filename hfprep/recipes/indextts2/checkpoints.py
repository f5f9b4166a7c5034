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
    codec_shapes,
    conformer_names,
    emotion_branch,
    emotion_names,
    encoder_shapes,
    perceiver_names,
    position_rows,
    semantic_codec,
)
from hfprep.recipes.tensors import Shapes, check_tensors, fill, shape_of, shapes_of, under

CONDITIONER_PREFIXES = ("conditioning_encoder.", "perceiver_encoder.")


def expected_shapes(config: ModelConfig, semantic_config: SemanticEncoderConfig) -> dict[str, Shapes]:
    """The shapes of all required tensors: {file in a models folder: {tensor name: shape}}."""
    conditioner, emotion = _branches({}, config, semantic_size=semantic_config.hidden_size)
    return {
        GPT_FILE: shapes_of(conditioner, _names(conditioner)) | shapes_of(emotion, emotion_names(emotion)),
        CODEC_FILE: codec_shapes(config.semantic_codec),
        **encoder_shapes(semantic_config),
    }


def load_conditioners(path: Path, config: ModelConfig, *, semantic_size: int) -> tuple[Conditioner, EmotionConditioner]:
    """Load both conditioning branches from gpt.pth (a state dict, or {"model": state dict}), memory-mapped.

    Raises CheckpointError that lists what is missing, unexpected or of another shape.
    """
    tensors = read_torch_file(path)
    conditioner, emotion = _branches(tensors, config, semantic_size=semantic_size)
    of_conditioner, of_emotion = _names(conditioner), emotion_names(emotion)
    shapes = shapes_of(conditioner, of_conditioner) | shapes_of(emotion, of_emotion)
    check_tensors(tensors, shapes, path=path, needed=CONDITIONER_PREFIXES + EMOTION_PREFIXES)
    fill(conditioner, {ours: tensors[theirs] for ours, theirs in of_conditioner.items()})
    fill(emotion, {ours: tensors[theirs] for ours, theirs in of_emotion.items()})
    return conditioner, emotion


def load_semantic_codec(path: Path, config: ModelConfig) -> SemanticCodec:
    """Load the RepCodec encoder and quantizer from a safetensors file, memory-mapped; its weight norm is folded.

    Raises CheckpointError that lists what is missing, unexpected or of another shape.
    """
    tensors = read_safetensors([path])
    shapes = codec_shapes(config.semantic_codec)
    check_tensors(tensors, shapes, path=path, needed=CODEC_PREFIXES, ignored=CODEC_IGNORED)
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


def _names(conditioner: Conditioner) -> dict[str, str]:
    return {
        **under("conformer.", "conditioning_encoder.", conformer_names(len(conditioner.conformer.blocks))),
        **under("perceiver.", "perceiver_encoder.", perceiver_names(conditioner.perceiver)),
    }
