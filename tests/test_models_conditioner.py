"""Conformer, Perceiver and the two branches against the plain ones in double precision."""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from hfprep.models import conformer as conformer_module
from hfprep.models import operators
from hfprep.models.conditioner import Conditioner, EmotionConditioner
from hfprep.models.conformer import Subsampling
from hfprep.models.masking import FrameMask
from hfprep.models.perceiver import Perceiver
from hfprep.recipes.indextts2.checkpoints import load_conditioners
from hfprep.recipes.indextts2.config import ModelConfig
from scripts.benchmark import plain_models as reference

WIDTH = 32


@pytest.fixture(scope="module")
def gpt(golden_small: Path) -> reference.Tensors:
    return reference.read_tensors(golden_small / "checkpoints/gpt.pth")


@pytest.fixture(scope="module")
def config(golden_small: Path) -> ModelConfig:
    return ModelConfig.read(golden_small / "checkpoints/config.yaml")


@pytest.fixture(scope="module")
def branches(golden_small: Path, config: ModelConfig) -> tuple[Conditioner, EmotionConditioner]:
    condition, emotion = load_conditioners(golden_small / "checkpoints/gpt.pth", config, semantic_size=WIDTH)
    return condition.eval(), emotion.eval()


def whole(frames: int) -> FrameMask:
    return FrameMask.from_lengths(torch.tensor([frames]), frames, torch.device("cpu"))


def relative(got: Tensor, wanted: Tensor) -> float:
    assert got.shape == wanted.shape
    return float((got - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("frames", [3, 4, 5, 90, 301])
def test_both_branches_equal_the_plain_ones(
    branches: tuple[Conditioner, EmotionConditioner], gpt: reference.Tensors, config: ModelConfig, frames: int
) -> None:
    semantic = torch.randn(frames, WIDTH)
    exact = {name: tensor.double() for name, tensor in gpt.items()}
    condition, emotion = branches
    with torch.inference_mode():
        got = condition(semantic[None], whole(frames))[0]
        wanted = reference.condition(exact, semantic.double(), config.condition.attention_heads)
        assert relative(got, wanted) < 2e-6
        got = emotion(semantic[None], whole(frames))[0]
        wanted = reference.emo_vec(exact, semantic.double(), config.emotion.attention_heads)
        assert relative(got, wanted) < 2e-6


@pytest.mark.parametrize("piece", [(1, 1), (3, 4), (8, 14), (99, 99)])
@pytest.mark.parametrize("frames", [3, 15, 16])
@pytest.mark.parametrize("device", ["cpu", "gpu"])
def test_subsampling_is_the_convolution_and_the_product_in_pieces(
    piece: tuple[int, int], frames: int, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    channels, rows = piece
    monkeypatch.setattr(conformer_module, "GPU_CHANNELS_PER_PIECE", channels)
    monkeypatch.setattr(conformer_module, "CACHED_FRAMES", channels)
    monkeypatch.setattr(conformer_module, "CPU_FRAMES_PER_PIECE", rows)
    monkeypatch.setattr(operators, "ROUNDING", rows)
    layer = Subsampling(WIDTH, 8)
    if device == "gpu":
        monkeypatch.setattr(layer, "sums_on_cpu", layer.sums_on_gpu)
        monkeypatch.setattr(conformer_module, "CACHE_LINE", 1)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter)
    x = torch.randn(2, frames, WIDTH)
    mask = FrameMask.from_lengths(torch.tensor([frames, frames]), frames, x.device)
    with torch.inference_mode():
        maps = F.relu(F.conv2d(x[:, None], layer.conv_weight, layer.conv_bias, stride=2))
        wanted = F.linear(maps.transpose(1, 2).flatten(2), layer.out_weight, layer.out_bias) * 8**0.5
        torch.testing.assert_close(layer(x, mask), wanted, rtol=1e-4, atol=1e-3)
        torch.testing.assert_close(layer(x, mask), wanted, rtol=1e-4, atol=1e-3)  # its scratch has been used


@pytest.mark.parametrize("length", [3, 4, 5, 6, 7])
def test_the_subsampled_mask_is_every_second_frame_from_the_third(length: int) -> None:
    mask = FrameMask.from_lengths(torch.tensor([length, 12]), 12, torch.device("cpu"))
    assert mask.padding is not None
    subsampled = mask.subsampled(torch.device("cpu"))
    assert subsampled.padding is not None
    assert torch.equal(subsampled.padding[..., 0], mask.padding[:, 2::2, 0])
    assert subsampled.num_frames == subsampled.padding.shape[1]


def test_a_batch_without_padding_has_no_mask() -> None:
    mask = FrameMask.from_lengths(torch.tensor([12, 12]), 12, torch.device("cpu"))
    assert (mask.padding, mask.key_bias) == (None, None)
    # 11 and 12 frames both give 5, so the mask vanishes on the way.
    mask = FrameMask.from_lengths(torch.tensor([12, 11]), 12, torch.device("cpu"))
    assert mask.padding is not None
    assert mask.subsampled(torch.device("cpu")).padding is None


def test_perceiver_without_a_projection_where_the_widths_match() -> None:
    perceiver = Perceiver(context_width=24, width=24, num_latents=5, num_heads=2, mult=2)
    for parameter in perceiver.parameters():
        torch.nn.init.normal_(parameter, std=24**-0.5)
    names = {"attention.query": "0.to_q", "attention.key_value": "0.to_kv", "attention.out": "0.to_out"}
    names |= {"feed_forward.expand": "1.0", "feed_forward.contract": "1.2"}
    tensors: reference.Tensors = {"latents": perceiver.latents, "norm.gamma": perceiver.norm.gamma}
    for layer in range(2):
        for ours, theirs in names.items():
            part = perceiver.get_submodule(f"layers.{layer}.{ours}")
            tensors |= {f"layers.{layer}.{theirs}.{kind}": value for kind, value in part.named_parameters()}
    context = torch.randn(19, 24)
    with torch.inference_mode():
        got = perceiver(context[None], whole(19))[0]
        exact = {name: tensor.double() for name, tensor in tensors.items()}
        assert relative(got, reference.perceiver(exact, context.double(), 2)) < 2e-6
