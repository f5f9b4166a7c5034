"""The networks that model families share, and their tensor names in the published files.

Provides the semantic encoder, the codec's encoder and quantizer, and the conditioning branches. Takes memory-mapped
tensors, from any file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hfprep.errors import CheckpointError
from hfprep.models.conditioner import Conditioner, EmotionConditioner
from hfprep.models.configs import NUM_LAYERS, POSITION_ROWS, SemanticCodecConfig, SemanticEncoderConfig
from hfprep.models.perceiver import Perceiver
from hfprep.models.semantic_codec import SemanticCodec
from hfprep.models.semantic_encoder import SemanticEncoder
from hfprep.models.tensor_files import read_safetensors, read_torch_file
from hfprep.recipes.config_file import GptConfig
from hfprep.recipes.finding import SEMANTIC_FILE, STATISTICS_FILE
from hfprep.recipes.tensors import Shapes, both, check_tensors, fill, named, shape_of, shapes_of, under

SEMANTIC_PREFIXES = ("feature_projection.", *(f"encoder.layers.{layer}." for layer in range(NUM_LAYERS)))
CODEC_PREFIXES = ("encoder.", "quantizer.")
CODEC_IGNORED = ("decoder.", "quantizer.quantizers.0.out_project.")
EMOTION_PREFIXES = ("emo_conditioning_encoder.", "emo_perceiver_encoder.", "emovec_layer.", "emo_layer.")
_QUANTIZER = "quantizer.quantizers.0."


def load_semantic_encoder(config_path: Path, weight_paths: Sequence[Path], statistics_path: Path) -> SemanticEncoder:
    """Load the first 17 layers of w2v-bert-2.0, memory-mapped from safetensors, and the output statistics.

    Raises CheckpointError that lists what is missing, unexpected or of another shape.
    """
    encoder = SemanticEncoder(SemanticEncoderConfig.read(config_path))
    tensors = read_safetensors(weight_paths)
    check_tensors(tensors, semantic_shapes(encoder), path=weight_paths[0], needed=SEMANTIC_PREFIXES)
    statistics = read_torch_file(statistics_path)
    size = (encoder.mean.shape[0],)
    check_tensors(statistics, {"mean": size, "var": size}, path=statistics_path, needed=())
    if not bool((statistics["var"] > 0).all()):
        raise CheckpointError(f"{statistics_path}: var has values that are not above 0; it must contain variances")
    found = named(tensors, _semantic_names(encoder))
    fill(encoder, found | {"mean": statistics["mean"], "std": statistics["var"].float().sqrt()})
    return encoder


def encoder_shapes(config: SemanticEncoderConfig) -> dict[str, Shapes]:
    """The shapes of the encoder's tensors and of its statistics: {file in a models folder: {tensor name: shape}}."""
    statistics: Shapes = dict.fromkeys(("mean", "var"), (config.hidden_size,))
    return {SEMANTIC_FILE: semantic_shapes(SemanticEncoder(config)), STATISTICS_FILE: statistics}


def semantic_shapes(encoder: SemanticEncoder) -> Shapes:
    """Names and shapes of the encoder's tensors."""
    return shapes_of(encoder, _semantic_names(encoder))


def _semantic_names(encoder: SemanticEncoder) -> dict[str, str]:
    """The file's names differ only in the layers' prefix; the statistics are in a separate file."""
    names = (name for name in encoder.state_dict() if name not in {"mean", "std"})
    return {name: f"encoder.{name}" if name.startswith("layers.") else name for name in names}


def semantic_codec(tensors: Mapping[str, Tensor], config: SemanticCodecConfig) -> SemanticCodec:
    """The codec's encoder and quantizer, from tensors with `codec_shapes`; the weight norm is folded."""
    with torch.device("meta"):
        codec = SemanticCodec(config)
    filled = named(tensors, _codec_names(config.vocos_num_layers))
    direction = tensors[f"{_QUANTIZER}in_project.weight_v"].float()[:, :, 0]
    length = tensors[f"{_QUANTIZER}in_project.weight_g"].float()[:, :, 0]
    filled["quantizer.weight"] = direction * (length / direction.norm(dim=1, keepdim=True))
    filled["quantizer.bias"] = tensors[f"{_QUANTIZER}in_project.bias"]
    filled["quantizer.codebook"] = F.normalize(tensors[f"{_QUANTIZER}codebook.weight"].float(), dim=-1)
    fill(codec, filled)
    return codec


def codec_shapes(config: SemanticCodecConfig) -> Shapes:
    """Names and shapes of the tensors of the codec's encoder and quantizer."""
    with torch.device("meta"):
        codec = SemanticCodec(config)
    width, size = config.codebook_dim, config.hidden_size
    return {
        **shapes_of(codec, _codec_names(config.vocos_num_layers)),
        f"{_QUANTIZER}codebook.weight": (config.codebook_size, width),
        f"{_QUANTIZER}in_project.bias": (width,),
        f"{_QUANTIZER}in_project.weight_g": (width, 1, 1),
        f"{_QUANTIZER}in_project.weight_v": (width, size, 1),
    }


def _codec_names(num_layers: int) -> dict[str, str]:
    """{our name: name in the file} for the codec's encoder."""
    block = both({"depthwise": "dwconv", "norm": "norm", "expand": "pwconv1", "contract": "pwconv2"})
    block["gamma"] = "gamma"
    names = both({"embed": "encoder.0.embed", "norm": "encoder.0.norm", "norm_final": "encoder.0.final_layer_norm"})
    names.update(both({"out": "encoder.1"}))
    for layer in range(num_layers):
        names.update(under(f"blocks.{layer}.", f"encoder.0.convnext.{layer}.", block))
    return names


def load_branches(tensors: Mapping[str, Tensor], *branches: Conditioner, path: Path, needed: tuple[str, ...]) -> None:
    """Fill conditioning branches on the meta device from the tensors of the file `path`; raises as `check_tensors`."""
    check_tensors(tensors, branch_shapes(*branches), path=path, needed=needed)
    for branch in branches:
        fill(branch, named(tensors, _branch_names(branch)))


def branch_shapes(*branches: Conditioner) -> Shapes:
    """Names and shapes of the tensors of conditioning branches."""
    return {name: shape for branch in branches for name, shape in shapes_of(branch, _branch_names(branch)).items()}


def emotion_branch(tensors: Mapping[str, Tensor], config: GptConfig, *, semantic_size: int) -> EmotionConditioner:
    """The emotion branch on the meta device; widths that are not in the config come from the tensors' shapes."""
    with torch.device("meta"):
        return EmotionConditioner(
            config.emotion,
            input_size=semantic_size,
            model_dim=config.model_dim,
            emotion_width=shape_of(tensors, "emo_perceiver_encoder.latents", (1, semantic_size))[-1],
            position_rows=position_rows(tensors, EMOTION_PREFIXES[0]),
        )


def position_rows(tensors: Mapping[str, Tensor], prefix: str) -> int:
    """The number of rows of the position table in the Conformer with this prefix."""
    return shape_of(tensors, f"{prefix}embed.pos_enc.pe", (1, POSITION_ROWS, 0))[1]


def _branch_names(branch: Conditioner) -> dict[str, str]:
    """{our name: name in the file} for a conditioning branch."""
    emotion = isinstance(branch, EmotionConditioner)
    prefix = "emo_" if emotion else ""
    return {
        **under("conformer.", f"{prefix}conditioning_encoder.", _conformer_names(len(branch.conformer.blocks))),
        **under("perceiver.", f"{prefix}perceiver_encoder.", _perceiver_names(branch.perceiver)),
        **(both({"project": "emovec_layer", "out": "emo_layer"}) if emotion else {}),
    }


def _conformer_names(num_blocks: int) -> dict[str, str]:
    """{our name: name in the file} for a Conformer, without the branch's prefix."""
    block = both(
        {
            "attention.query": "self_attn.linear_q",
            "attention.key": "self_attn.linear_k",
            "attention.value": "self_attn.linear_v",
            "attention.out": "self_attn.linear_out",
            "feed_forward.expand": "feed_forward.w_1",
            "feed_forward.contract": "feed_forward.w_2",
            "convolution.pointwise_in": "conv_module.pointwise_conv1",
            "convolution.depthwise": "conv_module.depthwise_conv",
            "convolution.norm": "conv_module.norm",
            "convolution.pointwise_out": "conv_module.pointwise_conv2",
            "norm_feed_forward": "norm_ff",
            "norm_attention": "norm_mha",
            "norm_convolution": "norm_conv",
            "norm_final": "norm_final",
        }
    )
    block["attention.position.weight"] = "self_attn.linear_pos.weight"
    block["attention.bias_u"] = "self_attn.pos_bias_u"
    block["attention.bias_v"] = "self_attn.pos_bias_v"
    names = {
        "subsampling.conv_weight": "embed.conv.0.weight",
        "subsampling.conv_bias": "embed.conv.0.bias",
        "subsampling.out_weight": "embed.out.0.weight",
        "subsampling.out_bias": "embed.out.0.bias",
        "position_table": "embed.pos_enc.pe",
        **both({"norm": "after_norm"}),
    }
    for index in range(num_blocks):
        names.update(under(f"blocks.{index}.", f"encoders.{index}.", block))
    return names


def _perceiver_names(perceiver: Perceiver) -> dict[str, str]:
    """{our name: name in the file} for a Perceiver, without the branch's prefix."""
    layer = {
        "attention.query.weight": "0.to_q.weight",
        "attention.key_value.weight": "0.to_kv.weight",
        "attention.out.weight": "0.to_out.weight",
        **both({"feed_forward.expand": "1.0", "feed_forward.contract": "1.2"}),
    }
    names = {"latents": "latents", "norm.gamma": "norm.gamma"}
    if not isinstance(perceiver.project, nn.Identity):
        names.update(both({"project": "proj_context"}))
    for index in range(len(perceiver.layers)):
        names.update(under(f"layers.{index}.", f"layers.{index}.", layer))
    return names
