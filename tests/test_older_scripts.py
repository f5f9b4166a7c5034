"""Commands and folders of the older scripts: worker folders, resampling chains, usual places of files."""

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from hfprep.cli import app as cli
from hfprep.errors import ConfigError
from hfprep.pipeline.building import build
from hfprep.pipeline.config import BuildConfig


@pytest.fixture
def manifest(golden_small: Path, tmp_path: Path) -> Path:
    clips = sorted((golden_small / "audio").iterdir())[:4]
    rows = [
        {"id": f"a/r{number}", "text": "Good day.", "audio": str(clip), "language": "en", "speaker": "s"}
        for number, clip in enumerate(clips)
    ]
    path = tmp_path / "manifest.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def config(golden_small: Path, manifest: Path, output: Path, **options: Any) -> BuildConfig:
    return BuildConfig(manifest=manifest, output_dir=output, models=golden_small / "checkpoints", **options)


def older(output: Path) -> None:
    """Leave what an older script leaves: arrays and manifests without a record."""
    shutil.rmtree(output / ".hfprep")
    for name in ("stats.json", ".preprocessing_progress.txt", "rejected.jsonl"):
        (output / name).unlink()


def test_worker_folders_are_adopted(
    golden_small: Path, manifest: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "out"
    build(config(golden_small, manifest, out))
    before = {path.relative_to(out): path.read_bytes() for path in out.rglob("*.npy")}
    older(out)
    for number in range(4):
        for column in ("text_ids", "codes", "condition", "emo_vec"):
            place = out / f"worker_{number % 2}" / column / "a"
            place.mkdir(parents=True, exist_ok=True)
            (out / column / "a" / f"r{number}.npy").rename(place / f"r{number}.npy")
    with caplog.at_level(logging.INFO):
        summary = build(config(golden_small, manifest, out, skip_existing=True))
    assert (summary.adopted, summary.tally.done, summary.accepted) == (4, 0, 4)
    assert {path.relative_to(out): path.read_bytes() for path in out.rglob("*.npy")} == before
    assert "moved 16 files out of worker folders" in caplog.text
    assert not list(out.glob("worker_*/codes"))


def test_what_is_in_its_place_already_is_not_replaced(golden_small: Path, manifest: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    build(config(golden_small, manifest, out))
    codes = (out / "codes" / "a" / "r0.npy").read_bytes()
    older(out)
    (out / "worker_0" / "codes" / "a").mkdir(parents=True)
    np.save(out / "worker_0" / "codes" / "a" / "r0.npy", np.zeros(3, np.int32))
    build(config(golden_small, manifest, out, skip_existing=True))
    assert (out / "codes" / "a" / "r0.npy").read_bytes() == codes
    assert (out / "worker_0" / "codes" / "a" / "r0.npy").is_file()


def test_adopted_codes_are_taken_to_be_of_a_chain_that_is_said(
    golden_small: Path, manifest: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "out"
    build(config(golden_small, manifest, out))
    older(out)
    with caplog.at_level(logging.INFO):
        assert build(config(golden_small, manifest, out, skip_existing=True)).adopted == 4
    assert "were made with --audio-sr 16000 (resampled directly)" in caplog.text
    assert "give --audio-sr 24000" in caplog.text
    caplog.clear()
    older(out)
    with caplog.at_level(logging.INFO):
        build(config(golden_small, manifest, out, skip_existing=True, audio_sr=16000))
    assert "were made with --audio-sr 16000\n" in caplog.text
    assert "give --audio-sr 24000" not in caplog.text


def test_codes_of_two_chains_are_not_mixed(golden_small: Path, manifest: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    build(config(golden_small, manifest, out, audio_sr=24000))
    shutil.rmtree(out / ".hfprep")
    before = {path: path.read_bytes() for path in out.rglob("*.npy")}
    with pytest.raises(
        ConfigError, match=r"were made with --audio-sr 24000, but this build would compute others with 16000"
    ):
        build(config(golden_small, manifest, out, skip_existing=True))
    assert {path: path.read_bytes() for path in out.rglob("*.npy")} == before
    assert build(config(golden_small, manifest, out, skip_existing=True, audio_sr=24000)).adopted == 4


def test_config_and_checkpoint_are_looked_for_in_their_usual_place(
    golden_small: Path,
    manifest: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.chdir(tmp_path)
    models = golden_small / "checkpoints"
    given = ["--tokenizer", str(models / "bpe.model"), "--semantic-model", str(models / "w2v-bert-2.0")]
    given += ["--semantic-codec", str(models / "semantic_codec" / "model.safetensors"), "--max-samples", "0"]
    arguments = ["build", "--manifest", str(manifest), "--output-dir", "out", *given]
    result = CliRunner().invoke(cli.app, arguments)
    assert isinstance(result.exception, ConfigError)
    assert "--config is not given" in str(result.exception)
    (tmp_path / "checkpoints").symlink_to(models)
    with caplog.at_level(logging.INFO):
        result = CliRunner().invoke(cli.app, arguments)
    assert result.exit_code == 0, result.output
    assert "--config is not given: using checkpoints/config.yaml" in caplog.text
    assert "--gpt-checkpoint is not given: using checkpoints/gpt.pth" in caplog.text


def test_retokenize_takes_a_language(golden_small: Path, manifest: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    manifest.write_text(manifest.read_text(encoding="utf-8").replace("Good day.", "At 3:45."), encoding="utf-8")
    build(config(golden_small, manifest, out))
    model = golden_small / "checkpoints" / "bpe.model"
    before = np.load(out / "text_ids" / "a" / "r0.npy")
    result = CliRunner().invoke(cli.app, ["retokenize", str(out), "--tokenizer", str(model), "--language", "french"])
    assert result.exit_code == 0, result.output
    assert len(np.load(out / "text_ids" / "a" / "r0.npy")) != len(before)  # digits stay digits
    records = [json.loads(line) for line in (out / "train_manifest.jsonl").read_bytes().splitlines()]
    assert {record["language"] for record in records} == {"fr"}


LEGACY = Path(__file__).resolve().parents[2] / "shared" / "legacy-output"


@pytest.mark.skipif(not LEGACY.is_dir(), reason="needs what an older script wrote")
def test_audio_sr_24000_gives_the_codes_of_the_older_scripts_at_16_khz(shared_golden: Path, tmp_path: Path) -> None:
    """A clip at 16 kHz that an older script wrote without padding."""
    rows = map(json.loads, (shared_golden / "manifest.jsonl").read_bytes().splitlines())
    row = next(row for row in rows if row["id"] == "1088-134315-0000")
    manifest = tmp_path / "manifest.jsonl"
    manifest.write_text(json.dumps(row | {"audio": str(shared_golden / row["audio"])}) + "\n", encoding="utf-8")
    build(config(shared_golden, manifest, tmp_path / "out", audio_sr=24000))
    codes = np.load(tmp_path / "out" / "codes" / "1088-134315-0000.npy")
    np.testing.assert_array_equal(codes, np.load(LEGACY / "codes" / "1088-134315-0000.npy"))
