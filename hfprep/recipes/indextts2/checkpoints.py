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
from hfprep.models.configs import NUM_LATENTS
from hfprep.models.conformer import POSITION_ROWS
from hfprep.models.semantic_codec import SemanticCodec
from hfprep.models.semantic_config import SemanticEncoderConfig
from hfprep.models.semantic_encoder import SemanticEncoder
from hfprep.models.tensor_files import read_safetensors, read_torch_file
from hfprep.recipes import tensors as named_tensors
from hfprep.recipes.indextts2.config import ModelConfig
from hfprep.recipes.networks import (
    CODEC_IGNORED,
    CODEC_PREFIXES,
    EMOTION_PREFIXES,
    SEMANTIC_PREFIXES,
    codec_shapes,
    conformer_names,
    emotion_branch,
    emotion_names,
    perceiver_names,
    position_rows,
    semantic_codec,
    semantic_shapes,
)
from hfprep.recipes.tensors import fill, shape_of, shapes_of, under

GPT_FILE = "gpt.pth"
CODEC_FILE = "semantic_codec/model.safetensors"
SEMANTIC_FILE = "w2v-bert-2.0/model.safetensors"
STATISTICS_FILE = "wav2vec2bert_stats.pt"

CONDITIONER_PREFIXES = ("conditioning_encoder.", "perceiver_encoder.")

# Tensors of the published files that no feature depends on. Other unknown tensors are ignored too, except under the
# prefixes of needed tensors, where they mean another architecture and are an error.
IGNORED_PREFIXES: dict[str, tuple[str, ...]] = {
    GPT_FILE: (
        "gpt.",
        "text_embedding.",
        "mel_embedding.",
        "text_pos_embedding.",
        "mel_pos_embedding.",
        "final_norm.",
        "text_head.",
        "mel_head.",
        "speed_emb.",
    ),
    CODEC_FILE: CODEC_IGNORED,
    SEMANTIC_FILE: ("masked_spec_embed", "adapter.", "intermediate_ffn.", "encoder.layers."),
    STATISTICS_FILE: (),
}
NEEDED_PREFIXES: dict[str, tuple[str, ...]] = {
    GPT_FILE: CONDITIONER_PREFIXES + EMOTION_PREFIXES,
    CODEC_FILE: CODEC_PREFIXES,
    SEMANTIC_FILE: SEMANTIC_PREFIXES,
    STATISTICS_FILE: (),
}


def expected_shapes(
    config: ModelConfig,
    semantic_config: SemanticEncoderConfig,
    *,
    num_latents: int = NUM_LATENTS,
    emotion_width: int | None = None,
    num_positions: int = POSITION_ROWS,
) -> dict[str, dict[str, tuple[int, ...]]]:
    """The shapes of all required tensors: {file in a models folder: {tensor name: shape}}.

    `num_latents`, `emotion_width` (the semantic width if None) and `num_positions` are not in the configs; the loaders
    read them from the tensors' shapes.
    """
    size = semantic_config.hidden_size
    with torch.device("meta"):
        conditioner = Conditioner(
            config.condition,
            input_size=size,
            model_dim=config.model_dim,
            num_latents=num_latents,
            position_rows=num_positions,
        )
        emotion = EmotionConditioner(
            config.emotion,
            input_size=size,
            model_dim=config.model_dim,
            emotion_width=emotion_width or size,
            position_rows=num_positions,
        )
    return {
        GPT_FILE: {
            **shapes_of(conditioner, _conditioner_names(conditioner)),
            **shapes_of(emotion, emotion_names(emotion)),
        },
        CODEC_FILE: codec_shapes(config.semantic_codec),
        SEMANTIC_FILE: semantic_shapes(SemanticEncoder(semantic_config)),
        STATISTICS_FILE: {"mean": (size,), "var": (size,)},
    }


def load_conditioners(path: Path, config: ModelConfig, *, semantic_size: int) -> tuple[Conditioner, EmotionConditioner]:
    """Load both conditioning branches from gpt.pth (a state dict, or {"model": state dict}), memory-mapped.

    Raises CheckpointError that lists what is missing, unexpected or of another shape.
    """
    tensors = read_torch_file(path)
    latents = shape_of(tensors, "perceiver_encoder.latents", (NUM_LATENTS, config.model_dim))
    with torch.device("meta"):
        conditioner = Conditioner(
            config.condition,
            input_size=semantic_size,
            model_dim=config.model_dim,
            num_latents=latents[0],
            position_rows=position_rows(tensors, CONDITIONER_PREFIXES[0]),
        )
    emotion = emotion_branch(tensors, config.emotion, semantic_size=semantic_size, model_dim=config.model_dim)
    of_conditioner, of_emotion = _conditioner_names(conditioner), emotion_names(emotion)
    shapes = {**shapes_of(conditioner, of_conditioner), **shapes_of(emotion, of_emotion)}
    check_tensors(tensors, shapes, file=GPT_FILE, path=path)
    fill(conditioner, {ours: tensors[theirs] for ours, theirs in of_conditioner.items()})
    fill(emotion, {ours: tensors[theirs] for ours, theirs in of_emotion.items()})
    return conditioner, emotion


def load_semantic_codec(path: Path, config: ModelConfig) -> SemanticCodec:
    """Load the RepCodec encoder and quantizer from a safetensors file, memory-mapped; its weight norm is folded.

    Raises CheckpointError that lists what is missing, unexpected or of another shape.
    """
    tensors = read_safetensors([path])
    check_tensors(tensors, codec_shapes(config.semantic_codec), file=CODEC_FILE, path=path)
    return semantic_codec(tensors, config.semantic_codec)


def check_tensors(
    tensors: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]], *, file: str, path: Path
) -> None:
    """Check a file's tensors against the required names and shapes; `file` is the key in `NEEDED_PREFIXES`.

    Raises CheckpointError with the missing tensors, the unexpected ones, and those of another shape or not of a
    floating-point type.
    """
    ignored = () if file == SEMANTIC_FILE else IGNORED_PREFIXES[file]  # its first layers are needed
    named_tensors.check_tensors(tensors, shapes, path=path, needed=NEEDED_PREFIXES[file], ignored=ignored)


def _conditioner_names(conditioner: Conditioner) -> dict[str, str]:
    return {
        **under("conformer.", "conditioning_encoder.", conformer_names(len(conditioner.conformer.blocks))),
        **under("perceiver.", "perceiver_encoder.", perceiver_names(conditioner.perceiver)),
    }
