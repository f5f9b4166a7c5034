"""What --dry-run says, held against what the build then does."""

import json
from pathlib import Path

import pytest

import hfprep
from hfprep.pipeline.dry_run import preview
from hfprep.recipes.indextts2.feature_model import FeatureModel
from hfprep.tools.demo.dataset import make_dataset


@pytest.fixture(autouse=True)
def _no_model(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading a model fails, except in the tests that build."""
    if "builds" not in request.fixturenames:
        monkeypatch.setattr(FeatureModel, "load", None)


@pytest.fixture
def builds() -> None:
    """For tests that build something."""


def config_of(golden_small: Path, output: Path, **options: object) -> hfprep.BuildConfig:
    settings = {"manifest": golden_small / "manifest.jsonl", "models": golden_small / "checkpoints"} | options
    return hfprep.BuildConfig(output_dir=output, **settings)  # type: ignore[arg-type]


def bytes_of(output: Path, *columns: str) -> int:
    return sum(path.stat().st_size for column in columns for path in (output / column).rglob("*.npy"))


@pytest.mark.usefixtures("builds")
def test_the_plan_is_what_the_build_does(golden_small: Path, tmp_path: Path) -> None:
    config = config_of(golden_small, tmp_path / "out", batch_size=3, num_processes=1)
    plan = preview(config)
    summary = hfprep.build(config)
    assert (plan.lines_read, plan.pending, plan.reused) == (8, 8, 0)
    assert plan.hours == pytest.approx(summary.hours, rel=1e-3)
    lines = (tmp_path / "out/.hfprep/batches.jsonl").read_text().splitlines()
    assert plan.batches == sum("num_frames" in line for line in lines) == 3
    tally = summary.tally
    assert plan.padding == pytest.approx(1 - tally.frames / tally.padded_frames, abs=1e-3)
    text = bytes_of(tmp_path / "out", "text_ids")
    assert plan.num_bytes == pytest.approx(bytes_of(tmp_path / "out", "codes", "condition", "emo_vec") + text, rel=2e-3)
    after = preview(config)
    assert (after.pending, after.reused, after.batches, after.num_bytes) == (0, 8, 0, 0)


@pytest.mark.usefixtures("builds")
def test_a_started_output_is_left_as_it_is(golden_small: Path, tmp_path: Path) -> None:
    config = config_of(golden_small, tmp_path / "out", max_samples=5, num_processes=1)
    hfprep.build(config)
    (tmp_path / "out/codes/synth1.npy").unlink()
    files = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in tmp_path.rglob("*") if path.is_file()}
    plan = preview(config_of(golden_small, tmp_path / "out"))
    assert (plan.reused, plan.pending) == (4, 4)
    assert files == {
        path: (path.read_bytes(), path.stat().st_mtime_ns) for path in tmp_path.rglob("*") if path.is_file()
    }


def test_bad_lines_are_counted_and_lengths_come_from_headers(golden_small: Path, tmp_path: Path) -> None:
    demo = make_dataset(tmp_path / "data", num_samples=5, max_seconds=1.5)
    plan = preview(config_of(golden_small, tmp_path / "out", manifest=demo.manifest))
    assert plan.lines_read == demo.num_lines == plan.pending + sum(plan.rejected.values())
    assert plan.rejected["invalid_json"] == 2
    assert plan.unreadable >= 2
    rows = [json.loads(line) for line in demo.manifest.read_bytes().splitlines() if b"duration" in line]
    assert plan.hours * 3600 > sum(row["duration"] for row in rows)
    assert not (tmp_path / "out").exists()


def test_shards_are_shared_out_evenly(golden_small: Path, tmp_path: Path) -> None:
    plan = preview(config_of(golden_small, tmp_path / "out", num_processes=2))
    assert [(share.process, share.device, share.shards, share.samples) for share in plan.shares] == [
        (0, "cpu", 1, 4),
        (1, "cpu", 1, 4),
    ]
    assert sum(share.hours for share in plan.shares) == pytest.approx(plan.hours)


def test_a_part_is_planned_alone(golden_small: Path, tmp_path: Path) -> None:
    plans = [preview(config_of(golden_small, tmp_path / "out", shard=f"{index}/3")) for index in range(3)]
    assert [plan.pending for plan in plans] == [3, 3, 2]


def test_the_command_prints_the_plan(golden_small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from hfprep.cli.build import show_plan

    show_plan(config_of(golden_small, tmp_path / "out", num_processes=2))
    shown = capsys.readouterr().out
    for words in ("to compute", "8", "batches", "padding 0.0%", "process 1", "1 work unit, 4 samples"):
        assert words in shown
