"""The fused models, kernels under Triton's interpreter: as the plain ones, batched = single, every mask needed."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hfprep.models.masking import FrameMask, KeyMask, TimeMask
from hfprep.models.semantic_encoder import relative_bias
from hfprep.recipes.indextts2.config import ModelConfig
from hfprep.recipes.indextts2.feature_model import FeatureModel
from hfprep.recipes.indextts2.recipe import locate
from hfprep.recipes.options import ModelOptions
from tests.quick import some_quick

LENGTHS = [11, 4]


@pytest.fixture(scope="module")
def fused() -> Iterator[Any]:
    """The operators, with kernels that Triton interprets; one program does much, for each costs a millisecond."""
    pytest.importorskip("triton")
    from triton.runtime import interpreter

    from hfprep.models.kernels import conditioner, kernels, operators

    assert isinstance(kernels.add_norm, interpreter.InterpretedFunction)
    plain = interpreter._patch_lang_tensor

    def patch(tensor: Any, scope: Any) -> None:
        plain(tensor, scope)  # its own makes an int of an array of one dimension, which numpy has given up
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    with pytest.MonkeyPatch.context() as patches:
        patches.setattr(interpreter, "_patch_lang_tensor", patch)
        patches.setattr(operators, "NUMBERS_PER_PROGRAM", 1 << 14)
        patches.setattr(operators, "ROWS_PER_PROGRAM", 16)
        patches.setattr(conditioner, "FREQUENCIES_PER_PROGRAM", 1024)
        yield operators


def load(golden: Path, precision: str = "fp32", layers: int = 3) -> FeatureModel:
    """A model with the first `layers` of the encoder's 17, of which an interpreter makes a second each."""
    files = locate(ModelOptions(models=golden / "checkpoints"))
    model = FeatureModel.load(files, ModelConfig.read(files.config))
    model.semantic_encoder.layers = model.semantic_encoder.layers[:layers]
    model.precision = precision
    return model if precision == "fp32" else model.fused()


def relative(got: Tensor, wanted: Tensor) -> float:
    assert got.shape == wanted.shape
    assert torch.isfinite(got).all()  # the largest of some numbers and a NaN may be a number
    return float((got - wanted).double().norm() / wanted.double().norm())


def numbers(model: FeatureModel, clips: list[Tensor], extra: int = 0) -> list[dict[str, Tensor]]:
    """What a batch gives for each clip; its padding is large random numbers, as nothing may depend on it."""
    lengths = torch.tensor([len(clip) for clip in clips])
    batch = 30 * torch.randn(len(clips), int(lengths.max()) + extra, clips[0].shape[1])
    for row, clip in zip(batch, clips, strict=True):
        row[: len(clip)] = clip
    kept: dict[str, Tensor] = {}
    hooks = [
        model.semantic_encoder.register_forward_hook(lambda _m, _i, output: kept.update(semantic=output)),
        model.semantic_codec.quantizer.register_forward_pre_hook(lambda _m, inputs: kept.update(codec=inputs[0])),
    ]
    features = model(batch, lengths)
    for hook in hooks:
        hook.remove()
    results = []
    for row, length in enumerate(lengths.tolist()):
        result = {name: tensor[row, :length] for name, tensor in {"codes": features["codes"], **kept}.items()}
        results.append({**result, "condition": features["condition"][row], "emo_vec": features["emo_vec"][row]})
    return results


def worst(got: list[dict[str, Tensor]], wanted: list[dict[str, Tensor]]) -> float:
    return max(
        relative(one[name], other[name])
        for one, other in zip(got, wanted, strict=True)
        for name in ("semantic", "codec", "condition", "emo_vec")
    )


@pytest.fixture(scope="module")
def clips() -> list[Tensor]:
    generator = torch.Generator().manual_seed(5)
    return [torch.randn(length, 160, generator=generator) for length in LENGTHS]


@pytest.fixture(scope="module")
def plain(golden_small: Path, clips: list[Tensor]) -> list[dict[str, Tensor]]:
    model = load(golden_small)
    return [numbers(model, [clip])[0] for clip in clips]


@pytest.fixture(scope="module")
def exact(fused: Any, golden_small: Path) -> FeatureModel:
    return load(golden_small, "exact")


def test_exact_is_as_float32_in_a_batch_with_padding(
    exact: FeatureModel, clips: list[Tensor], plain: list[dict[str, Tensor]]
) -> None:
    got = numbers(exact, clips, extra=3)
    assert worst(got, plain) < 1e-5
    assert all(torch.equal(one["codes"], other["codes"]) for one, other in zip(got, plain, strict=True))


@pytest.mark.slow
def test_a_clip_alone_is_as_in_float32(fused: Any, golden_small: Path, clips: list[Tensor]) -> None:
    """One clip's windows over frames are a view of memory that overlaps; those of two are copied. With every layer."""
    plain, exact = load(golden_small, layers=17), load(golden_small, "exact", layers=17)
    assert worst(numbers(exact, clips[:1]), numbers(plain, clips[:1])) < 1e-5


@pytest.mark.slow
def test_all_layers_are_as_in_float32(fused: Any, golden_small: Path, clips: list[Tensor]) -> None:
    plain, exact = load(golden_small, layers=17), load(golden_small, "exact", layers=17)
    got, wanted = numbers(exact, clips, extra=3), [numbers(plain, [clip])[0] for clip in clips]
    assert worst(got, wanted) < 1e-5
    assert all(torch.equal(one["codes"], other["codes"]) for one, other in zip(got, wanted, strict=True))


@pytest.fixture(scope="module")
def golden_model(golden_small: Path) -> FeatureModel:
    return load(golden_small)


class NoMask(nn.Module):
    def lengths(self, mask: FrameMask) -> Tensor:
        return mask.all_frames


PARTS = ("semantic_codec", "semantic_encoder", "emotion_conditioner", "conditioner")
# One of each kind; all others are alike, and the slow set removes every one. The conditioners have the same kinds.
QUICK_SITES = {
    "semantic_encoder": ("layers.2.attention.key_mask",),
    "semantic_codec": ("embed.time_mask", "blocks.1.time_mask"),
    "conditioner": ("conformer.blocks.1.attention.key_mask",),
    "emotion_conditioner": (
        "conformer.blocks.0.attention.key_mask", "conformer.blocks.0.time_mask", "perceiver.attentions.0.key_mask",
    ),
}  # fmt: skip


def part_outputs(model: FeatureModel, part: str, clips: list[Tensor], width: int, extra: int) -> list[Tensor]:
    """What one part gives for each clip of a batch, as far as it is real; codes by the numbers before the quantizer."""
    lengths = torch.tensor([len(clip) for clip in clips])
    generator = torch.Generator().manual_seed(1)
    batch = 30 * torch.randn(len(clips), int(lengths.max()) + extra, width, generator=generator)
    for row, clip in zip(batch, clips, strict=True):
        row[: len(clip)] = clip[:, :1].expand(-1, width) * torch.linspace(-1, 1, width) + torch.linspace(0, 1, width)
    kept: list[Tensor] = []
    module = getattr(model, part)
    if part == "semantic_codec":
        hook = module.quantizer.register_forward_pre_hook(lambda _m, inputs: kept.append(inputs[0]))
    else:
        hook = module.register_forward_hook(lambda _m, _i, output: kept.append(output))
    with torch.inference_mode():
        module(batch, FrameMask.from_lengths(lengths, batch.shape[1], batch.device))
    hook.remove()
    return [row[: len(clip)] if "semantic" in part else row for row, clip in zip(kept[0], clips, strict=True)]


def sites(model: FeatureModel, part: str) -> list[str]:
    return [name for name, module in getattr(model, part).named_modules() if isinstance(module, TimeMask | KeyMask)]


@pytest.mark.parametrize("part", some_quick(PARTS, 2))
@pytest.mark.parametrize("every", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_every_mask_is_needed(
    exact: FeatureModel,
    golden_model: FeatureModel,
    golden_small: Path,
    part: str,
    every: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if every:
        golden_model, exact = load(golden_small, layers=17), load(golden_small, "exact", layers=17)
    width = 160 if part == "semantic_encoder" else golden_model.semantic_encoder.mean.shape[0]
    clips = [torch.randn(length, 1) for length in LENGTHS]
    wanted = [part_outputs(golden_model, part, [clip], width, 0)[0] for clip in clips]

    def error(extra: int) -> float:
        got = part_outputs(exact, part, clips, width, extra)
        return max(relative(one, other) for one, other in zip(got, wanted, strict=True))

    assert error(extra=4) < 1e-5
    found = sites(exact, part)
    assert set(QUICK_SITES[part]) <= set(found)
    for site in found if every else QUICK_SITES[part]:
        owner, name = getattr(exact, part).get_submodule(site.rpartition(".")[0]), site.rpartition(".")[2]
        with monkeypatch.context() as patch:
            patch.setitem(owner._modules, name, NoMask())
            assert error(extra=4) > 1e-3, site


def test_the_mask_sites_are_those_of_the_plain_models(fused: Any, golden_small: Path) -> None:
    golden_model, exact = load(golden_small, layers=17), load(golden_small, "exact", layers=17)
    for part in PARTS:
        assert len(sites(exact, part)) == len(sites(golden_model, part))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_attention_adds_distances_and_looks_at_real_keys_only(fused: Any, dtype: torch.dtype) -> None:
    """Queries and keys over more than one tile, all of whose three ranges of distances occur."""
    clips, frames, heads, width, left, right = 2, 150, 2, 24, 64, 8
    query, key, value = (torch.randn(clips, frames, heads, width) for _ in range(3))
    table = torch.randn(left + right + 1, width) / 8
    lengths = torch.tensor([frames, 97])
    slots = 80
    products = torch.nn.functional.pad(query @ table.t(), (0, slots - len(table))) * fused.LOG2E
    columns = torch.cat([part.flatten(2) for part in (query, key, value, products)], dim=2).to(dtype)
    size = heads * width
    parts = [fused.Heads(columns, number * size, width) for number in range(3)]
    distances = (fused.Heads(columns, 3 * size, slots), left, right)
    got = fused.attend(*parts, lengths.int(), num_heads=heads, distances=distances).view(clips, frames, heads, width)
    query, key, value = (part.transpose(1, 2) for part in (query, key, value))
    bias = relative_bias(query @ table.t(), left=left, first=0, num_keys=frames) + 0.0
    bias[1, :, :, 97:] = float("-inf")
    wanted = F.scaled_dot_product_attention(query, key, value, attn_mask=bias).transpose(1, 2)
    tolerance = 1e-6 if dtype == torch.float32 else 3e-3
    assert relative(got[0].float(), wanted[0]) < tolerance
    assert relative(got[1, :97].float(), wanted[1, :97]) < tolerance


def test_attention_takes_the_next_tile_where_memory_is_short(fused: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import triton

    tried = []
    launch = fused.kernels.attend

    class Short:
        def __getitem__(self, grid: Any) -> Any:
            def run(*tensors: Any, **constants: Any) -> None:
                tried.append(constants["BLOCK"])
                if len(tried) < 3:
                    raise triton.OutOfResources(300_000, 100_000, "shared memory")
                launch[grid](*tensors, **constants)

            return run

    columns = torch.randn(1, 20, 3 * 16)
    parts = [fused.Heads(columns, 16 * number, 16) for number in range(3)]
    wanted = fused.attend(*parts, torch.tensor([20]), num_heads=1)
    monkeypatch.setattr(fused.kernels, "attend", Short())
    assert torch.allclose(fused.attend(*parts, torch.tensor([20]), num_heads=1), wanted, atol=1e-6)
    assert tried == [tile.keys for tile in fused.TILES[1]]


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e12])
def test_products_of_three_parts_are_as_good_as_float32(fused: Any, scale: float) -> None:
    """A product in float16 alone errs by 2^-11; in three parts by about the square of that, at any scale of a row."""
    x, weight, bias = torch.randn(16, 512) * scale, torch.randn(48, 512), torch.randn(48)
    x[3] *= 1e-5
    x[4] = 0.0
    form = fused.FORMS["exact"]
    got = fused.finished(fused.Product(weight, bias, form)(fused.in_form(x, form)))
    wanted = F.linear(x.double(), weight.double(), bias.double())
    assert float(((got - wanted).norm(dim=1) / wanted.norm(dim=1)).max()) < 1e-6


def test_what_is_not_finite_stays_in_its_row(fused: Any) -> None:
    x = torch.randn(6, 64)
    x[1, 5], x[4, 0] = float("nan"), float("inf")
    form = fused.FORMS["exact"]
    product = fused.Product(torch.randn(32, 64), None, form)
    got = fused.finished(product(fused.in_form(x, form)))
    assert torch.isfinite(got).all(dim=1).tolist() == [True, False, True, True, False, True]
    clamped = fused.in_form(torch.tensor([[1e6, float("nan"), -1e6, 1.0]]), fused.FORMS["fp16"]).values
    assert clamped[0, 0] == -clamped[0, 2] == 65504
    assert clamped[0, 1].isnan()


def test_sixteen_bits_run_through_all_models(
    fused: Any, golden_small: Path, clips: list[Tensor], plain: list[dict[str, Tensor]]
) -> None:
    got = numbers(load(golden_small, "fp16"), clips)
    assert 1e-4 < worst(got, plain) < 0.05
