"""Precisions on a CPU: what each does to a product, to the codes, and where it is refused."""

import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from hfprep.errors import ConfigError
from hfprep.models import precision
from hfprep.models.masking import FrameMask
from hfprep.models.precision import computing
from hfprep.recipes.indextts2.config import ModelConfig
from hfprep.recipes.indextts2.feature_model import FeatureModel
from hfprep.recipes.indextts2.recipe import locate
from hfprep.recipes.options import ModelOptions

CPU = torch.device("cpu")


def test_the_mode_holds_inside_its_block_only() -> None:
    query = torch.randn(1, 1, 8, 16)
    plain = precision.attend(query, query, query, None)
    with precision.computing("bf16", CPU):
        coarse = precision.attend(query, query, query, None)
        with precision.computing("fp32", CPU):
            assert torch.equal(precision.attend(query, query, query, None), plain)
        assert torch.equal(precision.attend(query, query, query, None), coarse)
    assert torch.equal(precision.attend(query, query, query, None), plain)
    assert 1e-4 < float((coarse - plain).abs().max()) < 0.05


@pytest.mark.parametrize("name", ["exact", "tf32", "fp16"])
def test_what_a_cpu_cannot_do_is_refused_by_name(name: str, golden_small: Path) -> None:
    with pytest.raises(ConfigError, match=f"--precision is '{name}', but cpu supports only fp32 and bf16"):
        load(golden_small, name)
    precision.require("fp32", CPU)
    precision.require("bf16", CPU)


@pytest.mark.parametrize(("capability", "able"), [((9, 0), True), ((8, 0), True), ((7, 5), False)])
def test_a_gpu_is_asked_for_its_capability(
    capability: tuple[int, int], able: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    monkeypatch.setattr(precision, "lacking", lambda: None)
    device = torch.device("cuda:0")
    assert precision.candidates(device) == (["exact", "tf32", "bf16", "fp16"] if able else [])
    if not able:
        with pytest.raises(ConfigError, match="compute capability"):
            precision.require("tf32", device)


def no_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision.importlib.util, "find_spec", lambda _: None)


def no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision.importlib.util, "find_spec", lambda _: "there")
    monkeypatch.setattr(precision.shutil, "which", lambda _: None)


def no_headers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision.importlib.util, "find_spec", lambda _: "there")
    monkeypatch.setattr(precision.shutil, "which", lambda _: "/usr/bin/cc")
    monkeypatch.setattr(precision.sysconfig, "get_path", lambda _: "/nowhere")


def old_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "__version__", "2.6.0+cu124")


@pytest.mark.parametrize(
    ("lacking", "message"),
    [
        (no_triton, "Triton is not installed"),
        (no_compiler, "no C compiler"),
        (no_headers, "no Python.h"),
        (old_torch, "torch is 2.6.0"),
    ],
)
def test_what_the_kernels_need_is_asked_for(
    lacking: Callable[[pytest.MonkeyPatch], None], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    lacking(monkeypatch)
    device = torch.device("cuda:0")
    assert precision.candidates(device) == []
    precision.require("fp32", device)
    with pytest.raises(ConfigError, match=message):
        precision.require("exact", device)


def load(golden: Path, name: str = "fp32") -> FeatureModel:
    files = locate(ModelOptions(models=golden / "checkpoints"))
    return FeatureModel.load(files, ModelConfig.read(files.config), precision=name)


def codes_of(model: FeatureModel) -> tuple[torch.Tensor, torch.Tensor]:
    lengths = torch.tensor([300, 170, 120])
    generator = torch.Generator().manual_seed(1)
    tensors = model(torch.randn(3, 300, 160, generator=generator), lengths)
    assert tensors["condition"].dtype == torch.float32
    codes = torch.cat([row[:length] for row, length in zip(tensors["codes"], lengths.tolist(), strict=True)])
    return codes, tensors["condition"]


def agreement(codes: torch.Tensor, others: torch.Tensor) -> float:
    return float((codes == others).double().mean())


def test_what_16_bits_keep_of_codes_and_latents(golden_small: Path) -> None:
    codes, condition = codes_of(load(golden_small))
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
    assert sum(name.startswith("semantic_encoder.layers.16.") for name in halves) == 4 + 2 + 4


def test_a_gpu_would_take_every_step_in_float32(golden_small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shapes, types and devices on a GPU that need not be there; a tensor left on the CPU would end this."""
    monkeypatch.setattr(FeatureModel, "check_batch", lambda *_: None)  # it reads numbers, and there are none
    monkeypatch.setattr(FrameMask, "from_lengths", staticmethod(mask_without_numbers))
    monkeypatch.setattr(torch.cuda, "device", lambda _: nullcontext())
    model = load(golden_small)
    with FakeTensorMode(allow_non_fake_inputs=True):
        for module in model.modules():
            for key, tensor in module.named_parameters(recurse=False):
                there = torch.empty(tensor.shape, dtype=tensor.dtype, device="cuda")
                setattr(module, key, torch.nn.Parameter(there, requires_grad=False))
        tensors = model(torch.empty(3, 120, 160, device="cuda"), torch.tensor([120, 77, 50]))
        assert (tensors["codes"].shape, tensors["codes"].device.type) == ((3, 120), "cuda")
        for latents in (tensors["condition"], tensors["emo_vec"]):
            assert latents is not None
            assert (latents.dtype, latents.device.type) == (torch.float32, "cuda")


def mask_without_numbers(lengths: torch.Tensor, num_frames: int, device: torch.device) -> FrameMask:
    padding = torch.zeros(len(lengths), num_frames, dtype=torch.bool, device=device)
    key_bias = torch.zeros(padding.shape, device=device).masked_fill_(padding, float("-inf"))
    return FrameMask(lengths, num_frames, padding[:, :, None], key_bias[:, None, None, :], lengths.int())


class _Settings:
    """Stands for torch's switches, all of which are recorded."""

    def __init__(self, **values: Any) -> None:
        self.__dict__.update(values)


def _backends(monkeypatch: pytest.MonkeyPatch, *, new: bool) -> tuple[Any, Any]:
    """Switches as torch 2.9 has them, or as those before it had, and a GPU whose name is all that is asked of it."""
    matmul: Any
    cudnn: Any
    if new:
        matmul, cudnn = _Settings(fp32_precision="none"), _Settings(conv=_Settings(fp32_precision="tf32"))
    else:
        matmul, cudnn = _Settings(allow_tf32=False), _Settings(allow_tf32=True)
    matmul.__dict__ |= dict.fromkeys(
        ("allow_fp16_reduced_precision_reduction", "allow_bf16_reduced_precision_reduction"), True
    )
    monkeypatch.setattr(torch.backends.cuda, "matmul", matmul)
    monkeypatch.setattr(torch.backends, "cudnn", cudnn)
    monkeypatch.setattr(torch.cuda, "device", lambda _: nullcontext())
    return matmul, cudnn


@pytest.mark.parametrize("name", ["fp32", "tf32"])
@pytest.mark.parametrize("new", [False, True])
def test_switches_of_torch_are_set_while_it_computes_and_left_as_they_were(
    monkeypatch: pytest.MonkeyPatch, name: str, new: bool
) -> None:
    matmul, cudnn = _backends(monkeypatch, new=new)
    before = vars(matmul) | {"conv": vars(cudnn.conv) | {}} if new else vars(matmul) | vars(cudnn)
    with computing(name, torch.device("cuda:0")):
        allowed = name == "tf32"
        if new:
            expected = "tf32" if allowed else "ieee"
            assert (matmul.fp32_precision, cudnn.conv.fp32_precision) == (expected, expected)
            assert not hasattr(matmul, "allow_tf32")
        else:
            assert (matmul.allow_tf32, cudnn.allow_tf32) == (allowed, allowed)
        assert not matmul.allow_fp16_reduced_precision_reduction  # sums are promised in float32
        assert not matmul.allow_bf16_reduced_precision_reduction
    assert (vars(matmul) | {"conv": vars(cudnn.conv)} if new else vars(matmul) | vars(cudnn)) == before


@pytest.mark.skipif(not hasattr(torch.backends.cuda.matmul, "fp32_precision"), reason="torch before 2.9")
def test_a_program_that_has_set_the_new_switch_is_no_error() -> None:
    """Reading the old switch is an error from then on, in this process for good."""
    code = (
        "import torch; from contextlib import nullcontext; from hfprep.models.precision import computing\n"
        "torch.cuda.device = lambda _: nullcontext()\n"
        "torch.backends.cuda.matmul.fp32_precision = 'tf32'\n"
        "with computing('fp32', torch.device('cuda:0')):\n"
        "    assert torch.backends.cuda.matmul.fp32_precision == 'ieee'\n"
        "assert torch.backends.cuda.matmul.fp32_precision == 'tf32'\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent.parent, check=True, timeout=100)
