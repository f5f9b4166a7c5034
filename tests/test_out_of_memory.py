"""Memory that runs out at any step, at any size: no sample is lost, and what cannot be computed says why.

Most tests drive the real `FeatureExtractor` with a small stand-in for the models whose steps fail on purpose; the last
ones make steps of the real models fail inside real builds.
"""

import itertools
import json
import logging
import random
import shutil
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor

import hfprep
from hfprep.errors import CheckpointError, Reason
from hfprep.models.conditioner import Conditioner, EmotionConditioner
from hfprep.models.semantic_codec import SemanticCodec
from hfprep.models.semantic_encoder import SemanticEncoder
from hfprep.pipeline.batching import BatchLimits
from hfprep.pipeline.breaker import SystematicFailureError, Unproven
from hfprep.pipeline.failures import DeviceError
from hfprep.pipeline.features import ExtractorSettings, FeatureExtractor
from hfprep.pipeline.forwarding import Download
from hfprep.pipeline.intake import Clip, Task
from hfprep.recipes.indextts2.feature_model import FeatureModel
from hfprep.recipes.indextts2.recipe import RECIPE
from hfprep.recipes.options import ModelOptions
from hfprep.schema import Features, Rejection, Utterance
from tests.sample_schemas import speech_schema

pytestmark = pytest.mark.usefixtures("two_layers", "quick_collections")

STEPS = ("semantic_encoder", "semantic_codec", "conditioner", "emotion_conditioner", "to the device", "from the device")
ERRORS: dict[str, Callable[[], Exception]] = {
    "cuda": lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    "driver": lambda: RuntimeError("CUDA error: out of memory\nSome advice on kernels."),
    "cublas": lambda: RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    "cpu": lambda: RuntimeError(
        "[enforce fail at alloc_cpu.cpp:119] . DefaultCPUAllocator: can't allocate memory: ..."
    ),
    "python": lambda: MemoryError(),
}
FIFTH = torch.tensor([4])
SCHEMA = speech_schema(4, latents=2)
MODELS: Any = SimpleNamespace(schema=SCHEMA, num_codes=int, audio=None)
Fails = Callable[[str, int, int], Exception | None]  # step, rows, padded frames -> what to raise


class Fragile:
    """Stands in for FeatureModel: every step may fail; each sample's numbers follow from its own frames alone."""

    min_frames, max_frames, packs, pads_from = 1, 100_000, False, 0

    def __init__(self, fails: Fails = lambda *_: None) -> None:
        self.fails = fails
        self.tried: list[int] = []
        self.batches: list[tuple[int, int]] = []
        self.refs: list[weakref.ref[Tensor]] = []
        self.leaked = 0

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    def _step(self, name: str, like: Tensor) -> None:
        error = self.fails(name, like.shape[0], like.shape[0] * like.shape[1])
        if error is not None:
            self.refs.append(weakref.ref(like))
            raise error

    def __call__(self, inputs: Tensor, lengths: Tensor, groups: frozenset[str]) -> dict[str, Tensor]:
        self.leaked += sum(ref() is not None for ref in self.refs)
        self.tried.append(len(inputs))
        self._step("to the device", inputs)
        self._step("semantic_encoder", inputs)
        semantic = inputs.cumsum(1)
        self._step("semantic_codec", semantic)
        found = {}
        if "codes" in groups:
            found["codes"] = semantic[..., 0].abs().round().int()
        if "latents" in groups:
            found["condition"] = self._latent("conditioner", semantic, lengths)
            found["emo_vec"] = self._latent("emotion_conditioner", semantic, lengths)[:, 0]
        self._step("from the device", semantic)
        self.batches.append((inputs.shape[0], inputs.shape[0] * inputs.shape[1]))
        return found

    def _latent(self, step: str, semantic: Tensor, lengths: Tensor) -> Tensor:
        self._step(step, semantic)
        last = torch.stack([row[length - 1] for row, length in zip(semantic, lengths, strict=True)])
        return last[:, None, :4].repeat(1, 2, 1)


@dataclass
class Bench:
    """A FeatureExtractor over made-up clips of given lengths in frames."""

    model: Fragile
    lengths: list[int]
    batch_size: int = 16
    fallback: Fragile | None = None
    max_frames: int | None = None
    extractor: FeatureExtractor = field(init=False)

    def __post_init__(self) -> None:
        fallback = self.fallback
        self.extractor = FeatureExtractor(
            MODELS,
            SimpleNamespace(encode=lambda text, _: np.array([len(text)], np.int32)),
            cast(FeatureModel, self.model),
            ExtractorSettings(limits=BatchLimits(self.batch_size, self.max_frames), workers=2),
            fallback=None if fallback is None else lambda: cast(FeatureModel, fallback),
        )
        self.extractor.intake.read_audio = self.read_audio  # type: ignore[method-assign]

    def read_audio(self, path: str, check_frames: Callable[[int], None], segment: Any = None) -> Clip:
        number = int(path)
        draw = np.random.default_rng(number)
        features = draw.standard_normal((self.lengths[number], 160)).astype(np.float32)
        return Clip(features, len(features), len(features) / 50)

    def run(self) -> dict[str, Features | Rejection]:
        """Outcomes by id; every task must have exactly one."""
        tasks = [
            Task.of(
                SCHEMA,
                Utterance(line=n, id=f"clip-{n}", text="x" * n, audio=str(n), path=str(n), duration=length / 50),
            )
            for n, length in enumerate(self.lengths)
        ]
        found: list[tuple[str, Features | Rejection]] = []
        for result in self.extractor.extract(tasks):
            found += [(task.utterance.id, outcome) for task, outcome in result.outcomes]
        self.extractor.close()
        assert sorted(name for name, _ in found) == sorted(task.utterance.id for task in tasks)
        return dict(found)


LENGTHS = [40 + 3 * (n * 7 % 16) for n in range(16)]


@pytest.fixture(scope="module")
def quiet() -> dict[str, Features]:
    return accepted(Bench(Fragile(), LENGTHS).run())


def accepted(found: dict[str, Features | Rejection]) -> dict[str, Features]:
    rejected = {name: outcome for name, outcome in found.items() if isinstance(outcome, Rejection)}
    assert not rejected
    return cast(dict[str, Features], found)


def assert_same(found: dict[str, Features], expected: dict[str, Features]) -> None:
    assert found.keys() == expected.keys()
    for name, features in expected.items():
        for column, array in features.arrays.items():
            np.testing.assert_array_equal(found[name].arrays[column], array, err_msg=f"{name} {column}")


def above(size: int, step: str, error: str = "cuda") -> Fails:
    """Batches of more than `size` samples fail at one step."""
    return lambda here, rows, _: ERRORS[error]() if here == step and rows > size else None


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("size", range(1, 17))
def test_batches_above_a_size_fail_at_each_step(step: str, size: int, quiet: dict[str, Features]) -> None:
    model = Fragile(above(size, step))
    bench = Bench(model, LENGTHS)
    assert_same(accepted(bench.run()), quiet)
    assert max(rows for rows, _ in model.batches) <= size
    assert model.leaked == 0
    assert bench.extractor.out_of_memory_events == len(model.refs) == len(model.tried) - len(model.batches)
    if size < 16:
        assert len(model.refs) >= 1
    if size == 1:  # 16, 8, 4, 2: the siblings of what failed are not tried at sizes known not to fit
        assert bench.extractor.out_of_memory_events <= 8


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("step", ["semantic_encoder", "from the device"])
def test_every_way_of_saying_it_counts(step: str, error: str, quiet: dict[str, Features]) -> None:
    model = Fragile(above(3, step, error))
    assert_same(accepted(Bench(model, LENGTHS).run()), quiet)
    assert model.leaked == 0


class Arriving(Download):
    """A download from a device that works by itself: it is noted when somebody waits, and some fail then."""

    log: list[str]
    fails: Callable[[int], Exception | None]

    def wait(self) -> dict[str, np.ndarray]:
        arrays = super().wait()
        emo_vec = arrays["emo_vec"]
        self.log.append(f"waited for {len(emo_vec)}")
        error = self.fails(len(emo_vec))
        if error is not None:
            raise error
        return arrays


@pytest.fixture
def arriving(monkeypatch: pytest.MonkeyPatch) -> type[Arriving]:
    """What a GPU would do: the results of a batch come while the next one is being computed."""
    Arriving.log, Arriving.fails = [], staticmethod(lambda rows: None)
    monkeypatch.setattr("hfprep.pipeline.forwarding.Download", Arriving)
    return Arriving


def ahead(model: Fragile, arriving: type[Arriving], **options: Any) -> Bench:
    bench = Bench(model, LENGTHS, **options)
    bench.extractor.looks_ahead = True
    given = model.fails

    def noted(step: str, rows: int, frames: int) -> Exception | None:
        if step == "from the device":
            arriving.log.append(f"gave {rows}")
        return given(step, rows, frames)

    model.fails = noted
    return bench


def test_the_next_batch_is_given_before_the_last_one_is_waited_for(
    arriving: type[Arriving], quiet: dict[str, Features]
) -> None:
    assert_same(accepted(ahead(Fragile(), arriving, batch_size=6).run()), quiet)
    assert arriving.log == ["gave 6", "gave 6", "waited for 6", "gave 4", "waited for 6", "waited for 4"]


@pytest.mark.parametrize("size", [1, 3, 5])
def test_memory_that_runs_out_with_a_batch_still_on_its_way(
    size: int, arriving: type[Arriving], quiet: dict[str, Features]
) -> None:
    model = Fragile(above(size, "conditioner"))
    assert_same(accepted(ahead(model, arriving, batch_size=6).run()), quiet)
    assert model.leaked == 0


@pytest.mark.parametrize("size", [1, 3, 5])
def test_memory_that_runs_out_while_results_are_waited_for(
    size: int, arriving: type[Arriving], quiet: dict[str, Features]
) -> None:
    arriving.fails = staticmethod(lambda rows: ERRORS["driver"]() if rows > size else None)
    bench = ahead(Fragile(), arriving, batch_size=6)
    assert_same(accepted(bench.run()), quiet)
    assert bench.extractor.out_of_memory_events >= 1


def test_a_device_that_breaks_while_results_are_waited_for_ends_the_process(arriving: type[Arriving]) -> None:
    arriving.fails = staticmethod(lambda rows: RuntimeError("CUDA error: an illegal memory access was encountered"))
    with pytest.raises(DeviceError, match="illegal memory access"):
        ahead(Fragile(), arriving, batch_size=6).run()


def test_another_error_while_results_are_waited_for_finds_its_sample(
    arriving: type[Arriving], quiet: dict[str, Features]
) -> None:
    alone = itertools.count()

    def fails(rows: int) -> Exception | None:
        return ValueError("odd") if rows == 6 or (rows == 1 and next(alone) == 2) else None

    arriving.fails = staticmethod(fails)
    found = ahead(Fragile(), arriving, batch_size=6).run()
    rejected = {name: outcome for name, outcome in found.items() if isinstance(outcome, Rejection)}
    assert [(item.reason, item.message) for item in rejected.values()] == [(Reason.COMPUTE_FAILED, "ValueError: odd")]
    rest = {name: outcome for name, outcome in found.items() if name not in rejected}
    assert_same(accepted(rest), {name: features for name, features in quiet.items() if name not in rejected})


@pytest.mark.parametrize("seed", range(12))
def test_failures_at_random_lose_nothing(seed: int, quiet: dict[str, Features]) -> None:
    draw = random.Random(seed)
    steps = draw.sample(STEPS, 2)

    def fails(step: str, rows: int, _: int) -> Exception | None:
        return ERRORS["cuda"]() if step in steps and draw.random() < 0.4 else None

    model, fallback = Fragile(fails), Fragile()
    assert_same(accepted(Bench(model, LENGTHS, fallback=fallback).run()), quiet)
    assert model.leaked == 0


def test_a_device_without_memory_leaves_all_to_the_cpu(quiet: dict[str, Features]) -> None:
    model, fallback = Fragile(above(0, "semantic_encoder")), Fragile()
    assert_same(accepted(Bench(model, LENGTHS, fallback=fallback).run()), quiet)
    assert model.batches == []
    assert [rows for rows, _ in fallback.batches] == [1] * 16


@pytest.mark.parametrize("with_fallback", [True, False])
def test_what_fits_nowhere_is_rejected_by_name(with_fallback: bool) -> None:
    model = Fragile(above(0, "conditioner"))
    found = Bench(model, LENGTHS, fallback=Fragile(above(0, "conditioner", "cpu")) if with_fallback else None).run()
    assert len(found) == 16
    for outcome in found.values():
        assert isinstance(outcome, Rejection)
        assert outcome.reason is Reason.OUT_OF_MEMORY
        assert "OutOfMemoryError: CUDA out of memory" in outcome.message
        assert ("can't allocate memory" in outcome.message) == with_fallback


def test_models_that_cannot_be_loaded_on_the_cpu_end_the_run_and_reject_nothing() -> None:
    """Such as a checkpoint that was replaced since the device's copy was loaded."""
    bench = Bench(Fragile(above(0, "conditioner")), LENGTHS)

    def changed() -> FeatureModel:
        raise CheckpointError("gpt.pth was replaced")

    bench.extractor.fallback = changed
    with pytest.raises(CheckpointError, match=r"gpt\.pth was replaced"):
        bench.run()
    bench.extractor.close()


def test_only_the_sample_that_never_fits_is_rejected(quiet: dict[str, Features]) -> None:
    """One long clip fits neither on the device nor on the CPU; its fifteen neighbours come through."""
    lengths = [*LENGTHS[:7], 900, *LENGTHS[8:]]

    def fails(step: str, _: int, frames: int) -> Exception | None:
        return ERRORS["cuda"]() if step == "semantic_codec" and frames >= 900 else None

    found = Bench(Fragile(fails), lengths, fallback=Fragile(fails)).run()
    lost = found.pop("clip-7")
    assert isinstance(lost, Rejection)
    assert lost.reason is Reason.OUT_OF_MEMORY
    assert_same(accepted(found), {name: value for name, value in quiet.items() if name != "clip-7"})


@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
def test_each_event_is_one_line_with_its_sizes(packed: bool, caplog: pytest.LogCaptureFixture) -> None:
    model = Fragile(above(4, "semantic_encoder"))
    model.packs = packed
    bench = Bench(model, [50, 40] * 8)
    with caplog.at_level(logging.WARNING, logger="hfprep"):
        bench.run()
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == bench.extractor.out_of_memory_events == 2
    sizes = ["with 720 frames", "with 320 frames"]  # the longer half is above half of 720: not tried
    if not packed:
        sizes = ["x 50 frames = 800 padded frames", "x 50 frames = 400 padded frames"]
    assert lines[0].startswith(f"out of memory at 16 samples {sizes[0]}; next: halves of 8 and 8")
    assert lines[1].startswith(f"out of memory at 8 samples {sizes[1]}; next: halves of 4 and 4")


def test_the_size_that_fitted_is_remembered_in_frames() -> None:
    """After one failure long batches start small, short ones stay as large as the user asked."""
    lengths = [300] * 32 + [30] * 32

    def fails(step: str, _: int, frames: int) -> Exception | None:
        return ERRORS["cuda"]() if step == "conditioner" and frames > 1500 else None

    model = Fragile(fails)
    bench = Bench(model, lengths)
    accepted(bench.run())
    assert bench.extractor.out_of_memory_events == 2  # at 4800 and 2400 frames, and never again
    long = [rows for rows, frames in model.batches if frames >= 300 * rows]
    assert long == [4] * 8
    short = [rows for rows, frames in model.batches if frames == 30 * rows]
    assert short == [16, 16]


def test_memory_that_comes_back_is_used_again() -> None:
    model = Fragile()
    model.fails = lambda step, rows, _: ERRORS["cuda"]() if not model.batches and rows > 2 else None
    bench = Bench(model, [50] * 400, max_frames=16 * 50)
    bench.extractor.budget.patience = 2
    accepted(bench.run())
    sizes = [rows for rows, _ in model.batches]
    assert sizes[0] == 2
    assert max(sizes) == 16
    assert sizes == sorted(sizes[:-1]) + sizes[-1:]


def test_the_limit_of_one_window_holds_for_the_next() -> None:
    """`datasets.map` calls the function once a window; what was learnt is kept in between."""
    model = Fragile(above(2, "semantic_encoder"))
    bench = Bench(model, [50] * 8)
    clips = [Utterance(line=n, id=str(n), text="x", audio=str(n), path=str(n), duration=1.0) for n in range(8)]
    tasks = [Task.of(SCHEMA, clip) for clip in clips]
    for _ in range(3):
        assert sum(len(result.outcomes) for result in bench.extractor.extract(tasks)) == 8
    assert bench.extractor.out_of_memory_events == 2
    bench.extractor.close()


# Errors that are not about memory


def test_the_culprit_of_a_failing_batch_is_found(quiet: dict[str, Features], caplog: pytest.LogCaptureFixture) -> None:
    class Allergic(Fragile):
        def __call__(self, inputs: Tensor, lengths: Tensor, groups: frozenset[str]) -> dict[str, Tensor]:
            if LENGTHS[5] in lengths.tolist():
                raise ZeroDivisionError("cannot stand this clip\nand more")
            return super().__call__(inputs, lengths, groups)

    model = Allergic()
    with caplog.at_level(logging.WARNING, logger="hfprep"):
        found = Bench(model, LENGTHS).run()
    culprit = found.pop("clip-5")
    assert isinstance(culprit, Rejection)
    assert (culprit.reason, culprit.message) == (Reason.COMPUTE_FAILED, "ZeroDivisionError: cannot stand this clip")
    assert_same(accepted(found), {name: value for name, value in quiet.items() if name != "clip-5"})
    assert [rows for rows, _ in model.batches] == [1] * 16  # one of them twice: it shows that the device works
    assert "a batch of 16 failed (ZeroDivisionError" in caplog.text


def test_numbers_that_are_not_finite_reject_their_own_sample(quiet: dict[str, Features]) -> None:
    bench = Bench(Fragile(), LENGTHS)

    def read_audio(path: str, check_frames: Callable[[int], None], segment: Any = None) -> Clip:
        clip = bench.read_audio(path, check_frames)
        clip.audio[-1, 1] = np.nan if path == "3" else clip.audio[-1, 1]
        return clip

    bench.extractor.intake.read_audio = read_audio  # type: ignore[method-assign]
    found = bench.run()
    lost = found.pop("clip-3")
    assert isinstance(lost, Rejection)
    assert (lost.reason, lost.message) == (Reason.COMPUTE_FAILED, "condition contains NaN or infinite values")
    assert_same(accepted(found), {name: value for name, value in quiet.items() if name != "clip-3"})


def test_only_codes_that_are_computed_again_are_rejected_too(golden_small: Path) -> None:
    """A frame without finite hidden states has no code; it must not become one of those there are."""
    models = RECIPE.find(ModelOptions(models=golden_small / "checkpoints"))
    model = models.load(torch.device("cpu"), "fp32")
    spoilt = model.semantic_encoder.register_forward_hook(lambda _m, _i, hidden: hidden.index_fill(1, FIFTH, np.nan))
    tokenizer: Any = SimpleNamespace(encode=None)
    extractor = FeatureExtractor(models, tokenizer, model, ExtractorSettings())
    rows = [json.loads(line) for line in (golden_small / "manifest.jsonl").read_text(encoding="utf-8").splitlines()]
    path = str(golden_small / rows[0]["audio"])
    task = Task.of(models.schema, Utterance(line=1, id="a", text="x", audio=path, path=path), frozenset({"codes"}))
    (result,) = extractor.extract([task])
    assert isinstance(result.outcomes[0][1], Rejection)
    assert result.outcomes[0][1].message == "codes come from NaN or infinite values"
    spoilt.remove()
    (result,) = extractor.extract([task])
    assert isinstance(result.outcomes[0][1], Features)
    extractor.close()


@pytest.mark.parametrize("words", ["CUDA error: device-side assert triggered", "CUDA error: an illegal memory access"])
def test_a_broken_device_ends_the_run_by_name(words: str) -> None:
    def fails(step: str, _: int, __: int) -> Exception | None:
        return RuntimeError(words) if step == "semantic_encoder" else None

    bench = Bench(Fragile(fails), LENGTHS)
    with pytest.raises(DeviceError, match="run the same command again, finished work is kept"):
        bench.run()
    bench.extractor.close()


def broken(step: str, _: int, __: int) -> Exception | None:
    return RuntimeError("PTXAS error: cannot find ptxas") if step == "semantic_encoder" else None


def test_a_fault_that_strikes_every_sample_proves_nothing_against_any() -> None:
    found = Bench(Fragile(broken), LENGTHS).run()
    assert {type(outcome) for outcome in found.values()} == {Unproven}
    assert {cast(Unproven, outcome).kind for outcome in found.values()} == {"RuntimeError"}


def test_with_a_sample_that_was_computed_before_the_only_one_left_is_proved_guilty() -> None:
    """As in a rerun over an output of which one sample was rejected."""
    bench = Bench(Fragile(), [40, 50, 60])
    bench.model.fails = lambda step, _, frames: ValueError("odd") if frames == 60 and step == "conditioner" else None
    task = Task.of(SCHEMA, Utterance(line=2, id="clip-2", text="x", audio="2", path="2", duration=1.0))
    (result,) = bench.extractor.extract([task])
    assert isinstance(result.outcomes[0][1], Unproven)
    bench.extractor._controls["before"] = Task.of(SCHEMA, Utterance(line=0, id="clip-0", text="x", audio="0", path="0"))
    (result,) = bench.extractor.extract([task])
    assert type(result.outcomes[0][1]) is Rejection
    bench.extractor.close()


@pytest.mark.parametrize("broken_from", [0, 9])
def test_the_map_function_ends_where_everything_fails(broken_from: int) -> None:
    """And rejects nothing for it: neither before anything has worked, nor after."""
    model = Fragile()
    model.fails = lambda *step: broken(*step) if len(model.batches) >= broken_from else None
    bench = Bench(model, LENGTHS, batch_size=1)
    columns = {"id": [str(n) for n in range(16)], "text": ["x"] * 16, "audio": [str(n) for n in range(16)]}
    with pytest.raises(SystematicFailureError, match=r"5 samples failed one after another.*cannot find ptxas"):
        bench.extractor(columns)
    bench.extractor.close()


def test_memory_short_while_decoding_is_tried_again(quiet: dict[str, Features]) -> None:
    bench = Bench(Fragile(), LENGTHS)
    failed: list[str] = []

    def read_audio(path: str, check_frames: Callable[[int], None], segment: Any = None) -> Clip:
        if path in ("2", "9") and (path == "9" or path not in failed):
            failed.append(path)
            raise MemoryError
        return bench.read_audio(path, check_frames)

    bench.extractor.intake.read_audio = read_audio  # type: ignore[method-assign]
    found = bench.run()
    lost = found.pop("clip-9")
    assert sorted(failed) == ["2", "9", "9"]
    assert isinstance(lost, Rejection)
    assert lost.reason is Reason.OUT_OF_MEMORY
    assert_same(accepted(found), {name: value for name, value in quiet.items() if name != "clip-9"})


# The real models inside real builds


MODEL_STEPS: dict[str, type[torch.nn.Module]] = {
    "semantic_encoder": SemanticEncoder,
    "semantic_codec": SemanticCodec,
    "conditioner": Conditioner,
    "emotion_conditioner": EmotionConditioner,
}


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory, golden_small: Path) -> Iterator[Any]:
    """Builds golden-small at batch size 8; the undisturbed one comes first."""
    folder = tmp_path_factory.mktemp("builds")

    def build(name: str) -> tuple[hfprep.Summary, Path]:
        config = hfprep.BuildConfig(
            manifest=golden_small / "manifest.jsonl",
            models=golden_small / "checkpoints",
            output_dir=folder / name,
            batch_size=8,
            val_ratio=0.3,
        )
        return hfprep.build(config), folder / name

    build("quiet")
    yield lambda name: build(name) if name != "quiet" else folder / "quiet"
    shutil.rmtree(folder, ignore_errors=True)


def fail_above(monkeypatch: pytest.MonkeyPatch, module: type[torch.nn.Module], size: int) -> None:
    forward = module.forward

    def failing(self: Any, inputs: Tensor, mask: Any) -> Any:
        if len(mask.lengths) > size:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
        return forward(self, inputs, mask)

    monkeypatch.setattr(module, "forward", failing)


@pytest.mark.parametrize(
    ("step", "size"), [("semantic_encoder", 3), ("semantic_codec", 1), ("conditioner", 5), ("emotion_conditioner", 2)]
)
def test_a_real_build_comes_through(real: Any, step: str, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    fail_above(monkeypatch, MODEL_STEPS[step], size)
    summary, output = real(f"{step}-{size}")
    quiet = real("quiet")
    assert (summary.accepted, summary.rejected) == (8, {})
    assert summary.out_of_memory_events > 0
    assert json.loads((output / "stats.json").read_bytes())["out_of_memory_events"] == summary.out_of_memory_events
    for name in ("train_manifest.jsonl", "val_manifest.jsonl", ".preprocessing_progress.txt"):
        assert (output / name).read_bytes() == (quiet / name).read_bytes()
    for expected in sorted(quiet.rglob("*.npy")):
        ours, theirs = np.load(output / expected.relative_to(quiet)), np.load(expected)
        if theirs.dtype == np.int32:
            np.testing.assert_array_equal(ours, theirs)
        else:
            assert np.linalg.norm(ours - theirs) <= 1e-4 * np.linalg.norm(theirs)


def test_a_real_build_that_never_fits_names_every_sample(real: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    fail_above(monkeypatch, SemanticEncoder, 0)
    summary, output = real("nothing-fits")
    assert (summary.accepted, summary.rejected) == (0, {"out_of_memory": 8})
    rejected = [json.loads(line) for line in (output / "rejected.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [record["line"] for record in rejected] == list(range(1, 9))
    assert not list(output.rglob("*.npy"))
    monkeypatch.undo()
    summary, output = real("nothing-fits")
    assert (summary.accepted, summary.rejected) == (8, {})


def test_a_broken_device_keeps_finished_work(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, golden_small: Path
) -> None:
    forward, calls = SemanticEncoder.forward, 0

    def breaking(self: Any, inputs: Tensor, mask: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        return forward(self, inputs, mask)

    monkeypatch.setattr(SemanticEncoder, "forward", breaking)
    config = hfprep.BuildConfig(
        manifest=golden_small / "manifest.jsonl",
        models=golden_small / "checkpoints",
        output_dir=tmp_path / "out",
        batch_size=2,
    )
    with pytest.raises(hfprep.HfprepError, match="the device failed: RuntimeError: CUDA error"):
        hfprep.build(config)
    done = (tmp_path / "out" / ".preprocessing_progress.txt").read_text().split()
    assert len(done) == 6  # three batches of two were computed, and are kept, the last one being written included
    monkeypatch.undo()
    summary = hfprep.build(config)
    assert (summary.accepted, summary.reused, summary.tally.done) == (8, 6, 2)
