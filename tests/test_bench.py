"""The comparison's counts: operations against torch's own counter, and a quick run whose every count is known."""

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from typer.testing import CliRunner

from hfprep.errors import ConfigError
from hfprep.models import operators
from hfprep.models.configs import ConditionConfig, SemanticCodecConfig
from hfprep.models.semantic_config import SemanticEncoderConfig
from hfprep.pipeline.intake_processes import IntakeProcesses
from hfprep.recipes.indextts2.config import ModelConfig
from hfprep.recipes.indextts2.feature_model import FeatureModel
from hfprep.recipes.indextts2.locate import locate
from scripts.benchmark.__main__ import app
from scripts.benchmark.arithmetic import STAGES, needed_flops
from scripts.benchmark.comparing import evaluate
from scripts.benchmark.config import BenchConfig
from scripts.benchmark.measuring import MATRIX_SIDES, PrivateMemory, Stopwatch, clock_for, matrix_rate, peak_memory
from scripts.benchmark.turn import _Start, _timed_build

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


def counted(model: FeatureModel, num_frames: int) -> dict[str, int]:
    """Operations of matrix products, attention and dense convolutions by torch's own counter, for one clip."""
    parts = {
        "semantic encoder": (model.semantic_encoder,), "codec": (model.semantic_codec,),
        "conditioners": (model.conditioner, model.emotion_conditioner),
    }  # fmt: skip
    found = dict.fromkeys(STAGES, 0)
    for stage, modules in parts.items():
        for module in modules:
            counters: list[FlopCounterMode] = []

            def begin(*_: Any, into: list[FlopCounterMode] = counters) -> None:
                into.append(FlopCounterMode(display=False))
                into[-1].__enter__()

            def end(*_: Any, into: list[FlopCounterMode] = counters, stage: str = stage) -> None:
                into[-1].__exit__(None, None, None)
                found[stage] += into[-1].get_total_flops()

            module.register_forward_pre_hook(begin)
            module.register_forward_hook(end)
    model(torch.randn(1, num_frames, 160), torch.tensor([num_frames]))
    return found


@pytest.mark.parametrize("num_frames", [11, 64])
def test_needed_operations_are_those_of_torch_s_counter(
    golden_small: Path, num_frames: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The counter knows torch's own products only, and attention as two products.
    monkeypatch.setattr(operators, "_has_onednn_linear", lambda: False)
    for module in ("operators", "conformer", "semantic_codec"):  # rows that a CPU adds to its pieces are not needed
        monkeypatch.setattr(f"hfprep.models.{module}.row_pieces", lambda rows, most=None: (rows, rows))
    monkeypatch.setattr("hfprep.models.conformer.CACHE_LINE", 1)  # nor are positions that it adds to its lines
    models = golden_small / "checkpoints"
    files = locate(models=models, config=None, gpt_checkpoint=None, semantic_model=None, semantic_codec=None)
    config, semantic = ModelConfig.read(files.config), SemanticEncoderConfig.read(files.semantic_config)
    model = FeatureModel.load(files, config)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        found = counted(model, num_frames)
    needed = {stage: flops.products for stage, flops in needed_flops(num_frames, config, semantic).items()}
    # What is the same for every clip is not needed for each: the positions' keys, and their score with the bias. The
    # bias of the subsampling convolution is a tenth input in our product.
    frames, width = (num_frames - 1) // 2, (semantic.hidden_size - 1) // 2
    for branch in (config.condition, config.emotion):
        channels = branch.output_size
        needed["conditioners"] += branch.num_blocks * 2 * frames * channels * (channels + 1)
        needed["conditioners"] += 2 * frames * width * channels
    # Of the 73 distances, a short clip meets fewer; the product is with all of them.
    assert found == needed


def test_published_models_need_what_their_weights_say() -> None:
    """By hand for one second: 17 layers of 24.12 M weights, two products of 134 M weights at half the rate."""
    semantic = SemanticEncoderConfig.from_values({})
    flops = {stage: found.all / 50 for stage, found in needed_flops(50, PUBLISHED, semantic).items()}
    layer = 2 * (4 * 1024 * 4096 + 7 * 1024**2 + 2 * 50 * 1024 + 73 * 1024 + 31 * 1024)
    assert flops["semantic encoder"] == 17 * layer + 2 * 160 * 1024
    blocks = 12 * (2 * 384 * 2048 + 7 * 384)
    assert flops["codec"] == 2 * (7 * 1024 * 384 + blocks + 384 * 1024 + 8 * 1024 + 8 * 8192)
    assert 0.27e9 < flops["conditioners"] < 0.36e9  # the first product of each alone: 2 * 134e6 / 2
    assert sum(flops.values()) == pytest.approx(1.15e9, rel=0.05)


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


def test_quick_run_keeps_its_figures(quick: dict[str, Any]) -> None:
    names = "speedup", "model_share_of_peak", "memory_ratio", "private_memory_ratio", "startup_seconds", "matrix_rate"
    for name in names:
        assert quick[name] > 0
    assert set(quick["needs"]["flops"]) == set(STAGES)
    assert {"text", "decode", "features", "writing", *STAGES} <= set(quick["hfprep"]["stages"])
    assert {"text", "decode", "features", "writing", *STAGES} <= set(quick["baseline"]["stages"])


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
        {"clips": 0},
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
    def load(*_: Any) -> None:
        return None

    monkeypatch.setattr(IntakeProcesses, "load", load)
    watch = Stopwatch(torch.device("cpu"))
    with _timed_build(watch, _Start(0.0), on_gpu=True):
        IntakeProcesses.load("self", "task", "settings")  # type: ignore[arg-type]
    assert IntakeProcesses.load is load
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
