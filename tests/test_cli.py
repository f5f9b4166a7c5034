"""The command line: exit codes, flags from the config, messages."""

import dataclasses
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from hfprep.cli import app as cli
from hfprep.errors import ConfigError
from hfprep.pipeline.config import BuildConfig, flag


def build_arguments(golden_small: Path, manifest: Path, output: Path, *more: str) -> list[str]:
    models = golden_small / "checkpoints"
    return ["build", "--manifest", str(manifest), "--output-dir", str(output), "--models", str(models), *more]


@pytest.fixture
def manifest(golden_small: Path, tmp_path: Path) -> Path:
    """One good row and one bad one."""
    row = {"id": "a", "text": "Hello.", "audio": str(golden_small / "audio" / "synth6.ogg")}
    path = tmp_path / "manifest.jsonl"
    path.write_text(json.dumps(row) + "\n" + json.dumps(row | {"id": "b", "text": None}) + "\n")
    return path


def test_every_field_of_the_config_is_a_flag_with_its_default() -> None:
    result = CliRunner().invoke(cli.app, ["build", "--help"], env={"COLUMNS": "200"})
    assert result.exit_code == 0
    for field in dataclasses.fields(BuildConfig):
        assert flag(field.name) in result.output


def test_a_build_prints_its_summary_and_strict_sets_the_status(
    golden_small: Path, manifest: Path, tmp_path: Path
) -> None:
    result = CliRunner().invoke(cli.app, build_arguments(golden_small, manifest, tmp_path / "out"))
    assert result.exit_code == 0, result.output
    assert "invalid_field" in result.output
    result = CliRunner().invoke(cli.app, build_arguments(golden_small, manifest, tmp_path / "out", "--strict"))
    assert result.exit_code == 1


def test_nothing_accepted_is_a_failure(golden_small: Path, manifest: Path, tmp_path: Path) -> None:
    manifest.write_text(manifest.read_text().splitlines()[1] + "\n")
    result = CliRunner().invoke(cli.app, build_arguments(golden_small, manifest, tmp_path / "out"))
    assert result.exit_code == 1
    assert "No sample was accepted" in result.output


def test_an_error_is_one_line_and_status_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["hfprep", "build", "--manifest", "m.jsonl", "--output-dir", str(tmp_path), "--val-ratio", "2"]
    monkeypatch.setattr("sys.argv", arguments)
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 1
    assert capsys.readouterr().err == "hfprep: --val-ratio is '2.0'; it must be a number from 0 to 1\n"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("val_ratio", -0.1),
        ("batch_size", -1),
        ("workers", -1),
        ("num_processes", -1),
        ("audio_sr", 0),
        ("max_samples", -1),
        ("val_count", -1),
        ("on_change", "ask"),
        ("device", "gpu"),
    ],
)
def test_a_wrong_option_names_itself_its_value_and_what_is_allowed(name: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"{flag(name)} is .*must be"):
        BuildConfig(manifest=Path("m"), output_dir=Path("o"), **{name: value})  # type: ignore[arg-type]
