"""Building blocks of the fused models: matmuls whose inputs and results stay in the fastest form.

Provides `Form` (how the factors of matmuls are stored), `Rows` (frames in a form), `Product` (a weight in a form; from
`Rows` to a `Branch`), and the steps between matmuls: `normed`, `added`, `activated`, `Depthwise`, `attend`. All work on
the frames of all clips, (B * T, C).

Numbers in three parts: x is scaled by a power of two to float16's range and split into a high part (the nearest
float16) and a low part (the rest). high x low + low x high + high x high, summed in float32, has an error of about
2^-22. The three products are a single matmul of three times the length, with the small terms first: tensor cores
truncate sums, and lose less while a sum is small. See Ootomo & Yokota 2022.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor, nn

from hfprep.models.kernels import kernels

LOG2E = math.log2(math.e)
TOP_EXPONENT: int = kernels.TOP_EXPONENT.value  # approximate exponent of a weight's largest number after scaling
# Numbers in the rows of a program, and rows of a program of the depthwise convolution.
NUMBERS_PER_PROGRAM, ROWS_PER_PROGRAM = 2048, 8


@dataclass(frozen=True)
class Form:
    """How the factors of matmuls are stored: in 16 bits (`parts` 1), or as low, high and high parts (3)."""

    dtype: torch.dtype
    parts: int = 1

    @property
    def result(self) -> torch.dtype:
        """The type of a matmul's result."""
        return torch.float32 if self.parts > 1 else self.dtype


FORMS = {"bf16": Form(torch.bfloat16), "fp16": Form(torch.float16), "exact": Form(torch.float16, 3)}


@dataclass(frozen=True)
class Rows:
    """Input of a matmul: `values` (rows, parts * I), and with three parts, `scales`, a power of two per row."""

    values: Tensor
    scales: Tensor | None


@dataclass(frozen=True)
class Branch:
    """Result of a matmul (rows, O), before multiplying by `scales` (rows,) and `factor` and adding `bias` (O,)."""

    values: Tensor
    scales: Tensor | None
    factor: float
    bias: Tensor | None


class Product(nn.Module):
    """A linear layer in a form, from weight (O, I) and bias (O,) or None, float32, on the target device."""

    weight: Tensor
    bias: Tensor | None

    def __init__(self, weight: Tensor, bias: Tensor | None, form: Form) -> None:
        super().__init__()
        self.form, self.factor = form, 1.0
        if form.parts > 1:
            exponent = TOP_EXPONENT - int(torch.frexp(weight.abs().max())[1])
            scaled = weight * 2.0**exponent
            high = scaled.to(form.dtype)
            weight, self.factor = torch.cat([high, (scaled - high.float()).to(form.dtype), high], dim=1), 2.0**-exponent
        self.register_buffer("weight", weight.to(form.dtype))
        self.register_buffer("bias", None if bias is None else bias.to(form.result))

    @classmethod
    def of(cls, layer: Any, form: Form) -> Product:
        """A linear layer or a convolution of kernel size 1."""
        return cls(layer.weight.flatten(1), layer.bias, form)

    def forward(self, rows: Rows) -> Branch:
        """(rows, I) to (rows, O)."""
        if self.form.parts > 1:
            return Branch(multiply(rows.values, self.weight), rows.scales, self.factor, self.bias)
        return Branch(nn.functional.linear(rows.values, self.weight, self.bias), None, 1.0, None)


def multiply(rows: Tensor, weight: Tensor) -> Tensor:
    """float16 (rows, I) times (O, I) transposed; sums and result are float32."""
    if rows.device.type == "cpu":
        return rows.float() @ weight.float().t()
    return torch.mm(rows, weight.t(), out_dtype=torch.float32)


class Norm(nn.Module):
    """A LayerNorm's parameters."""

    weight: Tensor
    bias: Tensor

    def __init__(self, norm: nn.LayerNorm) -> None:
        super().__init__()
        self.eps = norm.eps
        self.register_buffer("weight", norm.weight.detach())
        self.register_buffer("bias", norm.bias.detach())


def new_rows(rows: int, columns: int, form: Form, like: Tensor) -> Rows:
    """Uninitialised rows in a form."""
    scales = like.new_empty(rows, dtype=torch.float32) if form.parts > 1 else None
    return Rows(like.new_empty(rows, form.parts * columns, dtype=form.dtype), scales)


def added(
    x: Tensor, branch: Branch | None, norm: Norm | None, form: Form | None, *, share: float = 1.0,
    gamma: Tensor | None = None, keep: bool = True,
) -> tuple[Tensor, Rows]:  # fmt: skip
    """x (rows, C) + share * gamma * branch, float32, and the same after `norm` in a form.

    Without a branch, the sum is x. Without `form`, the returned rows are undefined; without `keep`, the returned sum
    is.
    """
    x = x.contiguous()  # windows over frames may overlap in memory
    rows, columns = x.shape
    keep = keep and branch is not None
    new = torch.empty_like(x, dtype=torch.float32) if keep else x
    out = new_rows(rows, columns, form, x) if form is not None else Rows(x, None)
    scales = None if branch is None else branch.scales
    bias = None if branch is None else branch.bias
    per_program = _rows_per_program(columns)
    kernels.add_norm[(-(-rows // per_program),)](
        x, x if branch is None else branch.values, or_any(scales, x), 1.0 if branch is None else branch.factor,
        or_any(bias, x), or_any(gamma, x), x if norm is None else norm.weight, x if norm is None else norm.bias, new,
        out.values, or_any(out.scales, x), rows, share, 0.0 if norm is None else norm.eps, N=columns,
        COLUMNS=triton.next_power_of_2(columns),
        ROWS=per_program, ADD=branch is not None, SCALED=scales is not None, BIASED=bias is not None,
        GAMMA=gamma is not None, NORM=norm is not None, KEEP=keep, FORM=0 if form is None else form.parts, num_warps=4,
    )  # fmt: skip
    return new, out


FLOAT = Form(torch.float32)  # for results that are not the input of a matmul


def normed(x: Tensor, norm: Norm, form: Form) -> Rows:
    """x (rows, C) after a LayerNorm, in a form."""
    return added(x, None, norm, form)[1]


def in_form(x: Tensor, form: Form) -> Rows:
    """x (rows, C) in a form; unchanged if it already has the form's type."""
    return Rows(x, None) if form.parts == 1 and x.dtype == form.dtype else added(x, None, None, form)[1]


def activated(branch: Branch, function: str, form: Form) -> Rows:
    """A matmul's result after "silu", "gelu", "glu" (which halves the columns) or "none", in a form."""
    rows, width = branch.values.shape
    columns = width // 2 if function == "glu" else width
    out = new_rows(rows, columns, form, branch.values)
    per_program = _rows_per_program(columns)
    kernels.activate[(-(-rows // per_program),)](
        branch.values, or_any(branch.scales, branch.values), branch.factor, or_any(branch.bias, branch.values),
        out.values, or_any(out.scales, branch.values), rows, N=columns, COLUMNS=triton.next_power_of_2(columns),
        ROWS=per_program, SCALED=branch.scales is not None, BIASED=branch.bias is not None, FUNCTION=function,
        FORM=form.parts, num_warps=4,
    )  # fmt: skip
    return out


def finished(branch: Branch) -> Tensor:
    """The final result of a matmul, scaled and with bias: (rows, O)."""
    return branch.values if branch.scales is None else activated(branch, "none", FLOAT).values


class Depthwise(nn.Module):
    """An `operators.DepthwiseConvolution` over time, a LayerNorm, and optionally SiLU."""

    taps: Tensor
    bias: Tensor | None

    def __init__(self, plain: Any, norm: nn.LayerNorm, *, silu: bool) -> None:
        super().__init__()
        self.left, self.silu, self.norm = plain.left, silu, Norm(norm)
        self.register_buffer("taps", plain.weight[:, 0].t().contiguous())  # (K, C)
        self.register_buffer("bias", plain.bias)

    def forward(self, x: Tensor, lengths: Tensor, form: Form) -> Rows:
        """x (B, T, C), contiguous, to (B * T, C). Frames after a clip's length (B,) int32 are read as zeros."""
        clips, frames, columns = x.shape
        out = new_rows(clips * frames, columns, form, x)
        kernels.depthwise[(-(-frames // ROWS_PER_PROGRAM), clips)](
            x, self.taps, or_any(self.bias, self.taps), self.norm.weight, self.norm.bias, lengths, out.values,
            or_any(out.scales, self.taps), frames, self.left, self.norm.eps, TAPS=len(self.taps), N=columns,
            COLUMNS=triton.next_power_of_2(columns), ROWS=ROWS_PER_PROGRAM, BIASED=self.bias is not None,
            SILU=self.silu, FORM=form.parts, num_warps=4,
        )  # fmt: skip
        return out


@dataclass(frozen=True)
class Heads:
    """Rows of several heads, (B, T, ...): the columns of `values` from `offset` on, `width` per head."""

    values: Tensor
    offset: int
    width: int

    @property
    def start(self) -> Tensor:
        return self.values[:, :, self.offset :]

    @classmethod
    def thirds(cls, values: Tensor, num_heads: int, width: int) -> tuple[Heads, Heads, Heads]:
        """Queries, keys and values: the first three blocks of num_heads * width columns."""
        size = num_heads * width
        return cls(values, 0, width), cls(values, size, width), cls(values, 2 * size, width)


def attend(
    query: Heads, key: Heads, value: Heads, lengths: Tensor, *, num_heads: int, extra: int = 0,
    distances: tuple[Heads, int, int] | None = None, placed: Tensor | None = None, key_bias: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """softmax(query . key / sqrt(d) + bias) . value over the first lengths[b] + extra keys; returns (B * Q, H * d).

    Keys and values are in one tensor (B, K, ...). `distances`: each query's bias for every distance from -left to
    right, then left, right. `placed` (positions, H * d) is added to the keys, `key_bias` (H, positions) to all queries'
    scores. Biases are base-2 exponents, so multiplied by log2(e).
    """
    clips, frames = query.values.shape[:2]
    width = query.width
    out = query.values.new_empty(clips * frames, num_heads * width)
    products, left, right = distances if distances is not None else (query, 0, 0)
    starts = (query.start, key.start, value.start, or_any(placed, out), products.start, or_any(key_bias, out))
    strides = (
        query.values.stride(0), query.values.stride(1), key.values.stride(0), key.values.stride(1),
        products.values.stride(0), products.values.stride(1), 0 if placed is None else placed.stride(0),
        0 if key_bias is None else key_bias.stride(0),
    )  # fmt: skip
    for tile in TILES[out.dtype == torch.float32]:
        rows = min(tile.rows, max(16, triton.next_power_of_2(frames)))
        try:
            kernels.attend[(-(-frames // rows), clips * num_heads)](
                *starts, lengths, out, num_heads, frames, extra, *strides, LOG2E / math.sqrt(width), LEFT=left,
                RIGHT=right, SLOTS=products.width, D=width, DIMS=max(16, triton.next_power_of_2(width)), ROWS=rows,
                BLOCK=tile.keys, RELATIVE=distances is not None, PLACED=placed is not None,
                KEY_BIAS=key_bias is not None, PRECISION="tf32x3", num_warps=tile.warps, num_stages=tile.stages,
            )  # fmt: skip
        except triton.OutOfResources as error:
            short = error.with_traceback(None)  # the traceback would keep these tensors alive
            continue
        return out
    raise short


class Tile(NamedTuple):
    """Queries and keys per step of an attention program, its warps, and its pipeline stages."""

    rows: int
    keys: int
    warps: int
    stages: int


# For 16 bits and for float32: the fastest on Hopper GPUs, then smaller ones for GPUs with less shared memory.
TILES = (
    (Tile(64, 64, 4, 3), Tile(64, 32, 4, 2), Tile(32, 32, 4, 1)),
    (Tile(128, 64, 8, 3), Tile(64, 32, 8, 2), Tile(32, 16, 4, 1)),
)


def or_any(tensor: Tensor | None, other: Tensor) -> Tensor:
    """`tensor`, or a placeholder for a kernel argument that is not used."""
    return other if tensor is None else tensor


def _rows_per_program(columns: int) -> int:
    return 1 << (max(1, NUMBERS_PER_PROGRAM // columns).bit_length() - 1)
