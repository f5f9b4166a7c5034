"""The command line: exit codes, flags from the config, messages."""

import dataclasses
import json
import re
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

import hfprep
from hfprep.cli import app as cli
from hfprep.errors import ConfigError, HfprepError
from hfprep.pipeline.config import PANELS, BuildConfig, flag


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


def run(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(cli.app, [str(word) for word in arguments], env={"COLUMNS": "80"})
    if isinstance(result.exception, HfprepError):
        return 1, str(result.exception)
    return result.exit_code, result.output


def test_the_help_is_in_the_order_of_use_and_80_columns_wide() -> None:
    status, output = run("--help")
    assert status == 0
    commands = [line.split()[1] for line in output.splitlines() if line.startswith("│ ") and line[2:3].isalpha()]
    assert commands[:4] == ["build", "check", "verify", "report"]
    assert "bench" not in commands
    status, output = run("build", "--help")
    headings = re.findall(r"^╭─ ([^─]+) ─", output, re.MULTILINE)
    assert headings == ["Options", *PANELS]
    assert max(map(len, output.splitlines())) <= 80
    assert "hfprep[ray]" in " ".join(output.replace("│", " ").split())


def test_the_version_is_said() -> None:
    assert run("--version") == (0, f"hfprep {hfprep.__version__}\n")


def test_a_run_is_repeated_from_a_file(golden_small: Path, manifest: Path, tmp_path: Path) -> None:
    """By the flags' names, and what the command line gives wins."""
    file = tmp_path / "run.yaml"
    more = ("--val-ratio", "0.5", "--write-options", str(file), "--min-seconds", "0.1")
    status, output = run(*build_arguments(golden_small, manifest, tmp_path / "out", *more))
    assert status == 0, output
    kept = yaml.safe_load(file.read_text(encoding="utf-8"))
    assert kept == {
        "manifest": str(manifest), "output-dir": str(tmp_path / "out"), "models": str(golden_small / "checkpoints"),
        "val-ratio": 0.5, "min-seconds": 0.1,
    }  # fmt: skip
    status, output = run("build", "--options", file, "--output-dir", tmp_path / "again", "--val-ratio", "0")
    assert status == 0, output
    settings = json.loads((tmp_path / "again" / "stats.json").read_bytes())["settings"]
    assert (settings["val_ratio"], settings["min_seconds"], settings["manifest"]) == (0.0, 0.1, str(manifest))


def test_a_run_file_names_several_data_sets(golden_small: Path, manifest: Path, tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    options = {"dataset": [f"en={manifest}={tmp_path / 'en'}"], "models": str(golden_small / "checkpoints")}
    file.write_text(yaml.safe_dump(options), encoding="utf-8")
    status, output = run("build", "--options", file)
    assert status == 0, output
    assert (tmp_path / "en" / "stats.json").is_file()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("batchsize: 3", "unknown option --batchsize"),
        ("- 1", "must contain options by name"),
        ("a: [", "cannot be read"),
    ],
)
def test_a_wrong_run_file_is_one_message(tmp_path: Path, content: str, said: str) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(content, encoding="utf-8")
    status, output = run("build", "--options", file)
    assert status == 1
    assert said in output


def test_a_command_that_moved_says_where(tmp_path: Path) -> None:
    status, output = run("bench", "--quick")
    assert status == 1
    assert "scripts/bench" in output
