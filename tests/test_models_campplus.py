"""CAM++ against a plain copy in double precision and the published numbers; batched = single, every mask needed."""

import functools
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hfprep.errors import CheckpointError
from hfprep.models import campplus as module
from hfprep.models.campplus import Campplus, CampplusConfig
from hfprep.models.masking import FrameMask, TimeMask
from hfprep.recipes.indextts25.campplus import PUBLISHED, campplus_config, campplus_shapes, load_campplus
from scripts.benchmark import plain_models
from tests.quick import some_quick

TESTS = Path(__file__).resolve().parent
GOLDEN = [folder for folder in (TESTS / "golden25-small", TESTS.parent.parent / "shared/golden25") if folder.is_dir()]
FILE = "checkpoints/campplus_cn_common.bin"
# Around the ends of segments (100 steps, 200 frames) and of odd and even lengths, from the shortest.
LENGTHS = [3, 4, 57, 200, 201, 199, 402, 130]
# Batches are compared in double precision, where only a fault makes a difference: float32 rounds by 1e-5, otherwise in
# every batch size and on every processor.
EXACT = 1e-12
FAULT = 2e-4


def read(path: Path) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = torch.load(path, weights_only=True)
    return tensors


def relative(got: Tensor, wanted: Tensor) -> float:
    assert got.shape == wanted.shape
    assert torch.isfinite(got).all()
    return float((got - wanted).norm() / wanted.norm())


@functools.cache
def load(golden: Path) -> Campplus:
    return load_campplus(golden / FILE).eval().requires_grad_(False)


@pytest.fixture
def network() -> Campplus:
    return load(GOLDEN[0])


@pytest.fixture(scope="module")
def precise() -> Campplus:
    """The network in double precision."""
    return load_campplus(GOLDEN[0] / FILE).eval().requires_grad_(False).double()


@pytest.fixture(params=[True, False], ids=["packed", "padded"])
def packing(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Clips one after another, as on a CPU, and padded batches, as on a GPU."""
    monkeypatch.setattr(Campplus, "packs", request.param)
    return bool(request.param)


@pytest.fixture(scope="module")
def clips() -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [3 * torch.randn(length, 80, generator=generator, dtype=torch.float64) for length in LENGTHS]


def vectors(network: Campplus, clips: list[Tensor], extra: int = 0) -> list[dict[str, Tensor]]:
    """What a batch gives for each clip, and its steps ahead of the statistics: a fault is largest in the last.

    The padding is large random numbers, as nothing may depend on it.
    """
    steps: list[Tensor] = []
    hook = network.statistics.register_forward_pre_hook(lambda _m, inputs: steps.extend(inputs[0].clone()))
    lengths = torch.tensor([len(clip) for clip in clips])
    batch = 30 * torch.randn(len(clips), int(lengths.max()) + extra, 80, dtype=clips[0].dtype)
    for row, clip in zip(batch, clips, strict=True):
        row[: len(clip)] = clip
    before = batch.clone()
    try:
        with torch.inference_mode():
            found = network(batch, lengths)
    finally:
        hook.remove()
    assert torch.equal(batch, before)  # it is the caller's
    return [
        {"vector": vector, "steps": own[: (length + 1) // 2], "end": own[: (length + 1) // 2][-2:]}
        for vector, own, length in zip(found, steps, lengths.tolist(), strict=True)
    ]


@pytest.fixture(scope="module")
def singles(precise: Campplus, clips: list[Tensor]) -> list[dict[str, Tensor]]:
    return [vectors(precise, [clip])[0] for clip in clips]


def worst(batched: list[dict[str, Tensor]], singles: list[dict[str, Tensor]]) -> float:
    return max(
        relative(got[name], wanted[name])
        for got, wanted in zip(batched, singles, strict=True)
        for name in ("vector", "steps", "end")
    )


@pytest.mark.parametrize("golden", GOLDEN, ids=lambda folder: folder.name)
def test_equals_the_published_code(golden: Path, packing: bool) -> None:
    samples = []
    for path in sorted((golden / "expected").glob("*.npz")):
        with np.load(path) as arrays:
            if "fbank" in arrays:
                samples.append((torch.from_numpy(arrays["fbank"]), torch.from_numpy(arrays["spk_emb"])))
    assert len(samples) > 3
    for found, (_, wanted) in zip(vectors(load(golden), [fbank for fbank, _ in samples]), samples, strict=True):
        assert relative(found["vector"], wanted) < 2e-5


@pytest.mark.parametrize("frames", [3, 4, 199, 200, 201, 402])
def test_equals_the_plain_network_in_double_precision(network: Campplus, frames: int) -> None:
    exact = {name: tensor.double() for name, tensor in read(GOLDEN[0] / FILE).items() if tensor.is_floating_point()}
    fbank = torch.randn(frames, 80)
    wanted = plain_models.speaker(exact, fbank.double()[None])[0]
    assert relative(vectors(network, [fbank])[0]["vector"].double(), wanted) < 2e-5


@pytest.mark.parametrize(("size", "extra"), some_quick(itertools.product([1, 3, 8], [0, 1, 300]), 4))
def test_batched_equals_single(
    precise: Campplus, clips: list[Tensor], singles: list[dict[str, Tensor]], size: int, extra: int, packing: bool
) -> None:
    batched = [
        found
        for first in range(0, len(clips), size)
        for found in vectors(precise, clips[first : first + size], extra=extra)
    ]
    assert worst(batched, singles) < EXACT


def test_a_large_batch_is_computed_in_pieces(
    precise: Campplus, clips: list[Tensor], singles: list[dict[str, Tensor]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Campplus, "packs", False)
    monkeypatch.setattr(module, "FRAMES_PER_PIECE", 3 * max(LENGTHS))
    sizes: list[int] = []
    hook = precise.head.register_forward_pre_hook(lambda _m, inputs: sizes.append(len(inputs[0])))
    try:
        assert worst(vectors(precise, clips), singles) < EXACT
    finally:
        hook.remove()
    assert sizes == [3, 3, 2]


@pytest.mark.parametrize("tile", [16, 32, 1024])
def test_windows_of_the_head_change_nothing(
    precise: Campplus, clips: list[Tensor], singles: list[dict[str, Tensor]], tile: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "TILE", tile)
    assert worst(vectors(precise, clips[2:7]), singles[2:7]) < EXACT


def mask_sites() -> list[str]:
    with torch.device("meta"):
        network = Campplus(PUBLISHED)
    return [name for name, part in network.named_modules() if isinstance(part, TimeMask)]


class NoTimeMask(nn.Module):
    def forward(self, frames: Tensor, _mask: FrameMask) -> Tensor:
        return frames


@pytest.mark.parametrize("site", some_quick(mask_sites(), 8))
def test_every_mask_is_needed(
    precise: Campplus,
    clips: list[Tensor],
    singles: list[dict[str, Tensor]],
    site: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Campplus, "packs", False)
    owner, name = precise.get_submodule(site.rpartition(".")[0]), site.rpartition(".")[2]
    monkeypatch.setitem(owner._modules, name, NoTimeMask())
    assert worst(vectors(precise, clips[1:5], extra=40), singles[1:5]) > FAULT


def test_there_is_a_mask_at_every_convolution_and_every_mean() -> None:
    # The head's ten 3x3 convolutions, the one that halves the frames, a layer's each; both means of a context, both
    # statistics.
    assert len(set(mask_sites())) == len(mask_sites()) == 10 + 1 + (12 + 24 + 16) + 2 + 2


def saved(tmp_path: Path, tensors: dict[str, Tensor]) -> Path:
    torch.save(tensors, tmp_path / "campplus.bin")
    return tmp_path / "campplus.bin"


def test_training_counters_may_be_there_or_not(network: Campplus, tmp_path: Path) -> None:
    tensors = read(GOLDEN[0] / FILE)
    assert not any(name.endswith("num_batches_tracked") for name in tensors)
    tensors["head.bn1.num_batches_tracked"] = torch.tensor(5)
    found = load_campplus(saved(tmp_path, tensors)).state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in network.state_dict().items())


def test_what_is_missing_too_much_or_of_another_shape_is_named(tmp_path: Path) -> None:
    tensors = read(GOLDEN[0] / FILE)
    del tensors["xvector.block2.tdnnd3.linear1.weight"]
    tensors["xvector.block3.tdnnd16.extra"] = torch.zeros(1)
    tensors["head.bn2.bias"] = torch.zeros(5)
    tensors["head.bn2.weight"] = torch.zeros(8, dtype=torch.int64)
    with pytest.raises(CheckpointError) as error:
        load_campplus(saved(tmp_path, tensors))
    message = str(error.value)
    assert "missing (1):\n    xvector.block2.tdnnd3.linear1.weight [4, 20, 1]" in message
    assert "unexpected (1):\n    xvector.block3.tdnnd16.extra" in message
    assert "head.bn2.bias is [5], not [8]" in message
    assert "head.bn2.weight is torch.int64" in message


def test_a_file_without_any_of_it_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"missing \(815\)"):
        load_campplus(saved(tmp_path, {"mean": torch.zeros(3)}))


def test_the_published_widths() -> None:
    shapes = campplus_shapes(PUBLISHED)
    assert len(shapes) == 815
    assert sum(int(np.prod(shape)) for name, shape in shapes.items() if "running" not in name) == 6_848_544
    assert campplus_config({name: torch.empty(shape, device="meta") for name, shape in shapes.items()}) == PUBLISHED


def test_the_published_shapes() -> None:
    published = TESTS.parent.parent / "shared/design/checkpoint_keys_25.json"
    if not published.is_file():
        pytest.skip("the published shapes do not lie beside this checkout")
    wanted = json.loads(published.read_text())["campplus_cn_common.bin"]
    wanted = {name: tuple(shape) for name, shape in wanted.items() if not name.endswith("num_batches_tracked")}
    assert campplus_shapes(PUBLISHED) == wanted


def test_widths_are_read_from_the_tensors() -> None:
    config = CampplusConfig(
        head_channels=4, channels=6, bottleneck=10, context=3, growth=2, num_layers=(2, 1, 3), vector=7
    )
    shapes = campplus_shapes(config)
    assert campplus_config({name: torch.empty(shape, device="meta") for name, shape in shapes.items()}) == config
