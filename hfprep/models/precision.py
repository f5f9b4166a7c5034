"""The number formats in which the models' products can be computed, and what each needs of a device.

Gives `require` (may this device compute so), `lower_weights` (once, after loading) and `computing` (a context around
the models). Takes modules and devices; knows nothing of which module does what, nor of how precise is precise enough.

- fp32: float32 throughout.
- exact: on a GPU's tensor units, three float16 products for one (see fused/operators.py), attention by three TF32
  products for one: an error of about 2^-21, next to float32's own.
- tf32: one TF32 product, factors rounded to 11 significant bits.
- bf16, fp16: weights and both factors of the products and attentions in 16 bits, sums in float32, results rounded.
Norms, activations and sums of layers stay float32 in all of them, and the codec is as in exact on a GPU and as in fp32
on a CPU: two codewords can be almost equally near, and a small error then changes the code.
"""

from __future__ import annotations

import importlib.util
import shutil
import sysconfig
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hfprep.errors import ConfigError

# (major, minor) compute capability from which a GPU computes so at full rate
LEAST_CAPABILITY = {"exact": (8, 0), "tf32": (8, 0), "bf16": (8, 0), "fp16": (8, 0)}

LEAST_TORCH = (2, 8)  # torch.mm with out_dtype

_mode: ContextVar[str] = ContextVar("hfprep-precision", default="fp32")


def require(name: str, device: torch.device, origin: str = "--precision is {name!r}") -> None:
    """Raise ConfigError if `device` cannot compute in the precision `name` (not auto); `origin` says whose wish."""
    reason = obstacle(name, device)
    if reason:
        raise ConfigError(f"{origin.format(name=name)}, but {reason}; use --precision fp32, or another device")


def candidates(device: torch.device) -> list[str]:
    """The precisions, other than fp32, that may be faster than fp32 on `device`."""
    if device.type == "cpu":
        return ["bf16"] if fast_bf16() else []
    return [name for name in LEAST_CAPABILITY if not obstacle(name, device)]


def obstacle(name: str, device: torch.device) -> str | None:
    """Why `device` cannot compute in the precision `name`; None if it can."""
    if name == "fp32" or (device.type == "cpu" and name == "bf16"):
        return None
    if device.type != "cuda":
        return f"{device} computes only fp32 and bf16"
    found, least = torch.cuda.get_device_capability(device), LEAST_CAPABILITY[name]
    if found < least:
        return f"{device} has compute capability {found[0]}.{found[1]}, and it takes {least[0]}.{least[1]}"
    return lacking()


def lacking() -> str | None:
    """What the fused models lack on this machine: they are compiled when they first run, and use a new operator."""
    release = tuple(int(number) for number in torch.__version__.split(".")[:2])
    if release < LEAST_TORCH:
        return f"torch is {torch.__version__}, and it takes {LEAST_TORCH[0]}.{LEAST_TORCH[1]} or later"
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed (pip install triton)"
    if not any(map(shutil.which, ("cc", "gcc", "clang"))):
        return "Triton finds no C compiler (install gcc)"
    if not (Path(sysconfig.get_path("include")) / "Python.h").is_file():
        return "Triton finds no Python.h (install Python's development headers: python3-dev)"
    return None


def fast_bf16() -> bool:
    """Whether this CPU has instructions for products of bf16."""
    probes = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")  # private to torch, so they may be gone one day
    return any(getattr(torch.cpu, probe, lambda: False)() for probe in probes)


def lower_weights(modules: Iterable[nn.Module]) -> None:
    """For bf16, keep the weights of these modules' products in 16 bits."""
    for module in modules:
        for part in module.modules():
            for attribute in getattr(part, "PRODUCT_WEIGHTS", ()):
                weight = getattr(part, attribute)
                setattr(part, attribute, nn.Parameter(weight.detach().to(torch.bfloat16), requires_grad=False))


@contextmanager
def computing(name: str, device: torch.device) -> Iterator[None]:
    """Compute products and attentions in the precision `name` while the block runs, in this thread.

    On a GPU, TF32 is kept out of everything else: codes do not survive it, and it is a setting of the whole process.
    The GPU is the current one meanwhile: that is where Triton's kernels run.
    """
    token = _mode.set(name)
    try:
        with torch.cuda.device(device) if device.type == "cuda" else nullcontext(), _tf32(name == "tf32", device):
            yield
    finally:
        _mode.reset(token)


@contextmanager
def _tf32(allowed: bool, device: torch.device) -> Iterator[None]:
    """TF32 allowed or not, and 16-bit products summed in float32; as they were again afterwards.

    torch 2.9 has a new setting for TF32, and refuses to read the old one once a program has set the new one.
    """
    if device.type != "cuda":
        yield
        return
    matmul, cudnn = torch.backends.cuda.matmul, cast(Any, torch.backends.cudnn)
    settings: list[tuple[Any, str, Any]] = [
        (matmul, "allow_fp16_reduced_precision_reduction", False),
        (matmul, "allow_bf16_reduced_precision_reduction", False),
    ]
    if hasattr(matmul, "fp32_precision"):
        name = "tf32" if allowed else "ieee"
        settings += [(matmul, "fp32_precision", name), (cudnn.conv, "fp32_precision", name)]
    else:
        settings += [(matmul, "allow_tf32", allowed), (cudnn, "allow_tf32", allowed)]
    before = [(owner, key, getattr(owner, key)) for owner, key, _ in settings]
    try:
        for owner, key, value in settings:
            setattr(owner, key, value)
        yield
    finally:
        for owner, key, value in before:
            setattr(owner, key, value)


def half_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x (..., I) times weight (O, I) transposed in the weight's 16-bit format, plus bias: (..., O) float32."""
    return F.linear(x.to(weight.dtype), weight, None if bias is None else bias.to(weight.dtype)).float()


def attend(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> Tensor:
    """softmax(query . key / sqrt(d) + bias) . value, (B, H, T, d) float32, in the precision that is being computed."""
    if _mode.get() != "bf16":
        return F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
    query, key, value = (x.bfloat16() for x in (query, key, value))
    bias = None if bias is None else bias.bfloat16()
    return F.scaled_dot_product_attention(query, key, value, attn_mask=bias).float()
