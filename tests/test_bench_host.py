"""The measurement of everything around the models: models that answer at once, and both sides on a few clips."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from hfprep.errors import ConfigError
from hfprep.pipeline.config import BuildConfig
from hfprep.pipeline.inputs import Inputs, find_inputs
from hfprep.recipes.registry import recipe
from hfprep.store.layout import OutputFolder
from scripts.benchmark.__main__ import app
from scripts.benchmark.config import HOST_CLIPS, HOST_SECONDS, BenchConfig
from scripts.benchmark.stand_in import StandInModels, stand_in

CLIPS = 5


@pytest.fixture
def inputs(golden_small: Path, tmp_path: Path) -> Inputs:
    config = BuildConfig(manifest=tmp_path / "m.jsonl", output_dir=tmp_path, models=golden_small / "checkpoints")
    return stand_in(find_inputs(config, OutputFolder(tmp_path)), recipe("indextts-2").published)


def test_models_that_answer_at_once_give_what_the_published_ones_would(inputs: Inputs) -> None:
    model = inputs.models.load(torch.device("cpu"), "fp32")
    found = model(torch.zeros(2, 50, 160), torch.tensor([50, 30]), frozenset({"codes", "latents"}))
    assert {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in found.items()} == {
        "codes": ((2, 50), torch.int32),
        "condition": ((2, 32, 1280), torch.float32),
        "emo_vec": ((2, 1280), torch.float32),
    }
    assert model(torch.zeros(1, 16_000), torch.tensor([16_000]), frozenset({"codes"}))["codes"].shape == (1, 49)


@pytest.mark.parametrize("kind", ["npy", "webdataset"])
def test_the_plain_side_writes_every_sample(inputs: Inputs, golden_small: Path, tmp_path: Path, kind: str) -> None:
    from scripts.benchmark.host_plain import run_plain  # imports transformers

    assert isinstance(inputs.models, StandInModels)
    rows = [json.loads(line) for line in (golden_small / "manifest.jsonl").read_text().splitlines()][:2]
    manifest = tmp_path / "rows.jsonl"
    manifest.write_text("".join(
        json.dumps(row | {"audio": str(golden_small / row["audio"]), "language": None}) + "\n" for row in rows
    ))  # fmt: skip
    assert run_plain(inputs.models, manifest, tmp_path / "plain", kind) == 2
    if kind == "npy":
        assert np.load(tmp_path / "plain" / "condition" / f"{rows[0]['id']}.npy").shape == (32, 1280)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "kind", "as_for_gpu"),
    [("indextts-2", "arrow", False), ("indextts-2", "arrow", True), ("indextts-2.5", "npy", False),
     ("codec", "webdataset", False)],
)  # fmt: skip
def test_both_sides_are_measured_on_the_same_clips(tmp_path: Path, name: str, kind: str, as_for_gpu: bool) -> None:
    figures = tmp_path / "figures.json"
    more = ["--as-for-gpu"] if as_for_gpu else []
    result = CliRunner().invoke(app, [
        "--host", "--recipe", name, "--format", kind, "--clips", str(CLIPS), "--min-seconds", "1", "--max-seconds", "2",
        "--folder", str(tmp_path / "work"), "--json", str(figures), *more,
    ])  # fmt: skip
    assert result.exit_code == 0, result.output
    found = json.loads(figures.read_text())
    assert (found["recipe"], found["format"], found["clips"]) == (name, kind, CLIPS)
    assert found["as_for_gpu"] is as_for_gpu
    assert [(turn["kind"], turn["samples"]) for turn in found["turns"]] == [("baseline", CLIPS), ("hfprep", CLIPS)]
    assert CLIPS < found["audio_seconds"] < 2 * CLIPS
    for key in ("clips_a_second", "cpu_ms_a_clip", "driver_ms_a_clip", "times_real_time", "peak_mb"):
        assert found[key] > 0
        assert found[f"plain_{key}"] > 0
    assert found["driver_ms_a_clip"] < found["cpu_ms_a_clip"]
    assert found["ratio"] == found["plain_cpu_ms_a_clip"] / found["cpu_ms_a_clip"]
    assert "ratio:" in result.output


def test_defaults_are_those_of_what_is_measured() -> None:
    assert BenchConfig(host=True).corpus == (HOST_CLIPS, HOST_SECONDS)
    assert BenchConfig().corpus == (16, (2.0, 14.0))
    assert BenchConfig(host=True, clips=3, min_seconds=1.0).corpus == (3, (1.0, HOST_SECONDS[1]))


@pytest.mark.parametrize("options", [{"format": "csv"}, {"recipe": "tts"}])
def test_unknown_formats_and_recipes_are_refused(options: dict[str, str]) -> None:
    with pytest.raises(ConfigError):
        BenchConfig(host=True, **options)  # type: ignore[arg-type]
