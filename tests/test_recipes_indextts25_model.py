"""IndexTTS-2.5's models together: golden numbers, batched = single, every mask needed, only what is asked for."""

import functools
import itertools
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hfprep.errors import CheckpointError
from hfprep.inputs.audio.decode import load_waveform
from hfprep.models.campplus import Campplus
from hfprep.models.masking import FrameMask, KeyMask, TimeMask
from hfprep.recipes.indextts25.config import Config
from hfprep.recipes.indextts25.feature_model import FeatureModel
from hfprep.recipes.indextts25.recipe import locate
from hfprep.recipes.indextts25.schema import CODES, EMOTION, SPEAKER
from hfprep.recipes.options import ModelOptions
from tests.quick import some_quick

TESTS = Path(__file__).resolve().parent
GOLDEN = [folder for folder in (TESTS / "golden25-small", TESTS.parent.parent / "shared/golden25") if folder.is_dir()]
# Samples of clips with 29, 3, 44, 30, 4, 17, 100 and 50 frames of 20 ms; some have an odd frame of 10 ms more.
SAMPLES = [9520, 1200, 14_320, 9999, 1520, 5900, 32_500, 16_240]
EXACT = 1e-5
Numbers = dict[str, Tensor]


@functools.cache
def load(golden: Path, reference_seconds: float = 0.0) -> FeatureModel:
    files = locate(ModelOptions(models=golden / "checkpoints"), fetch=False)
    return FeatureModel.load(files, Config.read(files.config), reference_seconds=reference_seconds)


@pytest.fixture(scope="module")
def model() -> FeatureModel:
    return load(GOLDEN[0])


@pytest.fixture(params=[True, False], ids=["packed", "padded"])
def packing(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Clips one after another, as on a CPU, and padded batches, as on a GPU."""
    for part in (FeatureModel, Campplus):
        monkeypatch.setattr(part, "packs", request.param)
    return bool(request.param)


@pytest.fixture
def padding(monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU computes padded batches, as a GPU does."""
    for part in (FeatureModel, Campplus):
        monkeypatch.setattr(part, "packs", False)


def relative(got: Tensor, wanted: Tensor) -> float:
    assert got.shape == wanted.shape
    assert torch.isfinite(got).all()  # the largest of some numbers and a NaN may be a number
    return float((got - wanted).norm() / wanted.norm())


def samples(golden: Path, kind: str = "") -> Iterator[tuple[Tensor, Numbers]]:
    """The golden clips (num_samples,) at 16 kHz and what the published code computes from them."""
    for line in (golden / "manifest.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        path = golden / f"expected/{row['id']}{kind}.npz"
        if path.is_file():
            with np.load(path) as arrays:
                expected = {name: torch.from_numpy(arrays[name]) for name in arrays.files}
            via = 22_050 if kind else None
            yield torch.from_numpy(load_waveform(golden / row["audio"], via=via).samples), expected


def batch_of(clips: list[Tensor], extra: int = 0) -> tuple[Tensor, Tensor]:
    """A batch whose padding is noise as loud as the clips, as nothing may depend on it."""
    num_samples = torch.tensor([len(clip) for clip in clips])
    batch = 0.3 * torch.randn(len(clips), int(num_samples.max()) + extra)
    for row, clip in zip(batch, clips, strict=True):
        row[: len(clip)] = clip
    return batch, num_samples


def numbers(model: FeatureModel, clips: list[Tensor], extra: int = 0) -> list[Numbers]:
    """The columns of each clip of a batch, and what the codec quantizes: a code may hide a small fault."""
    kept: list[Tensor] = []
    hook = model.codec.codec.quantizer.register_forward_pre_hook(lambda _m, inputs: kept.append(inputs[0]))
    batch, num_samples = batch_of(clips, extra)
    try:
        found = model(batch, num_samples)
    finally:
        hook.remove()
    counts = [(1 + (len(clip) - 400) // 160) // 2 for clip in clips]
    lengths = [(count + 1) // 2 for count in counts]
    quantized = kept[0][0].split(lengths) if model.packs else kept[0]
    return [
        {
            "codes": found["codes"][row, :length],
            "codec": quantized[row][:length],
            "spk_emb": found["spk_emb"][row],
            "emo_vec": found["emo_vec"][row],
        }
        for row, length in enumerate(lengths)
    ]


@pytest.fixture(scope="module")
def clips() -> list[Tensor]:
    generator = torch.Generator().manual_seed(5)
    return [0.1 * torch.randn(count, generator=generator) for count in SAMPLES]


@pytest.fixture(scope="module")
def singles(model: FeatureModel, clips: list[Tensor]) -> list[Numbers]:
    return [numbers(model, [clip])[0] for clip in clips]


def worst_difference(batched: list[Numbers], singles: list[Numbers]) -> float:
    return max(
        relative(got[name], wanted[name])
        for got, wanted in zip(batched, singles, strict=True)
        for name in ("codec", "spk_emb", "emo_vec")
    )


def check(model: FeatureModel, golden: Path, kind: str = "") -> None:
    clips, expected = zip(*samples(golden, kind), strict=True)
    differing = codes = 0
    for got, wanted in zip(numbers(model, list(clips)), expected, strict=True):
        assert got["codes"].shape == wanted["codes"].shape
        differing += int((got["codes"] != wanted["codes"]).sum())
        codes += len(wanted["codes"])
        assert relative(got["spk_emb"], wanted["spk_emb"]) < 3e-4  # a fbank's rounding makes 1e-4
        assert relative(got["emo_vec"], wanted["emo_vec"]) < 1e-4
    assert codes > 50
    assert differing <= 0.002 * codes


@pytest.mark.parametrize("golden", GOLDEN, ids=lambda folder: folder.name)
def test_a_whole_golden_set_in_one_batch_equals_the_published_code(golden: Path, packing: bool) -> None:
    check(load(golden), golden)


@pytest.mark.parametrize("golden", GOLDEN, ids=lambda folder: folder.name)
def test_by_way_of_22050_hz(golden: Path) -> None:
    check(load(golden), golden, "@22k")


@pytest.mark.parametrize(("size", "extra"), some_quick(itertools.product([1, 3, 8], [0, 1, 9000]), 4))
def test_batched_equals_single(
    model: FeatureModel, clips: list[Tensor], singles: list[Numbers], size: int, extra: int, packing: bool
) -> None:
    batched = [
        found
        for first in range(0, len(clips), size)
        for found in numbers(model, clips[first : first + size], extra=extra)
    ]
    assert worst_difference(batched, singles) < (EXACT if packing else 10 * EXACT)  # input features in another order
    for got, wanted in zip(batched, singles, strict=True):
        assert torch.equal(got["codes"], wanted["codes"])


def mask_sites() -> list[str]:
    """All but CAM++'s, which test_models_campplus removes."""
    return [
        name
        for name, part in load(GOLDEN[0]).named_modules()
        if isinstance(part, TimeMask | KeyMask) and not name.startswith("speaker.")
    ]


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
    assert worst_difference(numbers(model, clips, extra=9000), singles) > 20 * 10 * EXACT


def test_there_is_a_mask_at_every_attention_and_every_two_sided_convolution() -> None:
    config = Config.read(GOLDEN[0] / "checkpoints/config.yaml")
    # 17 layers attend; the codec halves, convolves and does so in each block; Conformer blocks do both; a Perceiver of
    # two layers.
    layers = config.semantic_codec.vocos_num_layers
    assert len(set(mask_sites())) == len(mask_sites()) == 17 + 2 + layers + 2 * config.emotion.num_blocks + 2


def test_computes_only_what_is_asked_for(
    model: FeatureModel, clips: list[Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise AssertionError("was not asked for")

    batch, num_samples = batch_of(clips[:3])
    everything = model(batch, num_samples)
    assert set(everything) == {"codes", "spk_emb", "emo_vec"}
    parts = {CODES: (model.codec, "codes"), SPEAKER: (model.speaker, "spk_emb"), EMOTION: (model.emotion, "emo_vec")}
    for wanted, (_, column) in parts.items():
        with monkeypatch.context() as patch:
            for group, (part, _) in parts.items():
                if group != wanted:
                    patch.setattr(part, "forward", fail)
            if wanted == SPEAKER:
                patch.setattr(model.semantic_encoder, "forward", fail)
            found = model(batch, num_samples, {wanted, "text"})
        assert set(found) == {column}
        assert torch.equal(found[column], everything[column])
    assert model(batch, num_samples, {"text"}) == {}


def test_gives_the_documented_shapes_and_types(model: FeatureModel, clips: list[Tensor]) -> None:
    found = model(*batch_of(clips[:2]))
    assert (found["codes"].shape, found["codes"].dtype) == ((2, 15), torch.int32)
    assert (found["spk_emb"].shape, found["spk_emb"].dtype) == ((2, 20), torch.float32)
    assert (found["emo_vec"].shape, found["emo_vec"].dtype) == ((2, 8), torch.float32)
    assert (model.min_frames, model.max_frames) == (3, 10_000)
    assert not any(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("order", some_quick([[0, 1, 6], [6, 0, 2], [6, 7], [1, 4]], 2), ids=str)
def test_vectors_of_the_first_seconds(clips: list[Tensor], order: list[int], packing: bool) -> None:
    """Codes are of whole clips, both vectors of the beginning: a clip cut there by hand gives the same."""
    seconds = 0.8
    cutting, whole = load(GOLDEN[0], reference_seconds=seconds), load(GOLDEN[0])
    chosen = [clips[index] for index in order]
    found = cutting(*batch_of(chosen, extra=100))
    for row, clip in enumerate(chosen):
        of_whole, of_start = whole(clip[None], torch.tensor([len(clip)])), None
        start = clip[: round(seconds * 16_000)]
        of_start = whole(start[None], torch.tensor([len(start)]))
        length = of_whole["codes"].shape[1]
        assert torch.equal(found["codes"][row, :length], of_whole["codes"][0])
        assert relative(found["emo_vec"][row], of_start["emo_vec"][0]) < EXACT
        assert relative(found["spk_emb"][row], of_start["spk_emb"][0]) < EXACT
    only = cutting(*batch_of(chosen), {EMOTION})
    assert relative(only["emo_vec"], found["emo_vec"]) < EXACT
    assert set(only) == {"emo_vec"}


def test_the_first_15_seconds_are_those_of_the_published_inference() -> None:
    for golden in GOLDEN[1:]:
        for clip, expected in samples(golden):
            if "spk_emb_first_15s" in expected:
                found = load(golden, 15.0)(clip[None], torch.tensor([len(clip)]), {SPEAKER})
                assert relative(found["spk_emb"][0], expected["spk_emb_first_15s"]) < 1e-4
                return
    pytest.skip("the shared golden set does not lie beside this checkout")


@pytest.mark.parametrize(
    ("shape", "counts", "message"),
    [
        ((1, 1000), [1000], "from 2 to 2 frames"),
        ((1, 2000), [2001], "up to 2001 samples"),
        ((2, 2000), [2000], "num_samples"),
        ((2, 20, 160), [20, 20], "waveforms"),
    ],
)
def test_refuses_batches_that_are_not_consistent(
    model: FeatureModel, shape: tuple[int, ...], counts: list[int], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        model(torch.zeros(shape), torch.tensor(counts))


@pytest.mark.parametrize("precision", ["fp16", "bf16", "exact"])
def test_a_model_goes_to_a_card_in_the_precision_that_was_asked_for(
    monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    """All but CAM++, which is always in float32, and the codec, whose codes are always exact."""
    moved: list[float] = []

    def note(self: FeatureModel, _device: object) -> FeatureModel:
        layers = self.semantic_encoder.layers
        sizes = {dtype: sum(x.nbytes for x in (*layers.parameters(), *layers.buffers()) if x.dtype == dtype)
                 for dtype in (torch.float32, torch.float16, torch.bfloat16)}  # fmt: skip
        moved.append(sizes[torch.float32] / (sizes[torch.float16] + sizes[torch.bfloat16]))
        return self

    monkeypatch.setattr(FeatureModel, "to", note)
    monkeypatch.setattr("hfprep.recipes.indextts25.feature_model.require", lambda *_: None)
    files = locate(ModelOptions(models=GOLDEN[0] / "checkpoints"), fetch=False)
    FeatureModel.load(files, Config.read(files.config), device="cuda", precision=precision)
    (share,) = moved
    assert share < 1  # norms, biases and positions, of which a small model has many


def test_refuses_a_codec_of_another_width(tmp_path: Path) -> None:
    files = locate(ModelOptions(models=GOLDEN[0] / "checkpoints"), fetch=False)
    (tmp_path / "config.yaml").write_text(files.config.read_text().replace("hidden_size: 12", "hidden_size: 16"))
    with pytest.raises(CheckpointError, match=r"down\.weight is \[12, 12, 3\], not \[16, 16, 3\]"):
        FeatureModel.load(files, Config.read(tmp_path / "config.yaml"))
