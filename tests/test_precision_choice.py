"""--precision in builds: what is measured, chosen, kept, and held against the bound."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from jsonschema import Draft202012Validator

import hfprep
from hfprep.errors import ConfigError
from hfprep.models import precision
from hfprep.pipeline.dry_run import preview
from hfprep.pipeline.precision_choice import choose
from hfprep.pipeline.precision_trial import Trial, TrialResult
from hfprep.recipes.indextts2.feature_model import FeatureModel

pytestmark = pytest.mark.usefixtures("quick_collections")

SCHEMA = Path(__file__).resolve().parent.parent / "schemas/stats.schema.json"


def config_of(golden_small: Path, output: Path, **options: Any) -> hfprep.BuildConfig:
    values: dict[str, Any] = {"manifest": golden_small / "manifest.jsonl", "models": golden_small / "checkpoints"}
    return hfprep.BuildConfig(**values | {"output_dir": output, "val_ratio": 0.3} | options)


def stats_of(output: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((output / "stats.json").read_text())
    assert not list(Draft202012Validator(json.loads(SCHEMA.read_text())).iter_errors(found))
    return found


def result(agreement: float, frames_per_second: float) -> dict[str, float]:
    return {"agreement": agreement, "frames_per_second": frames_per_second}


def test_the_fastest_within_the_bound_is_chosen() -> None:
    found = {"fp32": result(1.0, 100), "exact": result(0.999, 300), "tf32": result(0.97, 500), "bf16": result(0.7, 900)}
    assert choose(found, 0.995) == "exact"
    assert choose(found, 0.9995) == "fp32"
    assert choose(found, 0.95) == "tf32"
    assert choose(found | {"exact": result(0.999, 90)}, 0.995) == "fp32"


def test_a_named_precision_is_measured_and_said(
    golden_small: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "hfprep")
    summary = hfprep.build(config_of(golden_small, tmp_path / "out", precision="bf16"))
    assert summary.accepted == 8
    stats = stats_of(tmp_path / "out")
    assert stats["precision"] == "bf16"
    measured = stats["code_agreement"]
    assert measured["frames"] == len(frames(tmp_path / "out"))
    assert measured["bound"] == 0.995
    assert measured["modes"]["fp32"]["agreement"] == 1
    assert 0.3 < measured["modes"]["bf16"]["agreement"] < 0.995
    assert "% of codes as in fp32" in caplog.text
    assert "reproduces less than --min-code-agreement 0.995" in caplog.text
    # The share that was measured is the share in the files, for all of them were measured.
    hfprep.build(config_of(golden_small, tmp_path / "plain"))
    plain, coarse = frames(tmp_path / "plain"), frames(tmp_path / "out")
    equal = sum(one == other for one, other in zip(plain, coarse, strict=True)) / len(plain)
    assert equal == pytest.approx(measured["modes"]["bf16"]["agreement"], abs=0.02)
    assert stats_of(tmp_path / "plain")["code_agreement"] is None


def frames(output: Path) -> list[int]:
    import numpy as np

    return [int(code) for path in sorted((output / "codes").glob("*.npy")) for code in np.load(path)]


def test_auto_keeps_its_choice(golden_small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    speed = {"fp32": 100.0, "bf16": 900.0}
    calls: list[str] = []

    def run(self: Trial) -> TrialResult:
        mode = self.spec.precision
        calls.append(mode)
        codes = np.zeros(1000, np.int32)
        codes[0] = mode != "fp32"
        return TrialResult({1: codes}, 1000 / speed[mode])

    monkeypatch.setattr(Trial, "run", run)
    monkeypatch.setattr(precision, "fast_bf16", lambda: True)
    config = config_of(golden_small, tmp_path / "out", precision="auto", max_samples=3)
    assert preview(config).pending == 3
    hfprep.build(config)
    assert stats_of(tmp_path / "out")["precision"] == "bf16"
    speed["bf16"] = 10.0  # on another day it would be slower
    again = config_of(golden_small, tmp_path / "out", precision="auto")
    assert preview(again).pending == 5
    assert hfprep.build(again).reused == 3
    stats = stats_of(tmp_path / "out")
    assert (stats["precision"], stats["code_agreement"]["modes"]["bf16"]) == ("bf16", result(0.999, 900.0))
    assert hfprep.build(config_of(golden_small, tmp_path / "out", precision="bf16")).reused == 8
    assert calls == ["fp32", "bf16"]
    # A precision by name is another wish: what the choice was based on does not hold for it.
    assert preview(config_of(golden_small, tmp_path / "out")).pending == 8


def test_auto_goes_on_as_an_output_was_begun(
    golden_small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hfprep.build(config_of(golden_small, tmp_path / "out", max_samples=2))
    monkeypatch.setattr(precision, "fast_bf16", lambda: True)
    monkeypatch.setattr(Trial, "run", lambda _: pytest.fail("measured although fp32 was in force"))
    assert hfprep.build(config_of(golden_small, tmp_path / "out", precision="auto", max_samples=3)).reused == 2


def test_auto_is_fp32_on_a_cpu_without_fast_bf16(
    golden_small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "fast_bf16", lambda: False)
    hfprep.build(config_of(golden_small, tmp_path / "out", precision="auto", max_samples=1))
    stats = stats_of(tmp_path / "out")
    assert (stats["precision"], stats["code_agreement"]) == ("fp32", None)


@pytest.fixture
def full_for_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device on which the models do not fit in float32, and do in 16 bits."""
    load = FeatureModel.load

    def load_if_small(*arguments: Any, **options: Any) -> FeatureModel:
        if options["precision"] == "fp32":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return load(*arguments, **options)

    monkeypatch.setattr(FeatureModel, "load", load_if_small)
    monkeypatch.setattr(precision, "fast_bf16", lambda: True)


@pytest.mark.usefixtures("full_for_fp32")
def test_where_fp32_does_not_fit_a_named_precision_is_not_compared_and_computes(
    golden_small: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert hfprep.build(config_of(golden_small, tmp_path / "out", precision="bf16")).accepted == 8
    assert "precision fp32 could not be measured: the models do not fit" in caplog.text
    assert stats_of(tmp_path / "out")["code_agreement"] is None


@pytest.mark.usefixtures("full_for_fp32")
def test_where_fp32_does_not_fit_nothing_is_chosen_without_being_told(golden_small: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="choose a precision that needs less memory, such as --precision bf16"):
        hfprep.build(config_of(golden_small, tmp_path / "out", precision="auto"))


def test_a_worker_process_measures_too(golden_small: Path, tmp_path: Path, real_workers: None) -> None:
    summary = hfprep.build(config_of(golden_small, tmp_path / "out", precision="bf16", max_samples=2))
    assert summary.accepted == 2
    assert stats_of(tmp_path / "out")["code_agreement"]["modes"]["fp32"]["agreement"] == 1


def test_auto_really_measures(golden_small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On these models bf16 keeps far too few codes, however fast it is."""
    monkeypatch.setattr(precision, "fast_bf16", lambda: True)
    hfprep.build(config_of(golden_small, tmp_path / "out", precision="auto", max_samples=1))
    stats = stats_of(tmp_path / "out")
    assert stats["precision"] == "fp32"
    assert set(stats["code_agreement"]["modes"]) == {"fp32", "bf16"}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"precision": "fp64"}, "--precision is 'fp64'; it must be fp32, exact"),
        ({"precision": "auto", "engine": "ray"}, "a specific precision"),
        ({"precision": "auto", "shard": "0/2"}, "a specific precision"),
        ({"min_code_agreement": 0.0}, "--min-code-agreement is '0.0'"),
    ],
)
def test_impossible_wishes_are_refused(golden_small: Path, options: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=words):
        config_of(golden_small, tmp_path / "out", **options)


def test_a_precision_that_the_device_lacks_is_refused_before_any_audio(golden_small: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--precision is 'tf32', but cpu supports only"):
        hfprep.build(config_of(golden_small, tmp_path / "out", precision="tf32", device="cpu"))
    assert not (tmp_path / "out/codes").exists()
