"""All models together: golden numbers, batched equals single, and that every mask is needed."""

import functools
import itertools
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from hfprep.errors import CheckpointError
from hfprep.models.conditioner import Conditioner
from hfprep.models.masking import FrameMask, KeyMask, TimeMask
from hfprep.models.precision import computing
from hfprep.recipes.indextts2.config import ModelConfig
from hfprep.recipes.indextts2.feature_model import FeatureModel
from hfprep.recipes.indextts2.recipe import locate
from hfprep.recipes.options import ModelOptions
from tests.quick import some_quick

REPOSITORY = Path(__file__).resolve().parent.parent
GOLDEN = [
    folder for folder in (REPOSITORY / "tests/golden-small", REPOSITORY.parent / "shared/golden") if folder.is_dir()
]
# Lengths of like and unlike clips, from the shortest that the models take.
LENGTHS = [29, 3, 88, 64, 4, 17, 101, 50]
EXACT = 1e-5
Numbers = dict[str, Tensor]


@functools.cache
def load(golden: Path) -> FeatureModel:
    files = locate(ModelOptions(models=golden / "checkpoints"))
    return FeatureModel.load(files, ModelConfig.read(files.config))


@pytest.fixture(scope="module")
def model() -> FeatureModel:
    return load(GOLDEN[0])


def relative(got: Tensor, wanted: Tensor) -> float:
    assert got.shape == wanted.shape
    assert torch.isfinite(got).all()  # the largest of some numbers and a NaN may be a number
    return float((got - wanted).norm() / wanted.norm())


def vectors(golden: Path) -> Iterator[tuple[str, Numbers]]:
    """Each golden sample, cut to its valid frames."""
    for path in sorted((golden / "expected").glob("*.npz")):
        with np.load(path) as arrays:
            sample = {name: torch.from_numpy(arrays[name]) for name in arrays.files}
        sample["input_features"] = sample["input_features"][sample["attention_mask"].bool()]
        yield path.stem, sample


def padded(clips: list[Tensor], extra: int = 0) -> tuple[Tensor, Tensor]:
    """A batch whose padding is large random numbers, as nothing may depend on it."""
    lengths = torch.tensor([len(clip) for clip in clips])
    batch = 30 * torch.randn(len(clips), int(lengths.max()) + extra, clips[0].shape[1])
    for row, clip in zip(batch, clips, strict=True):
        row[: len(clip)] = clip
    return batch, lengths


def numbers(model: FeatureModel, clips: list[Tensor], extra: int = 0) -> list[Numbers]:
    """What a batch gives for each clip, and the tensors on the way there: a code may hide a small fault."""
    kept: Numbers = {}
    hooks = [
        model.semantic_encoder.register_forward_hook(lambda _m, _i, output: kept.update(semantic=output)),
        model.semantic_codec.quantizer.register_forward_pre_hook(lambda _m, inputs: kept.update(codec=inputs[0])),
    ]
    try:
        batch, lengths = padded(clips, extra)
        features = model(batch, lengths)
    finally:
        for hook in hooks:
            hook.remove()
    if model.packs:
        kept = {
            name: pad_sequence(tensor[0].split(lengths.tolist()), batch_first=True) for name, tensor in kept.items()
        }
    results = []
    for row, length in enumerate(lengths.tolist()):
        over_time = {"codes": features["codes"], **kept}
        result = {name: tensor[row, :length] for name, tensor in over_time.items()}
        results.append({**result, "condition": features["condition"][row], "emo_vec": features["emo_vec"][row]})
    return results


@pytest.fixture
def padding(monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU computes padded batches, as a GPU does."""
    monkeypatch.setattr(FeatureModel, "packs", False)


@pytest.fixture(params=[True, False], ids=["packed", "padded"])
def packing(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Either way in turn; whether batches are packed."""
    monkeypatch.setattr(FeatureModel, "packs", request.param)
    return bool(request.param)


@pytest.fixture(scope="module")
def clips() -> list[Tensor]:
    """Random clips on the scale of real input features (normalised per bin)."""
    generator = torch.Generator().manual_seed(5)
    return [torch.randn(length, 160, generator=generator) for length in LENGTHS]


@pytest.fixture(scope="module")
def singles(model: FeatureModel, clips: list[Tensor]) -> list[Numbers]:
    return [numbers(model, [clip])[0] for clip in clips]


def worst_difference(batched: list[Numbers], singles: list[Numbers]) -> float:
    return max(
        relative(got[name], wanted[name])
        for got, wanted in zip(batched, singles, strict=True)
        for name in ("semantic", "codec", "condition", "emo_vec")
    )


@pytest.mark.parametrize("golden", GOLDEN, ids=lambda folder: folder.name)
def test_equals_the_published_code(golden: Path) -> None:
    model = load(golden)
    differing = frames = 0
    for name, sample in vectors(golden):
        got = numbers(model, [sample["input_features"]])[0]
        for part in ("semantic", "condition", "emo_vec"):
            assert relative(got[part], sample[part]) < EXACT, f"{name}: {part}"
        assert got["codes"].shape == sample["codes"].shape
        differing += int((got["codes"] != sample["codes"]).sum())
        frames += len(got["codes"])
    assert frames > 500
    assert differing <= 0.002 * frames


@pytest.mark.parametrize("golden", GOLDEN, ids=lambda folder: folder.name)
def test_a_whole_golden_set_in_one_batch_equals_the_published_code(golden: Path, packing: bool) -> None:
    samples = [sample for name, sample in vectors(golden) if "@" not in name]
    for got, sample in zip(numbers(load(golden), [s["input_features"] for s in samples]), samples, strict=True):
        for part in ("semantic", "condition", "emo_vec"):
            assert relative(got[part], sample[part]) < EXACT
        assert torch.equal(got["codes"], sample["codes"].long())


@pytest.mark.parametrize(("size", "extra"), some_quick(itertools.product([1, 2, 5, 8], [0, 1, 40]), 5))
def test_batched_equals_single(
    model: FeatureModel, clips: list[Tensor], singles: list[Numbers], size: int, extra: int, packing: bool
) -> None:
    batched = [
        result
        for first in range(0, len(clips), size)
        for result in numbers(model, clips[first : first + size], extra=extra)
    ]
    assert worst_difference(batched, singles) < EXACT
    for got, wanted in zip(batched, singles, strict=True):
        assert torch.equal(got["codes"], wanted["codes"])


def test_packed_clips_are_computed_without_their_padding(model: FeatureModel, clips: list[Tensor]) -> None:
    seen: list[torch.Size] = []
    hook = model.semantic_encoder.register_forward_pre_hook(lambda _m, inputs: seen.append(inputs[0].shape))
    try:
        features = model(*padded(clips, extra=40))
    finally:
        hook.remove()
    assert seen == [(1, sum(LENGTHS), 160)]
    assert features["codes"].shape == (len(LENGTHS), max(LENGTHS))


def mask_sites() -> list[str]:
    return [name for name, part in load(GOLDEN[0]).named_modules() if isinstance(part, TimeMask | KeyMask)]


class NoTimeMask(nn.Module):
    def forward(self, frames: Tensor, _mask: FrameMask) -> Tensor:
        return frames


class NoKeyMask(nn.Module):
    def forward(self, _mask: FrameMask) -> None:
        return None


@pytest.mark.parametrize("site", some_quick(mask_sites(), 4))
def test_every_mask_is_needed(
    model: FeatureModel,
    clips: list[Tensor],
    singles: list[Numbers],
    site: str,
    padding: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    owner, name = model.get_submodule(site.rpartition(".")[0]), site.rpartition(".")[2]
    removed = NoTimeMask() if isinstance(getattr(owner, name), TimeMask) else NoKeyMask()
    monkeypatch.setitem(owner._modules, name, removed)
    assert worst_difference(numbers(model, clips, extra=40), singles) > 100 * EXACT


def test_there_is_a_mask_at_every_attention_and_every_two_sided_convolution(model: FeatureModel) -> None:
    sites = mask_sites()
    config = model.config
    blocks = config.condition.num_blocks + config.emotion.num_blocks
    # 17 layers attend; the codec convolves first and in each block; Conformer blocks do both; two Perceivers of two.
    assert len(sites) == len(set(sites)) == 17 + 1 + config.semantic_codec.vocos_num_layers + 2 * blocks + 2 * 2


def test_computes_only_what_is_asked_for(model: FeatureModel, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise AssertionError("was not asked for")

    batch, lengths = torch.randn(2, 20, 160), torch.tensor([20, 11])
    everything = model(batch, lengths)
    with monkeypatch.context() as patch:
        patch.setattr(model.conditioner, "forward", fail)
        patch.setattr(model.emotion_conditioner, "forward", fail)
        only_codes = model(batch, lengths, frozenset({"codes"}))
    assert only_codes.keys() == {"codes"}
    assert torch.equal(only_codes["codes"], everything["codes"])
    monkeypatch.setattr(model.semantic_codec, "forward", fail)
    only_latents = model(batch, lengths, frozenset({"latents"}))
    assert only_latents.keys() == {"condition", "emo_vec"}
    assert torch.equal(only_latents["condition"], everything["condition"])
    assert torch.equal(only_latents["emo_vec"], everything["emo_vec"])


def test_gives_the_documented_shapes_and_types(model: FeatureModel) -> None:
    features = model(torch.randn(2, 20, 160), torch.tensor([20, 3]))
    assert (features["codes"].shape, features["codes"].dtype) == ((2, 20), torch.int32)
    assert (features["condition"].shape, features["condition"].dtype) == ((2, 32, 40), torch.float32)
    assert (features["emo_vec"].shape, features["emo_vec"].dtype) == ((2, 40), torch.float32)
    assert model.min_frames == 3
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_longest_clip_fits_the_position_table_and_one_frame_more_is_refused(model: FeatureModel) -> None:
    assert isinstance(model.conditioner, Conditioner)
    rows = model.conditioner.conformer.position_table.shape[1]
    assert (model.max_frames - 1) // 2 == rows - 1
    assert model.max_frames // 2 == rows  # so (max_frames + 1 - 1) // 2 is out of the table
    with pytest.raises(ValueError, match=f"to {model.max_frames + 1} frames"):
        model(torch.zeros(1, model.max_frames + 1, 160), torch.tensor([model.max_frames + 1]))


@pytest.mark.parametrize(
    ("shape", "lengths", "message"),
    [
        ((2, 10, 160), [10, 2], "from 2 to 10"),
        ((2, 10, 160), [11, 5], "from 5 to 11"),
        ((2, 10, 160), [10], "lengths"),
        ((1, 10, 160, 1), [10], "input_features"),
    ],
)
def test_refuses_batches_that_are_not_consistent(
    model: FeatureModel, shape: tuple[int, ...], lengths: list[int], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        model(torch.zeros(shape), torch.tensor(lengths))


def test_refuses_a_semantic_model_of_another_width(tmp_path: Path) -> None:
    files = locate(ModelOptions(models=GOLDEN[0] / "checkpoints"))
    text = files.config.read_text().replace("hidden_size: 32", "hidden_size: 48")
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(CheckpointError, match=r"encoder\.0\.embed\.weight"):
        FeatureModel.load(files, ModelConfig.read(tmp_path / "config.yaml"))


def test_tf32_is_off_inside_and_as_it_was_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    current: list[torch.device] = []

    def device_of(device: torch.device) -> nullcontext[None]:
        current.append(device)
        return nullcontext()

    monkeypatch.setattr(torch.cuda, "device", device_of)
    matmul = torch.backends.cuda.matmul
    convolution = torch.backends.cudnn.conv  # type: ignore[attr-defined]
    before = matmul.fp32_precision, convolution.fp32_precision
    try:
        matmul.fp32_precision = convolution.fp32_precision = "tf32"
        with computing("fp32", torch.device("cuda:1")):
            assert current == [torch.device("cuda:1")]  # where Triton's kernels are to run
            assert (matmul.fp32_precision, convolution.fp32_precision) == ("ieee", "ieee")
        assert (matmul.fp32_precision, convolution.fp32_precision) == ("tf32", "tf32")
    finally:
        matmul.fp32_precision, convolution.fp32_precision = before


@pytest.mark.parametrize("precision", ["fp16", "bf16", "exact"])
def test_a_model_goes_to_a_card_in_the_precision_that_was_asked_for(
    golden_small: Path, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    """Whoever asks for 16 bits because float32 does not fit never needs the memory for float32."""
    moved: list[float] = []

    def note(self: FeatureModel, _device: object) -> FeatureModel:
        halves = sum(weight.nbytes for weight in self.buffers() if weight.dtype in (torch.float16, torch.bfloat16))
        encoder = [*self.semantic_encoder.layers.parameters(), *self.semantic_encoder.layers.buffers()]
        moved.append(sum(weight.nbytes for weight in encoder if weight.dtype == torch.float32) / halves)
        return self

    monkeypatch.setattr(FeatureModel, "to", note)
    monkeypatch.setattr("hfprep.recipes.indextts2.feature_model.require", lambda *_: None)
    files = locate(ModelOptions(models=golden_small / "checkpoints"))
    FeatureModel.load(files, ModelConfig.read(files.config), device="cuda", precision=precision)
    (share,) = moved
    assert share < 0.2  # norms, biases and positions
