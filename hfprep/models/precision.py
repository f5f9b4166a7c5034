"""The number formats in which the models' products can be computed, and what each needs of a device.

Gives `require` (may this device compute so), `lower_weights` (once, after loading) and `computing` (a context around
the models). Takes modules and devices; knows nothing of which module does what, nor of how precise is precise enough.

- fp32: float32 throughout.
- exact: on a GPU's tensor units, three TF32 products for one. Each factor is cut into a high part of 11 significant
  bits and the rest; high x high + high x rest + rest x high leave an error of 2^-21, about float32's own.
- tf32: one TF32 product, factors rounded to 11 significant bits.
- bf16, fp16: weights and both factors of the products and attentions in 16 bits, sums in float32, results rounded.
Norms, activations and sums of layers stay float32 in all of them; so does the quantizer (see FeatureModel).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hfprep.errors import ConfigError

HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}
# (major, minor) compute capability from which a GPU computes so at full rate
LEAST_CAPABILITY = {"exact": (8, 0), "tf32": (8, 0), "bf16": (8, 0), "fp16": (7, 0)}
TF32_DROPPED_BITS = 13  # of float32's 23 stored bits

_mode: ContextVar[str] = ContextVar("hfprep-precision", default="fp32")


def require(name: str, device: torch.device, origin: str = "--precision is {name!r}") -> None:
    """Raise ConfigError where `device` cannot compute in the precision `name` (not auto); `origin` says whose wish."""
    reason = _obstacle(name, device)
    if reason:
        raise ConfigError(f"{origin.format(name=name)}, but {reason}; use --precision fp32, or another device")


def candidates(device: torch.device) -> list[str]:
    """The precisions, other than fp32, that may be faster than fp32 on `device`."""
    if device.type == "cpu":
        return ["bf16"] if _fast_bf16() else []
    return [name for name in LEAST_CAPABILITY if not _obstacle(name, device)]


def careful(name: str, device: torch.device) -> str:
    """What stands in for float32 where `name` would be too coarse: exact, where the device computes it."""
    return "fp32" if name == "fp32" or (name != "exact" and _obstacle("exact", device)) else "exact"


def _obstacle(name: str, device: torch.device) -> str | None:
    if name == "fp32" or (device.type == "cpu" and name == "bf16"):
        return None
    if device.type != "cuda":
        return f"{device} computes only fp32 and bf16"
    found, least = torch.cuda.get_device_capability(device), LEAST_CAPABILITY[name]
    if found < least:
        return f"{device} has compute capability {found[0]}.{found[1]}, and it takes {least[0]}.{least[1]}"
    return None


def _fast_bf16() -> bool:
    """Whether this CPU has instructions for products of bf16."""
    probes = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")  # private to torch, so they may be gone one day
    return any(getattr(torch.cpu, probe, lambda: False)() for probe in probes)


def lower_weights(modules: Iterable[nn.Module], name: str) -> None:
    """For bf16 and fp16, keep the weights of these modules' products in 16 bits (those of two dimensions and more)."""
    dtype = HALF.get(name)
    if dtype is None:
        return
    for module in modules:
        for part in module.modules():
            for attribute in getattr(part, "PRODUCT_WEIGHTS", ()):
                weight = getattr(part, attribute)
                setattr(part, attribute, nn.Parameter(weight.detach().to(dtype), requires_grad=False))


@contextmanager
def computing(name: str, device: torch.device) -> Iterator[None]:
    """Compute products and attentions in the precision `name` while the block runs, in this thread.

    On a GPU, TF32 is kept out of everything else: codes do not survive it, and it is a setting of the whole process.
    """
    token = _mode.set(name)
    try:
        with _tf32(name == "tf32", device):
            yield
    finally:
        _mode.reset(token)


@contextmanager
def _tf32(allowed: bool, device: torch.device) -> Iterator[None]:
    if device.type != "cuda":
        yield
        return
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def in_parts() -> bool:
    """Whether products are to be computed by `split_linear`."""
    return _mode.get() == "exact"


def split(x: Tensor, dropped_bits: int = TF32_DROPPED_BITS) -> tuple[Tensor, Tensor]:
    """x float32 as high + rest, exactly: high has the leading 24 - dropped_bits significant bits of each number.

    The bits are cut off, not rounded, so that nothing overflows; the rest is then at most 2^(dropped_bits - 23) of x.
    """
    high = (x.view(torch.int32) & (-1 << dropped_bits)).view(torch.float32)
    return high, x - high


def split_linear(x: Tensor, weight: Tensor, bias: Tensor | None, dropped_bits: int = TF32_DROPPED_BITS) -> Tensor:
    """x (rows, I) times weight (O, I) transposed, plus bias, all float32, by three products of parts: (rows, O).

    With parts of TF32's width the tensor units take the high parts as they are, and round only the rests. What they
    see is made here on every device, so that a CPU gives what a GPU gives, but for the order of sums.
    """
    high, rest = split(x, dropped_bits)
    weight_high, weight_rest = split(weight, dropped_bits)
    rest, weight_rest = split(rest, dropped_bits)[0], split(weight_rest, dropped_bits)[0]
    with _tf32(True, x.device):  # the small parts first, each product added to where the last one lies
        out = rest @ weight_high.t() if bias is None else torch.addmm(bias, rest, weight_high.t())
        out.addmm_(high, weight_rest.t())
        return out.addmm_(high, weight_high.t())


def half_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x (..., I) times weight (O, I) transposed in the weight's 16-bit format, plus bias: (..., O) float32."""
    return F.linear(_lowered(x, weight.dtype), weight, None if bias is None else bias.to(weight.dtype)).float()


def attend(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> Tensor:
    """softmax(query . key / sqrt(d) + bias) . value, (B, H, T, d) float32, in the precision that is being computed."""
    dtype = HALF.get(_mode.get())
    if dtype is None:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
    query, key, value = (_lowered(x, dtype) for x in (query, key, value))
    bias = None if bias is None else bias.to(dtype)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=bias).float()


def _lowered(x: Tensor, dtype: torch.dtype) -> Tensor:
    # fp16 ends at 65504; a clip is kinder than an infinity, which would cost the whole sample.
    limit = torch.finfo(dtype).max
    return (x.clamp(-limit, limit) if dtype == torch.float16 else x).to(dtype)
