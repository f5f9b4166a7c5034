"""The published checkpoint files: their tensor names, how they are read, and what must be in them.

Gives loaders for the semantic encoder, the semantic codec and the conditioning branches, and `expected_shapes`, the
names and shapes of every tensor that is needed (random model sets can be made from it). This is the only module that
knows a checkpoint's names. Weights stay memory-mapped, and what is not needed (most of gpt.pth) never enters memory.
Knows nothing of file formats (tensor_files) or of a run.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hfprep.errors import CheckpointError
from hfprep.models.conditioner import NUM_LATENTS, Conditioner, EmotionConditioner
from hfprep.models.conformer import POSITION_ROWS
from hfprep.models.perceiver import Perceiver
from hfprep.models.semantic_codec import SemanticCodec
from hfprep.models.semantic_config import NUM_LAYERS, SemanticEncoderConfig
from hfprep.models.semantic_encoder import SemanticEncoder
from hfprep.models.tensor_files import read_safetensors, read_torch_file
from hfprep.recipes.indextts2.config import ModelConfig

GPT_FILE = "gpt.pth"
CODEC_FILE = "semantic_codec/model.safetensors"
SEMANTIC_FILE = "w2v-bert-2.0/model.safetensors"
STATISTICS_FILE = "wav2vec2bert_stats.pt"

# The tensors of gpt.pth with a row for each text id, and one row more.
TEXT_EMBEDDING = "text_embedding.weight"
TEXT_ROWS = (TEXT_EMBEDDING, "text_head.weight", "text_head.bias")

CONDITIONER_PREFIXES = ("conditioning_encoder.", "perceiver_encoder.")
EMOTION_PREFIXES = ("emo_conditioning_encoder.", "emo_perceiver_encoder.", "emovec_layer.", "emo_layer.")

# Tensors of the published files from which no feature is computed. What is in neither list nor map is an error where
# it stands among needed tensors (a file of another architecture) and ignored elsewhere.
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
    CODEC_FILE: ("decoder.", "quantizer.quantizers.0.out_project."),
    SEMANTIC_FILE: ("masked_spec_embed", "adapter.", "intermediate_ffn.", "encoder.layers."),
    STATISTICS_FILE: (),
}
_NEEDED_PREFIXES: dict[str, tuple[str, ...]] = {
    GPT_FILE: CONDITIONER_PREFIXES + EMOTION_PREFIXES,
    CODEC_FILE: ("encoder.", "quantizer."),
    SEMANTIC_FILE: ("feature_projection.", *(f"encoder.layers.{layer}." for layer in range(NUM_LAYERS))),
    STATISTICS_FILE: (),
}
_LISTED = 10


def expected_shapes(
    config: ModelConfig,
    semantic_config: SemanticEncoderConfig,
    *,
    num_latents: int = NUM_LATENTS,
    emotion_width: int | None = None,
    position_rows: int = POSITION_ROWS,
) -> dict[str, dict[str, tuple[int, ...]]]:
    """The shapes of all needed tensors: {file of a models folder: {tensor name: shape}}.

    `num_latents`, `emotion_width` (the semantic width if None) and `position_rows` are nowhere in the configs; the
    loaders read them from the tensors' own shapes.
    """
    size = semantic_config.hidden_size
    with torch.device("meta"):
        conditioner = Conditioner(
            config.condition,
            input_size=size,
            model_dim=config.model_dim,
            num_latents=num_latents,
            position_rows=position_rows,
        )
        emotion = EmotionConditioner(
            config.emotion,
            input_size=size,
            model_dim=config.model_dim,
            emotion_width=emotion_width or size,
            position_rows=position_rows,
        )
    return {
        GPT_FILE: {
            **_shapes(conditioner, _conditioner_names(conditioner)),
            **_shapes(emotion, _emotion_names(emotion)),
        },
        CODEC_FILE: _codec_shapes(config),
        SEMANTIC_FILE: _semantic_shapes(SemanticEncoder(semantic_config)),
        STATISTICS_FILE: {"mean": (size,), "var": (size,)},
    }


def load_conditioners(path: Path, config: ModelConfig, *, semantic_size: int) -> tuple[Conditioner, EmotionConditioner]:
    """Load both conditioning branches from gpt.pth (a state dict, or {"model": state dict}), memory-mapped.

    Raises CheckpointError that lists what is missing, unexpected or of another shape.
    """
    tensors = read_torch_file(path)
    latents = _shape_of(tensors, "perceiver_encoder.latents", (NUM_LATENTS, config.model_dim))
    emotion_latents = _shape_of(tensors, "emo_perceiver_encoder.latents", (1, semantic_size))
    rows = [
        _shape_of(tensors, f"{prefix}embed.pos_enc.pe", (1, POSITION_ROWS, 0))[1]
        for prefix in (CONDITIONER_PREFIXES[0], EMOTION_PREFIXES[0])
    ]
    with torch.device("meta"):
        conditioner = Conditioner(
            config.condition,
            input_size=semantic_size,
            model_dim=config.model_dim,
            num_latents=latents[0],
            position_rows=rows[0],
        )
        emotion = EmotionConditioner(
            config.emotion,
            input_size=semantic_size,
            model_dim=config.model_dim,
            emotion_width=emotion_latents[-1],
            position_rows=rows[1],
        )
    conditioner_names, emotion_names = _conditioner_names(conditioner), _emotion_names(emotion)
    shapes = {**_shapes(conditioner, conditioner_names), **_shapes(emotion, emotion_names)}
    check_tensors(tensors, shapes, file=GPT_FILE, path=path)
    _fill(conditioner, {ours: tensors[theirs] for ours, theirs in conditioner_names.items()})
    _fill(emotion, {ours: tensors[theirs] for ours, theirs in emotion_names.items()})
    return conditioner, emotion


def load_semantic_codec(path: Path, config: ModelConfig) -> SemanticCodec:
    """Load the RepCodec encoder and quantizer from a safetensors file, memory-mapped; its weight norm is folded.

    Raises CheckpointError that lists what is missing, unexpected or of another shape.
    """
    tensors = read_safetensors([path])
    check_tensors(tensors, _codec_shapes(config), file=CODEC_FILE, path=path)
    with torch.device("meta"):
        codec = SemanticCodec(config.semantic_codec)
    filled = {ours: tensors[theirs] for ours, theirs in _codec_names(config.semantic_codec.vocos_num_layers).items()}
    prefix = "quantizer.quantizers.0."
    direction = tensors[f"{prefix}in_project.weight_v"].float()[:, :, 0]
    length = tensors[f"{prefix}in_project.weight_g"].float()[:, :, 0]
    filled["quantizer.weight"] = direction * (length / direction.norm(dim=1, keepdim=True))
    filled["quantizer.bias"] = tensors[f"{prefix}in_project.bias"]
    filled["quantizer.codebook"] = F.normalize(tensors[f"{prefix}codebook.weight"].float(), dim=-1)
    _fill(codec, filled)
    return codec


def load_semantic_encoder(config_path: Path, weight_paths: Sequence[Path], statistics_path: Path) -> SemanticEncoder:
    """Load the first 17 layers of w2v-bert-2.0 from its safetensors file or shards, memory-mapped, and the statistics.

    Raises CheckpointError that lists what is missing, unexpected or of another shape.
    """
    encoder = SemanticEncoder(SemanticEncoderConfig.read(config_path))
    tensors = read_safetensors(weight_paths)
    shapes = _semantic_shapes(encoder)
    check_tensors(tensors, shapes, file=SEMANTIC_FILE, path=weight_paths[0])
    statistics = read_torch_file(statistics_path)
    size = (encoder.mean.shape[0],)
    check_tensors(statistics, {"mean": size, "var": size}, file=STATISTICS_FILE, path=statistics_path)
    if not bool((statistics["var"] > 0).all()):
        raise CheckpointError(f"{statistics_path}: var has values that are not above 0; it must hold variances")
    filled = {ours: tensors[theirs] for ours, theirs in _semantic_names(encoder).items()}
    filled.update(mean=statistics["mean"], std=statistics["var"].float().sqrt())
    _fill(encoder, filled)
    return encoder


def check_tensors(
    tensors: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]], *, file: str, path: Path
) -> None:
    """Hold a file's tensors against the needed names and shapes.

    `file` says which of the published files this is. Raises CheckpointError that lists, ten at most of each kind, the
    missing tensors, the unexpected ones among the needed, and those of another shape or without real numbers.
    """
    missing = [f"{name} {list(shape)}" for name, shape in shapes.items() if name not in tensors]
    unexpected = [name for name in tensors if name.startswith(_NEEDED_PREFIXES[file]) and name not in shapes]
    unexpected = [name for name in unexpected if not _is_ignored(name, file)]
    other = [
        f"{name} is {list(tensors[name].shape)}, not {list(shape)}"
        for name, shape in shapes.items()
        if name in tensors and tuple(tensors[name].shape) != tuple(shape)
    ]
    other += [
        f"{name} is {tensors[name].dtype}, not a floating type"
        for name in shapes
        if name in tensors and not tensors[name].is_floating_point()
    ]
    if not (missing or unexpected or other):
        return
    lines = [f"{path}: does not hold the model that the config describes"]
    for label, names in (("missing", missing), ("unexpected", unexpected), ("of another shape or type", other)):
        if names:
            more = f"\n    ... and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
            lines.append(f"  {label} ({len(names)}):\n    " + "\n    ".join(names[:_LISTED]) + more)
    prefix = _common_prefix(tensors, shapes)
    if prefix:
        lines.append(f"  its tensors carry the prefix {prefix!r}; save them without it")
    raise CheckpointError("\n".join(lines))


def unknown_names(names: Iterable[str], shapes: Mapping[str, object], file: str) -> list[str]:
    """Which of a file's tensor names are neither needed (`shapes`) nor knowingly ignored."""
    return [name for name in names if name not in shapes and not _is_ignored(name, file)]


def _is_ignored(name: str, file: str) -> bool:
    if file == SEMANTIC_FILE and name.startswith(_NEEDED_PREFIXES[SEMANTIC_FILE]):
        return False
    return name.startswith(IGNORED_PREFIXES[file])


def _common_prefix(tensors: Mapping[str, Tensor], shapes: Mapping[str, object]) -> str:
    """The prefix under which all needed names would be there, or an empty string."""
    some = next(iter(shapes))
    for name in tensors:
        prefix = name.removesuffix(some)
        if prefix != name and prefix and all(f"{prefix}{needed}" in tensors for needed in shapes):
            return prefix
    return ""


def _shape_of(tensors: Mapping[str, Tensor], name: str, default: tuple[int, ...]) -> tuple[int, ...]:
    """A tensor's shape, or the default where it is missing or has another rank: `check_tensors` then says so."""
    tensor = tensors.get(name)
    return tuple(tensor.shape) if tensor is not None and tensor.ndim == len(default) else default


def _fill(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    # assign keeps the mapped tensors themselves; .float() copies only where a file holds another floating type.
    module.load_state_dict({name: tensor.float() for name, tensor in tensors.items()}, strict=True, assign=True)


def _shapes(module: nn.Module, names: Mapping[str, str]) -> dict[str, tuple[int, ...]]:
    state = module.state_dict()
    return {theirs: tuple(state[ours].shape) for ours, theirs in names.items()}


def _semantic_shapes(encoder: SemanticEncoder) -> dict[str, tuple[int, ...]]:
    return _shapes(encoder, _semantic_names(encoder))


def _semantic_names(encoder: SemanticEncoder) -> dict[str, str]:
    """The file's names are ours but for where the layers are; the statistics have a file of their own."""
    names = (name for name in encoder.state_dict() if name not in {"mean", "std"})
    return {name: f"encoder.{name}" if name.startswith("layers.") else name for name in names}


def _codec_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    codec_config = config.semantic_codec
    with torch.device("meta"):
        codec = SemanticCodec(codec_config)
    prefix, width, size = "quantizer.quantizers.0.", codec_config.codebook_dim, codec_config.hidden_size
    return {
        **_shapes(codec, _codec_names(codec_config.vocos_num_layers)),
        f"{prefix}codebook.weight": (codec_config.codebook_size, width),
        f"{prefix}in_project.bias": (width,),
        f"{prefix}in_project.weight_g": (width, 1, 1),
        f"{prefix}in_project.weight_v": (width, size, 1),
    }


def _both(pairs: Mapping[str, str]) -> dict[str, str]:
    """Name pairs of modules to name pairs of their weights and biases."""
    return {f"{o}.{kind}": f"{t}.{kind}" for o, t in pairs.items() for kind in ("weight", "bias")}


def _under(ours: str, theirs: str, names: Mapping[str, str]) -> dict[str, str]:
    return {f"{ours}{o}": f"{theirs}{t}" for o, t in names.items()}


def _codec_names(num_layers: int) -> dict[str, str]:
    """Our names of the codec's encoder to the file's."""
    block = _both(
        {"depthwise": "dwconv", "norm": "norm", "expand": "pwconv1", "contract": "pwconv2"},
    )
    block["gamma"] = "gamma"
    names = _both({"embed": "encoder.0.embed", "norm": "encoder.0.norm", "norm_final": "encoder.0.final_layer_norm"})
    names.update(_both({"out": "encoder.1"}))
    for layer in range(num_layers):
        names.update(_under(f"blocks.{layer}.", f"encoder.0.convnext.{layer}.", block))
    return names


def _conformer_names(num_blocks: int) -> dict[str, str]:
    """Our names of a Conformer to the file's, both without the branch's prefix."""
    block = _both(
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
        **_both({"norm": "after_norm"}),
    }
    for index in range(num_blocks):
        names.update(_under(f"blocks.{index}.", f"encoders.{index}.", block))
    return names


def _perceiver_names(perceiver: Perceiver) -> dict[str, str]:
    """Our names of a Perceiver to the file's, both without the branch's prefix."""
    layer = {
        "attention.query.weight": "0.to_q.weight",
        "attention.key_value.weight": "0.to_kv.weight",
        "attention.out.weight": "0.to_out.weight",
        **_both({"feed_forward.expand": "1.0", "feed_forward.contract": "1.2"}),
    }
    names = {"latents": "latents", "norm.gamma": "norm.gamma"}
    if not isinstance(perceiver.project, nn.Identity):
        names.update(_both({"project": "proj_context"}))
    for index in range(len(perceiver.layers)):
        names.update(_under(f"layers.{index}.", f"layers.{index}.", layer))
    return names


def _conditioner_names(conditioner: Conditioner) -> dict[str, str]:
    return {
        **_under("conformer.", "conditioning_encoder.", _conformer_names(len(conditioner.conformer.blocks))),
        **_under("perceiver.", "perceiver_encoder.", _perceiver_names(conditioner.perceiver)),
    }


def _emotion_names(emotion: EmotionConditioner) -> dict[str, str]:
    return {
        **_under("conformer.", "emo_conditioning_encoder.", _conformer_names(len(emotion.conformer.blocks))),
        **_under("perceiver.", "emo_perceiver_encoder.", _perceiver_names(emotion.perceiver)),
        **_both({"project": "emovec_layer", "out": "emo_layer"}),
    }
