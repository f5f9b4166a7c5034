"""The comparison's counts: operations against torch's own counter, and a quick run whose every count is known."""

import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from typer.testing import CliRunner

import hfprep
from hfprep.errors import ConfigError
from hfprep.models import operators
from hfprep.models.batch_input_features import num_fbank_frames
from hfprep.models.campplus import SEGMENT_STEPS
from hfprep.models.configs import ConditionConfig, SemanticCodecConfig, SemanticEncoderConfig
from hfprep.models.input_features import num_input_frames
from hfprep.pipeline.intake_processes import IntakeProcesses
from hfprep.recipes.indextts2.config import ModelConfig
from hfprep.recipes.indextts2.feature_model import FeatureModel
from hfprep.recipes.indextts2.recipe import locate
from hfprep.recipes.indextts25 import config as config25
from hfprep.recipes.indextts25 import feature_model as model25
from hfprep.recipes.indextts25.campplus import PUBLISHED as SPEAKER
from hfprep.recipes.indextts25.campplus import campplus_config
from hfprep.recipes.indextts25.recipe import locate as locate25
from hfprep.recipes.options import ModelOptions
from scripts.benchmark import plain_models
from scripts.benchmark.__main__ import app
from scripts.benchmark.arithmetic import STAGES, STAGES25, needed_flops, needed_flops25
from scripts.benchmark.comparing import evaluate
from scripts.benchmark.config import BenchConfig
from scripts.benchmark.families import INDEXTTS2, INDEXTTS25
from scripts.benchmark.measuring import MATRIX_SIDES, PrivateMemory, Stopwatch, clock_for, matrix_rate, peak_memory
from scripts.benchmark.turn import timed_build
from tests.quick import some_quick

PUBLISHED = ModelConfig(
    path=Path("config.yaml"), model_dim=1280, max_mel_tokens=1815, max_text_tokens=600, number_text_tokens=12_000,
    condition=ConditionConfig(output_size=512, linear_units=2048, attention_heads=8, num_blocks=6, perceiver_mult=2),
    emotion=ConditionConfig(output_size=512, linear_units=1024, attention_heads=4, num_blocks=4, perceiver_mult=2),
    semantic_codec=SemanticCodecConfig(
        codebook_size=8192, hidden_size=1024, codebook_dim=8, vocos_dim=384, vocos_intermediate_dim=2048,
        vocos_num_layers=12,
    ),
    w2v_stat="wav2vec2bert_stats.pt",
)  # fmt: skip


def counted(model: torch.nn.Module, networks: dict[str, str], *inputs: torch.Tensor) -> dict[str, int]:
    """Operations of matrix products, attention and dense convolutions by torch's own counter, by stage."""
    found = dict.fromkeys(networks.values(), 0)
    for name, stage in networks.items():
        counters: list[FlopCounterMode] = []

        def begin(*_: Any, into: list[FlopCounterMode] = counters) -> None:
            into.append(FlopCounterMode(display=False))
            into[-1].__enter__()

        def end(*_: Any, into: list[FlopCounterMode] = counters, stage: str = stage) -> None:
            into[-1].__exit__(None, None, None)
            found[stage] += into[-1].get_total_flops()

        module = getattr(model, name)
        module.register_forward_pre_hook(begin)
        module.register_forward_hook(end)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        model(*inputs)
    return found


@pytest.fixture
def nothing_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """No more is computed than is needed, and by what torch's counter knows: its own products, attention as two."""
    monkeypatch.setattr(operators, "has_onednn_linear", lambda: False)
    for module in ("operators", "conformer", "semantic_codec"):  # rows that a CPU adds to its pieces are not needed
        monkeypatch.setattr(f"hfprep.models.{module}.row_pieces", lambda rows, most=None: (rows, rows))
    monkeypatch.setattr("hfprep.models.conformer.CACHE_LINE", 1)  # nor are positions that it adds to its lines
    monkeypatch.setattr("hfprep.models.campplus.row_pieces", lambda rows, most=None: (rows, rows))
    monkeypatch.setattr("hfprep.models.campplus.REACH", 0)  # nor frames around the head's windows


def once_a_call(branch: ConditionConfig, frames: int, width: int) -> int:
    """What is computed and not needed for each clip: the positions' keys, and their score with the bias.

    The bias of the subsampling convolution is a tenth input in our product.
    """
    frames, width, channels = (frames - 1) // 2, (width - 1) // 2, branch.output_size
    return branch.num_blocks * 2 * frames * channels * (channels + 1) + 2 * frames * width * channels


@pytest.mark.parametrize("num_frames", [11, 64])
@pytest.mark.usefixtures("nothing_more")
def test_needed_operations_are_those_of_torch_s_counter(golden_small: Path, num_frames: int) -> None:
    files = locate(ModelOptions(models=golden_small / "checkpoints"))
    config, semantic = ModelConfig.read(files.config), SemanticEncoderConfig.read(files.semantic_config)
    model = FeatureModel.load(files, config)
    networks = INDEXTTS2.places().networks
    found = counted(model, networks, torch.randn(1, num_frames, 160), torch.tensor([num_frames]))
    flops = needed_flops(320 * num_frames + 240, config, semantic)
    needed = {stage: stage_flops.products for stage, stage_flops in flops.items()}
    for branch in (config.condition, config.emotion):
        needed["conditioners"] += once_a_call(branch, num_frames, semantic.hidden_size)
    # Of the 73 distances, a short clip meets fewer; the product is with all of them.
    assert found == needed


@pytest.mark.parametrize("num_samples", some_quick([20_561, 3600, 40_000], 3))
@pytest.mark.usefixtures("nothing_more")
def test_needed_operations_of_2_5_are_those_of_torch_s_counter(golden25_small: Path, num_samples: int) -> None:
    files = locate25(ModelOptions(models=golden25_small / "checkpoints"))
    config, semantic = config25.Config.read(files.config), SemanticEncoderConfig.read(files.semantic_config)
    speaker = campplus_config(plain_models.read_tensors(files.campplus))
    model = model25.FeatureModel.load(files, config)
    networks = INDEXTTS25.places().networks
    found = counted(model, networks, 0.1 * torch.randn(1, num_samples), torch.tensor([num_samples]))
    flops = needed_flops25(num_samples, config, semantic, speaker)
    needed = {stage: stage_flops.products for stage, stage_flops in flops.items()}
    assert tuple(needed) == STAGES25
    needed["emotion"] += once_a_call(config.emotion, num_input_frames(num_samples), semantic.hidden_size)
    # The means of steps are taken as a product here.
    steps = (1 + (num_samples - 400) // 160 + 1) // 2
    needed["speaker"] += sum(speaker.num_layers) * 2 * -(-steps // SEGMENT_STEPS) * steps * speaker.bottleneck
    assert found == needed


def test_published_models_need_what_their_weights_say() -> None:
    """By hand for one second: 17 layers of 24.12 M weights, two products of 134 M weights at half the rate."""
    semantic = SemanticEncoderConfig.from_values({})
    flops = {stage: found.all / 50 for stage, found in needed_flops(16_240, PUBLISHED, semantic).items()}
    layer = 2 * (4 * 1024 * 4096 + 7 * 1024**2 + 2 * 50 * 1024 + 73 * 1024 + 31 * 1024)
    assert flops["semantic encoder"] == 17 * layer + 2 * 160 * 1024
    blocks = 12 * (2 * 384 * 2048 + 7 * 384)
    assert flops["codec"] == 2 * (7 * 1024 * 384 + blocks + 384 * 1024 + 8 * 1024 + 8 * 8192)
    assert 0.27e9 < flops["conditioners"] < 0.36e9  # the first product of each alone: 2 * 134e6 / 2
    assert sum(flops.values()) == pytest.approx(1.15e9, rel=0.05)


def test_the_published_2_5_needs_what_its_weights_say(golden25_small: Path) -> None:
    """By hand for one second: the strided convolution has 3 M weights; CAM++ takes 2 % of all operations."""
    semantic = SemanticEncoderConfig.from_values({})
    config = dataclasses.replace(
        config25.Config.read(golden25_small / "checkpoints/config.yaml"),
        model_dim=1280, emotion=PUBLISHED.emotion, semantic_codec=PUBLISHED.semantic_codec,
    )  # fmt: skip
    flops = {stage: found.all for stage, found in needed_flops25(16_240, config, semantic, SPEAKER).items()}
    of_2 = {stage: found.all for stage, found in needed_flops(16_240, PUBLISHED, semantic).items()}
    assert flops["semantic encoder"] == of_2["semantic encoder"]
    assert flops["codec"] == of_2["codec"] // 2 + 2 * 25 * 3 * 1024**2
    assert flops["emotion"] < of_2["conditioners"] / 2
    assert 0.015 < flops["speaker"] / sum(flops.values()) < 0.025


def test_the_baseline_of_2_5_and_a_timed_build_give_the_published_numbers(golden25_small: Path, tmp_path: Path) -> None:
    """One clip at a time; the baseline's arithmetic is none of a build's.

    Its feature extractor pads a clip of an odd number of 10 ms frames, so that there only the speaker vector is held.
    """
    from scripts.benchmark.baseline import baseline25, run_baseline  # imports transformers

    device = torch.device("cpu")
    manifest, models = golden25_small / "manifest.jsonl", golden25_small / "checkpoints"
    watches = {name: Stopwatch(device) for name in ("baseline", "build")}
    outputs = {name: tmp_path / name for name in watches}
    baseline = baseline25(models, device)
    counts = run_baseline(
        baseline, manifest, outputs["baseline"], batch_size=1, watch=watches["baseline"], loaded=lambda: None
    )
    loaded: list[str] = []
    with timed_build(INDEXTTS25.places(), watches["build"], lambda: loaded.append("models"), on_gpu=False):
        config = hfprep.BuildConfig(
            manifest=manifest, models=models, output_dir=outputs["build"], engine="inline", device="cpu"
        )
        summary = hfprep.build(config)
    assert loaded == ["models"]
    assert counts["samples"] == summary.accepted == 4
    for watch in watches.values():
        seconds = watch.seconds()
        assert all(seconds[stage] > 0 for stage in ("text", "decode", "features", *STAGES25, "writing")), seconds
    whole = 0
    for row in map(json.loads, manifest.read_bytes().splitlines()):
        name = row["id"]
        padded = int(num_fbank_frames(torch.tensor(len(baseline.decode(golden25_small / row["audio"]))))) % 2
        expected = np.load(golden25_small / f"expected/{name}.npz")
        for kind, output in outputs.items():
            found = {column: np.load(output / column / f"{name}.npy") for column in ("codes", "spk_emb", "emo_vec")}
            np.testing.assert_allclose(found["spk_emb"], expected["spk_emb"], rtol=1e-3, atol=1e-3)
            if kind == "baseline" and padded:
                continue
            whole += 1
            assert (found["codes"] == expected["codes"]).mean() > 0.99
            np.testing.assert_allclose(found["emo_vec"], expected["emo_vec"], rtol=1e-3, atol=1e-3)
    assert whole > 4  # those of the build, and some of the baseline


@pytest.mark.slow
def test_the_command_measures_2_5(tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    options = ["--recipe", "indextts-2.5", "--quick", "--folder", str(tmp_path), "--json", str(figures)]
    result = CliRunner().invoke(app, options)
    assert result.exit_code == 0, result.output
    found = json.loads(figures.read_text())
    assert tuple(found["needs"]["flops"]) == STAGES25
    assert set(STAGES25) <= set(found["stage_share_of_peak"])
    assert found["needs"]["samples"] == found["hfprep"]["samples"] == 6
    assert all(stage in result.output for stage in STAGES25)


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("bench")
    figures = folder / "figures.json"
    result = CliRunner().invoke(app, [
        "--quick", "--folder", str(folder / "work"), "--json", str(figures), "--precision", "bf16,fp32",
    ])  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "semantic encoder" in result.output
    assert "codes as in fp32" in result.output
    return {**json.loads(figures.read_text()), "folder": folder / "work"}


@pytest.mark.slow
def test_quick_run_counts_what_there_is(quick: dict[str, Any]) -> None:
    baseline, build = quick["baseline"], quick["hfprep"]
    needs = quick["needs"]
    assert needs["samples"] == baseline["samples"] == build["samples"] == 6
    assert needs["frames"] == baseline["frames"] == build["frames"]
    ours = [len(np.load(path)) for path in sorted((Path(build["output"]) / "codes").glob("*.npy"))]
    assert sum(ours) == needs["frames"]
    # The baseline, four a batch in the manifest's order, stores every clip at its batch's longest.
    theirs = [len(np.load(path)) for path in sorted((Path(baseline["output"]) / "codes").glob("*.npy"))]
    longest = [max(ours[:4]), max(ours[4:])]
    assert sum(theirs) == baseline["padded_frames"]
    # The feature extractor pads to an even number of 10 ms frames, so a batch may be one frame longer than its clips.
    assert all(0 <= found - expected <= 1 for found, expected in zip([theirs[0], theirs[4]], longest, strict=True))
    assert quick["padding_share"] == 0
    assert quick["baseline_padding_share"] == pytest.approx(1 - sum(ours) / sum(theirs))


@pytest.mark.slow
def test_the_baseline_computes_the_same_features(quick: dict[str, Any]) -> None:
    """Where its batches hold no padding: the longest clip of each, unless the extractor padded that, too."""
    plain = next(turn for turn in quick["turns"] if turn["kind"] == "hfprep" and turn["precision"] == "fp32")
    ours, theirs = Path(plain["output"]), Path(quick["baseline"]["output"])
    compared = 0
    for path in sorted((ours / "codes").glob("*.npy")):
        expected, codes = np.load(path), np.load(theirs / "codes" / path.name)
        if len(codes) == len(expected):
            compared += 1
            assert (codes == expected).mean() > 0.99
            for column in ("condition", "emo_vec"):
                wanted, found = (np.load(folder / column / path.name) for folder in (ours, theirs))
                np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-4)
    assert compared


@pytest.mark.slow
def test_quick_run_keeps_its_figures(quick: dict[str, Any]) -> None:
    names = "speedup", "model_share_of_peak", "memory_ratio", "private_memory_ratio", "startup_seconds", "matrix_rate"
    for name in names:
        assert quick[name] > 0
    assert set(quick["needs"]["flops"]) == set(STAGES)
    assert {"text", "decode", "features", "writing", *STAGES} <= set(quick["hfprep"]["stages"])
    assert {"text", "decode", "features", "writing", *STAGES} <= set(quick["baseline"]["stages"])


@pytest.mark.slow
def test_codes_are_held_against_those_of_float32(quick: dict[str, Any]) -> None:
    turns = {turn["precision"]: turn for turn in quick["turns"] if turn["kind"] == "hfprep"}
    same = total = 0
    for path in (Path(turns["fp32"]["output"]) / "codes").glob("*.npy"):
        plain, codes = np.load(path), np.load(Path(turns["bf16"]["output"]) / "codes" / path.name)
        same, total = same + int((plain == codes).sum()), total + len(plain)
    assert total == quick["needs"]["frames"]
    assert turns["fp32"]["codes_as_in_fp32"] == 1
    assert turns["bf16"]["codes_as_in_fp32"] == same / total
    assert 0.8 < same / total < 1  # bf16 does change some


def test_shares_follow_from_seconds() -> None:
    """2 TFLOP in 4 s at 1 TFLOP/s are half of what is possible; the fastest turn of each kind counts."""
    stages = dict(zip(STAGES, (2.0, 1.0, 1.0), strict=True))
    turn = {
        "stages": stages, "matrix_rate": {"fp32": 1e12}, "seconds": 10.0, "startup_seconds": 2.0, "threads": 1,
        "processor_seconds": 20.0, "frames": 90, "padded_frames": 100, "peak_memory_bytes": 300,
        "peak_private_memory_bytes": 40,
    }  # fmt: skip
    turns = [
        {**turn, "kind": "hfprep"},
        {**turn, "kind": "hfprep", "seconds": 11.0, "peak_memory_bytes": 5},
        {**turn, "kind": "baseline", "seconds": 40.0, "startup_seconds": 8.0, "peak_memory_bytes": 600},
        {**turn, "kind": "baseline", "seconds": 30.0, "startup_seconds": 6.0, "peak_memory_bytes": 500,
         "peak_private_memory_bytes": 400},
    ]  # fmt: skip
    needs = {"flops": dict(zip(STAGES, (1e12, 5e11, 5e11), strict=True)), "audio_seconds": 400.0}
    found = evaluate(BenchConfig(), turns, needs)
    assert found["model_share_of_peak"] == 0.5
    assert found["stage_share_of_peak"]["semantic encoder"] == 0.5
    assert (found["speedup"], found["speedup_without_startup"], found["memory_ratio"]) == (3.0, 3.0, 0.6)
    assert found["private_memory_ratio"] == 0.1
    assert [turn["times_real_time"] for turn in found["turns"]] == [50.0, 400 / 9, 12.5, 400 / 24]
    assert {(turn["model_seconds"], turn["model_share_of_peak"], turn["model_speedup"]) for turn in found["turns"]} == {
        (4.0, 0.5, 1.0)
    }
    assert found["padding_share"] == pytest.approx(0.1)
    assert (found["times_real_time"], found["model_speedup"]) == (50.0, 1.0)


def test_every_precision_takes_a_turn_at_every_batch_size() -> None:
    config = BenchConfig(baseline_batch_sizes="1,8", batch_sizes="0, 4", precision="exact,bf16")
    assert list(map(str, config.turns())) == [
        "baseline, batch size 1, fp32", "baseline, batch size 8, fp32",
        "hfprep, batch size automatic, exact", "hfprep, batch size 4, exact",
        "hfprep, batch size automatic, bf16", "hfprep, batch size 4, bf16",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "options",
    [
        {"recipe": "indextts-3"},
        {"recipe": "codec"},
        {"clips": -1},
        {"rounds": 0},
        {"min_seconds": 5.0, "max_seconds": 4.0},
        {"baseline_batch_sizes": "0"},
        {"precision": "fp32,fp8"},
        {"batch_sizes": "0,many"},
        {"batch_sizes": ""},
        {"precision": ","},
    ],
)
def test_impossible_comparisons_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        BenchConfig(**options)


def test_beside_a_gpu_what_processes_load_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_: Any) -> Any:
        return []

    monkeypatch.setattr(IntakeProcesses, "load", load)
    watch = Stopwatch(torch.device("cpu"))
    with timed_build(INDEXTTS2.places(), watch, lambda: None, on_gpu=True):
        IntakeProcesses.load("self", "task", "settings")  # type: ignore[arg-type]
    assert vars(IntakeProcesses)["load"] is load
    assert set(watch.seconds()) == {"decode"}


def test_measures(monkeypatch: pytest.MonkeyPatch) -> None:
    watch = Stopwatch(torch.device("cpu"))
    module = torch.nn.Linear(2, 2)
    watch.watch("product", module)
    module(torch.ones(1, 2))
    assert watch.timed("sum", sum)([1, 2]) == 3
    watch.add("sum", 5.0)
    assert watch.seconds()["product"] > 0
    assert 5 < watch.seconds()["sum"] < 6
    monkeypatch.setitem(MATRIX_SIDES, "cpu", 64)
    monkeypatch.setattr("scripts.benchmark.measuring.MATRIX_SECONDS", 0.0)
    assert matrix_rate(torch.device("cpu"), clock_for(1)) > 1e6
    before = peak_memory()
    block = np.ones(64 << 20, np.uint8)
    assert peak_memory() >= before
    assert peak_memory() > block.nbytes


def test_stages_at_the_same_time_share_it() -> None:
    """Three calls of two stages from 0 to 6 s, one of them until 8 s; one more from 9 to 10 s, which fails."""
    now = 0.0
    watch = Stopwatch(torch.device("cpu"), lambda: now)
    for stage in ("encoder", "codec", "codec"):
        watch._begin(stage)
    now = 6.0
    watch._end("encoder", None)
    watch._end("codec", None)
    now = 8.0
    watch._end("codec", None)
    now = 9.0
    module = torch.nn.Identity()
    watch.watch("encoder", module)

    def fail(*_: Any) -> None:
        nonlocal now
        now = 10.0
        raise ValueError

    module.register_forward_pre_hook(fail)
    with pytest.raises(ValueError):
        module(torch.ones(1))
    assert watch.seconds() == {"encoder": 3.0, "codec": 6.0}
    now = 11.0
    watch._begin("codec")
    assert watch.seconds() == {"encoder": 3.0, "codec": 6.0}


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="what a process holds is read from /proc")
def test_private_memory_is_the_most_that_is_held_and_no_mapped_file(tmp_path: Path) -> None:
    size = 256 << 20
    file = tmp_path / "file.npy"
    np.save(file, np.ones(size, np.uint8))
    with PrivateMemory() as quiet:
        total = int(np.load(file, mmap_mode="r").sum())
    with PrivateMemory() as busy:
        block = np.ones(size, np.uint8)
        time.sleep(0.2)
        total += int(block[-1])
        del block
    assert total == size + 1
    assert quiet.peak is not None
    assert busy.peak is not None
    assert busy.peak - quiet.peak > 0.8 * size
