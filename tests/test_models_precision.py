"""Precisions on a CPU: what each does to a product, to the codes, and where it is refused."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

from hfprep.errors import ConfigError
from hfprep.model_config import ModelConfig
from hfprep.models import precision
from hfprep.models.feature_model import FeatureModel
from hfprep.models.locate import locate
from hfprep.models.masking import FrameMask

CPU = torch.device("cpu")


def factors() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(64, 512, generator=generator) for _ in range(2))
    return x, weight, torch.randn(64, generator=generator)


def error(found: torch.Tensor) -> float:
    """The largest error of the product of `factors`, of its largest value."""
    x, weight, bias = factors()
    right = F.linear(x.double(), weight.double(), bias.double())
    return float((found.double() - right).abs().max() / right.abs().max())


@pytest.mark.parametrize(("dropped", "bits"), [(13, 11), (16, 8)])
def test_a_split_is_exact_and_its_high_part_short(dropped: int, bits: int) -> None:
    numbers = torch.tensor([1.0, -np.pi, 3e-38, 65519.0, 1e30, 0.0, -(2.0**-126)])
    high, rest = precision.split(numbers, dropped)
    assert torch.equal(high + rest, numbers)
    fraction, _ = torch.frexp(high)
    assert torch.equal(torch.trunc(fraction * 2**bits), fraction * 2**bits)
    assert bool((rest.abs() <= numbers.abs() * 2.0 ** (1 - bits)).all())
    assert precision.split(torch.tensor([1 + 2.0**-10]), 13)[1].item() == 0  # the last bit that TF32 has


def test_three_products_of_parts_are_as_good_as_float32() -> None:
    """One TF32 product errs by 2^-11, one of bf16 by 2^-8; three of parts by the square of that."""
    x, weight, bias = factors()
    tf32 = error(F.linear(precision.split(x)[0], precision.split(weight)[0], bias))
    bf16 = error(precision.half_linear(x, weight.bfloat16(), bias))
    in_tf32_parts = error(precision.split_linear(x, weight, bias))
    in_bf16_parts = error(precision.split_linear(x, weight, bias, 16))
    assert in_tf32_parts < 2e-6 < 1e-4 < tf32 < bf16
    assert in_tf32_parts < in_bf16_parts < bf16 / 50
    assert error(precision.half_linear(x, weight.half(), bias)) < bf16


def test_halves_clip_what_they_cannot_hold() -> None:
    big = torch.full((1, 4), 1e6)
    assert torch.isfinite(precision.half_linear(big, torch.full((1, 4), 0.1, dtype=torch.float16), None)).all()


def test_the_mode_holds_inside_its_block_only() -> None:
    with precision.computing("exact", CPU):
        assert precision.in_parts()
        with precision.computing("fp32", CPU):
            assert not precision.in_parts()
        assert precision.in_parts()
    assert not precision.in_parts()


@pytest.mark.parametrize("name", ["exact", "tf32", "fp16"])
def test_what_a_cpu_cannot_do_is_refused_by_name(name: str, golden_small: Path) -> None:
    with pytest.raises(ConfigError, match=f"--precision is '{name}', but cpu computes only fp32 and bf16"):
        load(golden_small, name)
    precision.require("fp32", CPU)
    precision.require("bf16", CPU)


@pytest.mark.parametrize(("capability", "able"), [((9, 0), 4), ((8, 0), 4), ((7, 5), 1), ((6, 1), 0)])
def test_a_gpu_is_asked_for_its_capability(
    capability: tuple[int, int], able: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    device = torch.device("cuda:0")
    assert precision.candidates(device) == ["exact", "tf32", "bf16", "fp16"][4 - able :]
    assert precision.careful("bf16", device) == ("exact" if able == 4 else "fp32")
    if able < 4:
        with pytest.raises(ConfigError, match="compute capability"):
            precision.require("tf32", device)


def load(golden: Path, name: str = "fp32") -> FeatureModel:
    files = locate(models=golden / "checkpoints")
    return FeatureModel.load(files, ModelConfig.read(files.config), precision=name)


def codes_of(model: FeatureModel) -> tuple[torch.Tensor, torch.Tensor]:
    lengths = torch.tensor([300, 170, 120])
    generator = torch.Generator().manual_seed(1)
    tensors = model(torch.randn(3, 300, 160, generator=generator), lengths)
    assert tensors.codes is not None
    assert tensors.condition is not None
    assert tensors.condition.dtype == torch.float32
    codes = torch.cat([row[:length] for row, length in zip(tensors.codes, lengths.tolist(), strict=True)])
    return codes, tensors.condition


def agreement(codes: torch.Tensor, others: torch.Tensor) -> float:
    return float((codes == others).double().mean())


def test_what_each_precision_keeps_of_codes_and_latents(golden_small: Path) -> None:
    codes, condition = codes_of(load(golden_small))
    # A CPU may not be asked for it, but computes the same parts as a GPU does.
    model = load(golden_small)
    model.precision = "exact"
    parts, near = codes_of(model)
    assert agreement(parts, codes) >= 0.998
    assert float((near - condition).norm() / condition.norm()) < 1e-5
    coarse, far = codes_of(load(golden_small, "bf16"))
    assert 0.3 < agreement(coarse, codes) < 0.995
    assert 1e-4 < float((far - condition).norm() / condition.norm()) < 0.1


def test_what_16_bits_hold(golden_small: Path) -> None:
    """The weights of all products of frames outside the codec, and nothing else: no bias, norm, position or code."""
    model = load(golden_small, "bf16")
    halves = {name for name, tensor in model.named_parameters() if tensor.dtype == torch.bfloat16}
    products = {
        f"{name}.{weight}" for name, part in model.named_modules() for weight in getattr(part, "PRODUCT_WEIGHTS", ())
    }
    codec = {name for name in products if name.startswith("semantic_codec")}
    assert codec
    assert halves == products - codec
    assert "conditioner.conformer.subsampling.out_weight" in halves
    assert sum(name.startswith("semantic_encoder.model.encoder.layers.16.") for name in halves) == 4 + 2 + 4


@pytest.mark.parametrize("name", ["fp32", "exact", "tf32", "bf16", "fp16"])
def test_a_gpu_would_take_every_step(name: str, golden_small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shapes, types and devices on a GPU that need not be there; a tensor left on the CPU would end this."""
    monkeypatch.setattr(precision, "_obstacle", lambda *_: None)
    monkeypatch.setattr(FeatureModel, "_check", lambda *_: None)  # it reads numbers, and there are none
    monkeypatch.setattr(FrameMask, "from_lengths", staticmethod(mask_without_numbers))
    model = load(golden_small, name)
    with FakeTensorMode(allow_non_fake_inputs=True):
        for module in model.modules():
            for key, tensor in module.named_parameters(recurse=False):
                there = torch.empty(tensor.shape, dtype=tensor.dtype, device="cuda")
                setattr(module, key, torch.nn.Parameter(there, requires_grad=False))
        tensors = model(torch.empty(3, 120, 160, device="cuda"), torch.tensor([120, 77, 50]))
        assert tensors.codes is not None
        assert (tensors.codes.shape, tensors.codes.device.type) == ((3, 120), "cuda")
        for latents in (tensors.condition, tensors.emo_vec):
            assert latents is not None
            assert (latents.dtype, latents.device.type) == (torch.float32, "cuda")


def mask_without_numbers(lengths: torch.Tensor, num_frames: int, device: torch.device) -> FrameMask:
    padding = torch.zeros(len(lengths), num_frames, dtype=torch.bool, device=device)
    key_bias = torch.zeros(padding.shape, device=device).masked_fill_(padding, float("-inf"))
    return FrameMask(lengths, num_frames, padding[:, :, None], key_bias[:, None, None, :])
