"""The precisions in which the models' matmuls can be computed, and what each requires of a device.

Provides `require` (does the device support a precision), `lower_weights` (once, after loading) and `computing` (a
context manager around the models).

- fp32: float32 throughout.
- exact: on a GPU's tensor cores, with three float16 products for one (see kernels/operators.py), and three TF32
  products for one in attention; the error is about 2^-21, close to float32's.
- tf32: TF32 matmuls, with factors rounded to 11 significant bits.
- bf16, fp16: weights and both factors of matmuls and attention in 16 bits, sums in float32, results rounded.
Norms, activations and residual sums are float32 in all of them. The codec always runs in exact on a GPU and in fp32 on
a CPU, because a small error changes the code of a frame with two almost equally near codewords.
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

FASTER = ("exact", "tf32", "bf16", "fp16")  # on a GPU
LEAST_CAPABILITY = (8, 0)  # lowest compute capability (major, minor) with full-rate hardware support for them
LEAST_TORCH = (2, 8)  # torch.mm with out_dtype

_mode: ContextVar[str] = ContextVar("hfprep-precision", default="fp32")


def require(name: str, device: torch.device, origin: str = "--precision is {name!r}") -> None:
    """Raise ConfigError if `device` does not support the precision `name` (not auto); `origin` starts the message."""
    reason = obstacle(name, device)
    if reason:
        raise ConfigError(f"{origin.format(name=name)}, but {reason}; use --precision fp32, or another device")


def candidates(device: torch.device) -> list[str]:
    """The precisions, other than fp32, that may be faster than fp32 on `device`."""
    if device.type == "cpu":
        return ["bf16"] if fast_bf16() else []
    return [name for name in FASTER if not obstacle(name, device)]


def obstacle(name: str, device: torch.device) -> str | None:
    """Why `device` does not support the precision `name`; None if it does."""
    if name == "fp32" or (device.type == "cpu" and name == "bf16"):
        return None
    if device.type != "cuda":
        return f"{device} supports only fp32 and bf16"
    found = torch.cuda.get_device_capability(device)
    if found < LEAST_CAPABILITY:
        capability, least = (".".join(map(str, version)) for version in (found, LEAST_CAPABILITY))
        return f"{device} has compute capability {capability}; {least} or higher is needed"
    return lacking()


def lacking() -> str | None:
    """What the fused models need and this machine lacks; None if nothing. They are compiled on first use."""
    release = tuple(int(number) for number in torch.__version__.split(".")[:2])
    if release < LEAST_TORCH:
        return f"torch is {torch.__version__}; {LEAST_TORCH[0]}.{LEAST_TORCH[1]} or later is needed"
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed (pip install triton)"
    if not any(map(shutil.which, ("cc", "gcc", "clang"))):
        return "Triton finds no C compiler (install gcc)"
    if not (Path(sysconfig.get_path("include")) / "Python.h").is_file():
        return "Triton finds no Python.h (install Python's development headers: python3-dev)"
    return None


def fast_bf16() -> bool:
    """Whether this CPU has bf16 matmul instructions."""
    probes = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")  # private in torch, so they may disappear
    return any(getattr(torch.cpu, probe, lambda: False)() for probe in probes)


def lower_weights(modules: Iterable[nn.Module]) -> None:
    """Convert the matmul weights of these modules to bf16."""
    for module in modules:
        for part in module.modules():
            for attribute in getattr(part, "PRODUCT_WEIGHTS", ()):
                weight = getattr(part, attribute)
                setattr(part, attribute, nn.Parameter(weight.detach().to(torch.bfloat16), requires_grad=False))


@contextmanager
def computing(name: str, device: torch.device) -> Iterator[None]:
    """Compute matmuls and attention in the precision `name` inside the block, in this thread.

    On a GPU, TF32 is disabled except for the precision "tf32": it would change codes, and it is a process-wide setting.
    The GPU is made the current device, on which Triton's kernels run.
    """
    token = _mode.set(name)
    try:
        with torch.cuda.device(device) if device.type == "cuda" else nullcontext(), _tf32(name == "tf32", device):
            yield
    finally:
        _mode.reset(token)


@contextmanager
def _tf32(allowed: bool, device: torch.device) -> Iterator[None]:
    """Allow or forbid TF32, and sum 16-bit matmuls in float32; restores the settings afterwards.

    torch 2.9 has a new setting for TF32, and raises when the old one is read after the new one was set.
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
    """softmax(query . key / sqrt(d) + bias) . value, (B, H, T, d) float32, in the precision of `computing`."""
    if _mode.get() != "bf16":
        return F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
    query, key, value = (x.bfloat16() for x in (query, key, value))
    bias = None if bias is None else bias.bfloat16()
    return F.scaled_dot_product_attention(query, key, value, attn_mask=bias).float()
