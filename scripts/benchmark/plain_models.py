"""The models, written as plainly as possible: the reference for speed, and in the tests for results.

Each function takes clips without padding, (..., T, channels), and the tensors of a published checkpoint by name.
Nothing is masked, fused or split into pieces, and no code is shared with hfprep. The semantic encoder is the library's.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

Tensors = dict[str, Tensor]
PREFIXES = (
    "conditioning_encoder.", "perceiver_encoder.", "emo_conditioning_encoder.", "emo_perceiver_encoder.",
    "emovec_layer.", "emo_layer.",
)  # fmt: skip
HEAD_WIDTH = 64  # of the Perceivers


def under(tensors: Tensors, prefix: str) -> Tensors:
    """The tensors with a prefix, which is removed from their names."""
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def affine(x: Tensor, tensors: Tensors, name: str) -> Tensor:
    return F.linear(x, tensors[f"{name}.weight"], tensors.get(f"{name}.bias"))


def norm(x: Tensor, tensors: Tensors, name: str, eps: float = 1e-5) -> Tensor:
    weight = tensors[f"{name}.weight"]
    return F.layer_norm(x, weight.shape, weight, tensors[f"{name}.bias"], eps)


def convolve(x: Tensor, tensors: Tensors, name: str, *, padding: int = 0, depthwise: bool = False) -> Tensor:
    weight = tensors[f"{name}.weight"]
    groups = len(weight) if depthwise else 1
    return F.conv1d(x.mT, weight, tensors.get(f"{name}.bias"), padding=padding, groups=groups).mT


def heads_of(x: Tensor, count: int) -> Tensor:
    """(..., T, H * d) to (..., H, T, d)."""
    return x.unflatten(-1, (count, -1)).transpose(-3, -2)


def attend(scores: Tensor, value: Tensor) -> Tensor:
    """Scores (..., H, Q, T) and values (..., H, T, d) to (..., Q, H * d)."""
    return (torch.softmax(scores, dim=-1) @ value).transpose(-3, -2).flatten(-2)


def semantic_features(folder: Path, statistics: Tensors, input_features: Tensor) -> Tensor:
    """(T, 160) to (T, D) with the library's whole model, keeping every hidden state."""
    from transformers import Wav2Vec2BertModel

    model = Wav2Vec2BertModel.from_pretrained(folder, attn_implementation="eager").eval()
    with torch.no_grad():
        hidden = model(input_features[None], output_hidden_states=True).hidden_states[17][0]
    return (hidden - statistics["mean"]) / torch.sqrt(statistics["var"])


def codec_scores(codec: Tensors, semantic: Tensor) -> Tensor:
    """(..., T, D) to the cosine similarity of every frame with every codebook row, (..., T, N)."""
    x = norm(convolve(semantic, codec, "encoder.0.embed", padding=3), codec, "encoder.0.norm", 1e-6)
    layer = 0
    while f"encoder.0.convnext.{layer}.gamma" in codec:
        block = under(codec, f"encoder.0.convnext.{layer}.")
        hidden = norm(convolve(x, block, "dwconv", padding=3, depthwise=True), block, "norm", 1e-6)
        x = x + block["gamma"] * affine(F.gelu(affine(hidden, block, "pwconv1")), block, "pwconv2")
        layer += 1
    x = affine(norm(x, codec, "encoder.0.final_layer_norm", 1e-6), codec, "encoder.1")
    project = under(codec, "quantizer.quantizers.0.in_project.")
    norms = project["weight_v"].flatten(1).norm(dim=1)[:, None, None]
    weight = project["weight_g"] * project["weight_v"] / norms
    latents = F.normalize(convolve(x, {"p.weight": weight, "p.bias": project["bias"]}, "p"), dim=-1)
    return latents @ F.normalize(codec["quantizer.quantizers.0.codebook.weight"], dim=-1).t()


def codes(codec: Tensors, semantic: Tensor) -> Tensor:
    """(..., T, D) to (..., T) int64."""
    return codec_scores(codec, semantic).argmax(dim=-1)


def codec_scores25(codec: Tensors, semantic: Tensor) -> Tensor:
    """(..., T, D) to the cosines of IndexTTS-2.5's codec, (..., ceil(T / 2), N)."""
    hidden = F.conv1d(semantic.mT, codec["down.weight"], codec["down.bias"], stride=2, padding=1)
    return codec_scores(codec, F.gelu(hidden).mT)


def codes25(codec: Tensors, semantic: Tensor) -> Tensor:
    """(..., T, D) to (..., ceil(T / 2)) int64."""
    return codec_scores25(codec, semantic).argmax(dim=-1)


def speaker(tensors: Tensors, fbank: Tensor) -> Tensor:
    """CAM++, layer by layer as named in its checkpoint: (B, F, 80) to (B, E)."""
    x = F.relu(batch_norm(F.conv2d(fbank.mT[:, None], tensors["head.conv1.weight"], padding=1), tensors, "head.bn1"))
    for part, stride in (("1.0", 2), ("1.1", 1), ("2.0", 2), ("2.1", 1)):
        block, shortcut = f"head.layer{part}", x
        hidden = F.conv2d(x, tensors[f"{block}.conv1.weight"], stride=(stride, 1), padding=1)
        hidden = F.relu(batch_norm(hidden, tensors, f"{block}.bn1"))
        hidden = batch_norm(F.conv2d(hidden, tensors[f"{block}.conv2.weight"], padding=1), tensors, f"{block}.bn2")
        if stride > 1:
            shortcut = F.conv2d(x, tensors[f"{block}.shortcut.0.weight"], stride=(stride, 1))
            shortcut = batch_norm(shortcut, tensors, f"{block}.shortcut.1")
        x = F.relu(hidden + shortcut)
    x = F.conv2d(x, tensors["head.conv2.weight"], stride=(2, 1), padding=1)
    x = F.relu(batch_norm(x, tensors, "head.bn2")).flatten(1, 2)
    x = F.conv1d(x, tensors["xvector.tdnn.linear.weight"], stride=2, padding=2)
    x = F.relu(batch_norm(x, tensors, "xvector.tdnn.nonlinear.batchnorm"))
    for number, dilation in ((1, 1), (2, 2), (3, 2)):
        layer = 1
        while f"xvector.block{number}.tdnnd{layer}.linear1.weight" in tensors:
            x = dense_layer(x, tensors, f"xvector.block{number}.tdnnd{layer}", dilation)
            layer += 1
        x = F.relu(batch_norm(x, tensors, f"xvector.transit{number}.nonlinear.batchnorm"))
        x = F.conv1d(x, tensors[f"xvector.transit{number}.linear.weight"])
    x = F.relu(batch_norm(x, tensors, "xvector.out_nonlinear.batchnorm"))
    x = torch.cat([x.mean(-1), x.std(-1)], dim=-1)[..., None]
    x = F.conv1d(x, tensors["xvector.dense.linear.weight"])
    return batch_norm(x, tensors, "xvector.dense.nonlinear.batchnorm")[..., 0]


def dense_layer(x: Tensor, tensors: Tensors, name: str, dilation: int) -> Tensor:
    """(B, C, T) to (B, C + G, T)."""
    hidden = F.relu(batch_norm(x, tensors, f"{name}.nonlinear1.batchnorm"))
    hidden = F.conv1d(hidden, tensors[f"{name}.linear1.weight"])
    hidden = F.relu(batch_norm(hidden, tensors, f"{name}.nonlinear2.batchnorm"))
    cam = f"{name}.cam_layer"
    local = F.conv1d(hidden, tensors[f"{cam}.linear_local.weight"], padding=dilation, dilation=dilation)
    means = [part.mean(-1, keepdim=True).expand_as(part) for part in hidden.split(100, dim=-1)]
    context = hidden.mean(-1, keepdim=True) + torch.cat(means, dim=-1)
    context = F.relu(F.conv1d(context, tensors[f"{cam}.linear1.weight"], tensors[f"{cam}.linear1.bias"]))
    gate = torch.sigmoid(F.conv1d(context, tensors[f"{cam}.linear2.weight"], tensors[f"{cam}.linear2.bias"]))
    return torch.cat([x, local * gate], dim=1)


def batch_norm(x: Tensor, tensors: Tensors, name: str) -> Tensor:
    mean, variance = tensors[f"{name}.running_mean"], tensors[f"{name}.running_var"]
    return F.batch_norm(x, mean, variance, tensors.get(f"{name}.weight"), tensors.get(f"{name}.bias"), eps=1e-5)


def conformer(tensors: Tensors, x: Tensor) -> Tensor:
    """(..., T, D) to (..., T', C)."""
    x = x.unsqueeze(-3)
    maps = F.relu(F.conv2d(x, tensors["embed.conv.0.weight"], tensors["embed.conv.0.bias"], stride=2))
    x = affine(maps.transpose(-3, -2).flatten(-2), tensors, "embed.out.0")
    x = x * math.sqrt(x.shape[-1])
    positions = tensors["embed.pos_enc.pe"][0, : x.shape[-2]]
    index = 0
    while f"encoders.{index}.norm_ff.weight" in tensors:
        block = under(tensors, f"encoders.{index}.")
        x = x + positional_attention(under(block, "self_attn."), norm(x, block, "norm_mha"), positions)
        x = x + conformer_convolution(under(block, "conv_module."), norm(x, block, "norm_conv"))
        hidden = F.silu(affine(norm(x, block, "norm_ff"), block, "feed_forward.w_1"))
        x = norm(x + affine(hidden, block, "feed_forward.w_2"), block, "norm_final")
        index += 1
    return norm(x, tensors, "after_norm")


def positional_attention(tensors: Tensors, x: Tensor, positions: Tensor) -> Tensor:
    """score(i, j) = ((q_i + u) . k_j + (q_i + v) . p_j) / sqrt(d), for every head."""
    heads, width = tensors["pos_bias_u"].shape
    query, key, value, place = (
        heads_of(affine(inputs, tensors, f"linear_{part}"), heads)
        for part, inputs in (("q", x), ("k", x), ("v", x), ("pos", positions))
    )
    content = (query + tensors["pos_bias_u"][:, None]) @ key.mT
    position = (query + tensors["pos_bias_v"][:, None]) @ place.mT
    return affine(attend((content + position) / math.sqrt(width), value), tensors, "linear_out")


def conformer_convolution(tensors: Tensors, x: Tensor) -> Tensor:
    value, gate = convolve(x, tensors, "pointwise_conv1").chunk(2, dim=-1)
    x = convolve(value * torch.sigmoid(gate), tensors, "depthwise_conv", padding=7, depthwise=True)
    return convolve(F.silu(norm(x, tensors, "norm")), tensors, "pointwise_conv2")


def perceiver(tensors: Tensors, context: Tensor, heads: int) -> Tensor:
    """(..., T', C) to (..., L, M)."""
    if "proj_context.weight" in tensors:
        context = affine(context, tensors, "proj_context")
    latents = tensors["latents"].expand(*context.shape[:-2], -1, -1)
    for index in range(2):
        layer = under(tensors, f"layers.{index}.")
        query = heads_of(affine(latents, layer, "0.to_q"), heads)
        both = affine(torch.cat([latents, context], dim=-2), layer, "0.to_kv")
        key, value = (heads_of(part, heads) for part in both.chunk(2, dim=-1))
        attended = attend(query @ key.mT / math.sqrt(HEAD_WIDTH), value)
        latents = latents + affine(attended, layer, "0.to_out")
        part, gate = affine(latents, layer, "1.0").chunk(2, dim=-1)
        latents = latents + affine(part * F.gelu(gate), layer, "1.2")
    root_mean_square = latents.norm(dim=-1, keepdim=True) / math.sqrt(latents.shape[-1])
    return latents / root_mean_square * tensors["norm.gamma"]


def condition(gpt: Tensors, semantic: Tensor, heads: int) -> Tensor:
    """(..., T, D) to (..., L, M)."""
    encoded = conformer(under(gpt, "conditioning_encoder."), semantic)
    return perceiver(under(gpt, "perceiver_encoder."), encoded, heads)


def emo_vec(gpt: Tensors, semantic: Tensor, heads: int) -> Tensor:
    """(..., T, D) to (..., M)."""
    encoded = conformer(under(gpt, "emo_conditioning_encoder."), semantic)
    latent = perceiver(under(gpt, "emo_perceiver_encoder."), encoded, heads)[..., 0, :]
    return affine(affine(latent, gpt, "emovec_layer"), gpt, "emo_layer")


def read_tensors(path: Path) -> Any:
    """Load a whole checkpoint into memory: tensors by name, or the file's own structure."""
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    return torch.load(path, map_location="cpu", weights_only=True)
