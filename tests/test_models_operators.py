"""The shared arithmetic against torch's own, in double precision."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from hfprep.models import operators
from hfprep.models.operators import (
    DepthwiseConvolution,
    PointwiseConvolution,
    by_rows,
    join_heads,
    linear,
    row_pieces,
    split_heads,
)


def relative(got: Tensor, wanted: Tensor) -> float:
    assert got.shape == wanted.shape
    return float((got - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("onednn", [True, False], ids=["oneDNN", "torch"])
@pytest.mark.parametrize("shape", [(1, 64), (3, 64), (2, 5, 64), (2, 1, 3, 64)])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
def test_linear_is_the_product(
    onednn: bool, shape: tuple[int, ...], bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if onednn and not operators.has_onednn_linear():
        pytest.skip("torch was built without oneDNN")
    monkeypatch.setattr(operators, "has_onednn_linear", lambda: onednn)
    x, weight, added = torch.randn(shape), torch.randn(40, 64), torch.randn(40) if bias else None
    wanted = F.linear(x.double(), weight.double(), None if added is None else added.double())
    with torch.inference_mode():
        got = linear(x, weight, added)
    assert got.dtype == torch.float32
    assert relative(got, wanted) < 1e-6


def test_linear_takes_a_slice_of_columns_and_a_transposed_input() -> None:
    x, weight = torch.randn(24, 6), torch.randn(7, 99)
    with torch.inference_mode():
        got = linear(x.t(), weight[:, 40:64])
    assert relative(got, x.t().double() @ weight[:, 40:64].double().t()) < 1e-6


def test_linear_keeps_double_precision() -> None:
    x, weight = torch.randn(3, 6, dtype=torch.float64), torch.randn(7, 6, dtype=torch.float64)
    got = linear(x, weight)  # of more rows than x has, whose products may be summed in another order
    torch.testing.assert_close(got, F.linear(x, weight), rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("left", [0, 3, 6])
@pytest.mark.parametrize("frames", [1, 2, 7, 30])
def test_depthwise_convolution_over_time(bias: bool, left: int, frames: int) -> None:
    layer = DepthwiseConvolution(5, 7, left=left, bias=bias)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter)
    x = torch.randn(2, frames, 5)
    padded = F.pad(x.transpose(1, 2).double(), (left, 6 - left))
    added = None if layer.bias is None else layer.bias.double()
    with torch.inference_mode():
        wanted = F.conv1d(padded, layer.weight.double(), added, groups=5).transpose(1, 2)
        assert relative(layer(x), wanted) < 1e-6


def test_pointwise_convolution_is_a_convolution_of_kernel_one() -> None:
    layer = PointwiseConvolution(6, 4)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter)
    x = torch.randn(2, 9, 6)
    with torch.inference_mode():
        wanted = F.conv1d(x.transpose(1, 2), layer.weight, layer.bias).transpose(1, 2)
        assert relative(layer(x), wanted) < 1e-6


def test_heads_are_runs_of_channels() -> None:
    x = torch.arange(12.0).view(1, 2, 6)
    heads = split_heads(x, 3)
    assert heads.shape == (1, 3, 2, 2)
    assert heads[0, 1].tolist() == [[2, 3], [8, 9]]
    assert torch.equal(join_heads(heads), x)


def test_rows_come_in_few_sizes_with_little_to_spare() -> None:
    sizes = set()
    for rows in range(1, 6000):
        size, rounded = row_pieces(rows)
        pieces = [min(size, rounded - first) for first in range(0, rounded, size)]
        assert rows <= sum(pieces) < rows + (16 if rows <= 256 else 32)
        assert max(pieces) <= 1024
        sizes.update(pieces)
    assert len(sizes) == 16 + 24


@pytest.mark.parametrize("shape", [(1, 3), (7, 3), (1024, 3), (1025, 3), (2, 600, 3), (3, 5, 7, 3)])
def test_by_rows_is_the_function_of_all_rows(shape: tuple[int, ...]) -> None:
    seen = []

    def double(rows: Tensor) -> Tensor:
        seen.append(rows.shape[0])
        return 2 * rows[:, :2]

    x = torch.randn(shape)
    assert torch.equal(by_rows(double, x), 2 * x[..., :2])
    assert max(seen) <= 1024
