"""campplus_cn_common.bin: the tensors of the published CAM++ network, converted to hfprep's.

Provides `load_campplus`, `campplus_config` and `campplus_shapes` (random model sets can be made from them). The widths
are read from the tensors. Batch norms are folded in double precision, into the preceding convolution or into a scale
and a shift.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from hfprep.models.campplus import DILATIONS, FREQUENCY_STRIDE, NUM_MEL_BINS, TDNN_KERNEL, Campplus, CampplusConfig
from hfprep.models.tensor_files import read_torch_file
from hfprep.recipes.indextts25.schema import PUBLISHED_VECTOR, SPEAKER_VECTOR
from hfprep.recipes.tensors import Shapes, check_tensors, fill

EPS = 1e-5
PUBLISHED = CampplusConfig(
    head_channels=32, channels=128, bottleneck=128, context=64, growth=32, num_layers=(12, 24, 16),
    vector=PUBLISHED_VECTOR,
)  # fmt: skip
_COUNTER = ".num_batches_tracked"  # only for training; files may omit it
_BLOCKS = range(len(DILATIONS))


def load_campplus(path: Path) -> Campplus:
    """Load the network. The file is memory-mapped, then folded.

    Raises CheckpointError that lists what is missing, unexpected or of another shape.
    """
    tensors = {name: tensor for name, tensor in read_torch_file(path).items() if not name.endswith(_COUNTER)}
    config = campplus_config(tensors)
    check_tensors(tensors, campplus_shapes(config), path=path, needed=("head.", "xvector."))
    with torch.device("meta"):
        network = Campplus(config)
    fill(network, _folded(tensors, config))
    return network


def campplus_config(tensors: Mapping[str, Tensor]) -> CampplusConfig:
    """The widths of a file's tensors, or the published ones for missing tensors."""

    def size(name: str, dimension: int, published: int) -> int:
        tensor = tensors.get(name)
        return tensor.shape[dimension] if tensor is not None and tensor.ndim > dimension else published

    layer = "xvector.block1.tdnnd1"
    counts = [_count(tensors, f"xvector.block{block + 1}.tdnnd") for block in _BLOCKS]
    return CampplusConfig(
        head_channels=size("head.conv1.weight", 0, PUBLISHED.head_channels),
        channels=size("xvector.tdnn.linear.weight", 0, PUBLISHED.channels),
        bottleneck=size(f"{layer}.linear1.weight", 0, PUBLISHED.bottleneck),
        context=size(f"{layer}.cam_layer.linear1.weight", 0, PUBLISHED.context),
        growth=size(f"{layer}.cam_layer.linear_local.weight", 0, PUBLISHED.growth),
        num_layers=tuple(found or published for found, published in zip(counts, PUBLISHED.num_layers, strict=True)),
        vector=size(SPEAKER_VECTOR, 0, PUBLISHED.vector),
    )


def _count(tensors: Mapping[str, Tensor], prefix: str) -> int:
    """The highest number after a prefix in the tensors' names."""
    numbers = [name.removeprefix(prefix).partition(".")[0] for name in tensors if name.startswith(prefix)]
    return max((int(number) for number in numbers if number.isdecimal()), default=0)


def campplus_shapes(config: CampplusConfig) -> Shapes:
    """The names and shapes of all required tensors."""
    channels = config.head_channels
    shapes: Shapes = {"head.conv1.weight": (channels, 1, 3, 3), **_norm("head.bn1", channels)}
    for layer in (1, 2):
        for block in (0, 1):
            name = f"head.layer{layer}.{block}"
            for part in (1, 2):
                shapes[f"{name}.conv{part}.weight"] = (channels, channels, 3, 3)
                shapes |= _norm(f"{name}.bn{part}", channels)
        shapes[f"head.layer{layer}.0.shortcut.0.weight"] = (channels, channels, 1, 1)
        shapes |= _norm(f"head.layer{layer}.0.shortcut.1", channels)
    shapes["head.conv2.weight"] = (channels, channels, 3, 3)
    shapes |= _norm("head.bn2", channels)
    width = channels * NUM_MEL_BINS // FREQUENCY_STRIDE
    shapes["xvector.tdnn.linear.weight"] = (config.channels, width, TDNN_KERNEL)
    shapes |= _norm("xvector.tdnn.nonlinear.batchnorm", config.channels)
    width = config.channels
    for block in _BLOCKS:
        for layer in range(config.num_layers[block]):
            shapes |= _layer(f"xvector.block{block + 1}.tdnnd{layer + 1}", width, config)
            width += config.growth
        shapes |= _norm(f"xvector.transit{block + 1}.nonlinear.batchnorm", width)
        shapes[f"xvector.transit{block + 1}.linear.weight"] = (width // 2, width, 1)
        width //= 2
    shapes |= _norm("xvector.out_nonlinear.batchnorm", width)
    shapes[SPEAKER_VECTOR] = (config.vector, 2 * width, 1)
    shapes |= _norm("xvector.dense.nonlinear.batchnorm", config.vector, affine=False)
    return shapes


def _layer(name: str, width: int, config: CampplusConfig) -> Shapes:
    cam = f"{name}.cam_layer"
    return {
        **_norm(f"{name}.nonlinear1.batchnorm", width),
        f"{name}.linear1.weight": (config.bottleneck, width, 1),
        **_norm(f"{name}.nonlinear2.batchnorm", config.bottleneck),
        f"{cam}.linear_local.weight": (config.growth, config.bottleneck, 3),
        f"{cam}.linear1.weight": (config.context, config.bottleneck, 1),
        f"{cam}.linear1.bias": (config.context,),
        f"{cam}.linear2.weight": (config.growth, config.context, 1),
        f"{cam}.linear2.bias": (config.growth,),
    }


def _norm(name: str, channels: int, *, affine: bool = True) -> Shapes:
    kinds = ("weight", "bias", "running_mean", "running_var") if affine else ("running_mean", "running_var")
    return {f"{name}.{kind}": (channels,) for kind in kinds}


def _scale_and_shift(tensors: Mapping[str, Tensor], norm: str) -> tuple[Tensor, Tensor]:
    """A batch norm as a scale and a shift per channel."""
    scale = (tensors[f"{norm}.running_var"] + EPS).rsqrt()
    if f"{norm}.weight" in tensors:
        scale = scale * tensors[f"{norm}.weight"]
    shift = -tensors[f"{norm}.running_mean"] * scale
    return scale, shift + tensors[f"{norm}.bias"] if f"{norm}.bias" in tensors else shift


def _with_norm(tensors: Mapping[str, Tensor], convolution: str, norm: str) -> tuple[Tensor, Tensor]:
    """Weight and bias of a convolution (without bias) and the batch norm after it.

    2D convolutions are transposed from (mel bins, frames) to hfprep's (frames, mel bins).
    """
    weight = tensors[f"{convolution}.weight"]
    scale, shift = _scale_and_shift(tensors, norm)
    weight = weight * scale.view(-1, *(1 for _ in weight.shape[1:]))
    return weight.transpose(2, 3) if weight.ndim == 4 else weight, shift


def _folded(tensors: Mapping[str, Tensor], config: CampplusConfig) -> dict[str, Tensor]:
    """The parameters of `Campplus`, in double precision."""
    tensors = {name: tensor.double() for name, tensor in tensors.items()}
    found: dict[str, Tensor] = {}

    def put(name: str, pair: tuple[Tensor, Tensor], kinds: tuple[str, str] = ("weight", "bias")) -> None:
        found.update({f"{name}{kind}": tensor for kind, tensor in zip(kinds, pair, strict=True)})

    put("head.first.", _with_norm(tensors, "head.conv1", "head.bn1"))
    put("head.last.", _with_norm(tensors, "head.conv2", "head.bn2"))
    for place, name in enumerate(f"head.layer{layer}.{block}" for layer in (1, 2) for block in (0, 1)):
        put(f"head.blocks.{place}.first.", _with_norm(tensors, f"{name}.conv1", f"{name}.bn1"))
        put(f"head.blocks.{place}.second.", _with_norm(tensors, f"{name}.conv2", f"{name}.bn2"))
        if place % 2 == 0:
            put(f"head.blocks.{place}.shortcut.", _with_norm(tensors, f"{name}.shortcut.0", f"{name}.shortcut.1"))
    put("tdnn.", _with_norm(tensors, "xvector.tdnn.linear", "xvector.tdnn.nonlinear.batchnorm"))
    for block in _BLOCKS:
        for layer in range(config.num_layers[block]):
            theirs = f"xvector.block{block + 1}.tdnnd{layer + 1}"
            found |= {f"blocks.{block}.layers.{layer}.{o}": t for o, t in _dense_layer(tensors, theirs).items()}
        transit = f"xvector.transit{block + 1}"
        put(f"blocks.{block}.", _scale_and_shift(tensors, f"{transit}.nonlinear.batchnorm"), ("scale", "shift"))
        put(f"blocks.{block}.transit.", _transit(tensors, transit, last=block == _BLOCKS[-1]))
    weight, bias = _with_norm(tensors, "xvector.dense.linear", "xvector.dense.nonlinear.batchnorm")
    put("out.", (weight[:, :, 0], bias))
    return found


def _transit(tensors: Mapping[str, Tensor], name: str, *, last: bool) -> tuple[Tensor, Tensor]:
    """The 1x1 convolution after a dense block; the last one includes the norm before the statistics pooling."""
    if last:
        weight, bias = _with_norm(tensors, f"{name}.linear", "xvector.out_nonlinear.batchnorm")
        return weight[:, :, 0], bias
    weight = tensors[f"{name}.linear.weight"][:, :, 0]
    return weight, weight.new_zeros(len(weight))


def _dense_layer(tensors: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    scale, shift = _scale_and_shift(tensors, f"{name}.nonlinear1.batchnorm")
    weight, bias = _with_norm(tensors, f"{name}.linear1", f"{name}.nonlinear2.batchnorm")
    cam = f"{name}.cam_layer"
    return {
        "scale": scale,
        "shift": shift,
        "bottleneck.weight": weight[:, :, 0],
        "bottleneck.bias": bias,
        "local_weight": tensors[f"{cam}.linear_local.weight"].permute(2, 0, 1).flatten(0, 1),
        "squeeze.weight": tensors[f"{cam}.linear1.weight"][:, :, 0],
        "squeeze.bias": tensors[f"{cam}.linear1.bias"],
        "gate.weight": tensors[f"{cam}.linear2.weight"][:, :, 0],
        "gate.bias": tensors[f"{cam}.linear2.bias"],
    }
