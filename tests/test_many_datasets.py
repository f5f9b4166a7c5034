"""Several data sets in one run: what is refused, models that load once, one summary, interrupts, errors of one."""

import fcntl
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import hfprep
from hfprep.cli import app as cli
from hfprep.errors import ConfigError
from hfprep.io import atomic
from hfprep.pipeline.config import BuildConfig
from hfprep.recipes.indextts2.feature_model import FeatureModel


@pytest.fixture
def manifests(golden_small: Path, tmp_path: Path) -> dict[str, Path]:
    """Two small manifests: two rows of which one is bad, and one row."""
    lines = (golden_small / "manifest.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(lines[number]) for number in (6, 2)]
    rows = [row | {"audio": str(golden_small / row["audio"]), "language": "en"} for row in rows]
    made = {"am": [rows[0], rows[0] | {"id": "bad", "text": ""}], "ja": [rows[1]]}
    for name, content in made.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in content))
    return {name: tmp_path / f"{name}.jsonl" for name in made}


def specs(manifests: dict[str, Path]) -> list[str]:
    return [f"{name}={path}" for name, path in manifests.items()]


def invoke(golden_small: Path, *arguments: str | Path) -> Any:
    models = golden_small / "checkpoints"
    return CliRunner().invoke(cli.app, ["build", "--models", str(models), *map(str, arguments)])


@pytest.mark.parametrize("spec", ["", "ja", "ja=", "=m.jsonl", "ja=m.jsonl=", "a/b=m.jsonl"])
def test_a_data_set_that_is_no_data_set_is_named(spec: str) -> None:
    with pytest.raises(ConfigError, match=r"--dataset is '.*must be LANG=MANIFEST"):
        hfprep.config_of_each([spec])


def test_outputs_are_where_they_are_named_else_under_the_root() -> None:
    configs = hfprep.config_of_each(["ja=a.jsonl", "am=b.jsonl=amharic", "zh=c.jsonl=/out=1"], "root", val_ratio=0.5)
    assert [str(config.output_dir) for config in configs] == ["root/ja_processed_data", "amharic", "/out=1"]
    assert [(config.language, config.val_ratio) for config in configs] == [("ja", 0.5), ("am", 0.5), ("zh", 0.5)]


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ("am={folder}/../{name}/ja.jsonl", "the same manifest, "),
        ("am={folder}/link.jsonl", "the same manifest, "),
        ("ja={folder}/am.jsonl", "the same output, .*ja_processed_data; name another output"),
        ("am={folder}/am.jsonl={folder}/out/x/../ja_processed_data", "the same output, "),
    ],
)
def test_the_same_manifest_or_output_twice_is_refused(
    manifests: dict[str, Path], tmp_path: Path, second: str, message: str
) -> None:
    (tmp_path / "link.jsonl").symlink_to(manifests["ja"])
    given = [f"ja={manifests['ja']}", second.format(folder=tmp_path, name=tmp_path.name)]
    with pytest.raises(ConfigError, match=f"--dataset: ja=.* have {message}"):
        hfprep.config_of_each(given, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_manifest_that_cannot_be_read_stops_all_before_anything_is_written(
    manifests: dict[str, Path], tmp_path: Path
) -> None:
    for name, content, message in (("none.jsonl", None, "cannot be read"), ("e.jsonl", "", "has no rows")):
        if content is not None:
            (tmp_path / name).write_text(content)
        configs = hfprep.config_of_each([*specs(manifests), f"zh={tmp_path / name}"], tmp_path / "out")
        with pytest.raises(ConfigError, match=f"{name}' {message}"):
            hfprep.build_many(configs)
    with pytest.raises(ConfigError, match="--models must be the same for all data sets"):
        hfprep.build_many([BuildConfig(manifest=Path(n), output_dir=Path(n), models=Path(n)) for n in ("a", "b")])
    assert not (tmp_path / "out").exists()


def test_models_load_once_and_each_data_set_is_what_a_build_of_its_own_gives(
    golden_small: Path, manifests: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads: list[int] = []
    load = FeatureModel.load

    def counted(*arguments: Any, **options: Any) -> FeatureModel:
        loads.append(1)
        return load(*arguments, **options)

    monkeypatch.setattr(FeatureModel, "load", counted)
    configs = hfprep.config_of_each(
        specs(manifests), tmp_path / "many", models=golden_small / "checkpoints", engine="inline"
    )
    found = hfprep.build_many(configs)
    assert len(loads) == 1
    assert [summary.accepted for summary in found.summaries] == [1, 1]
    assert [summary.rejected for summary in found.summaries] == [{"empty_text": 1}, {}]
    assert found.interrupted_by is None
    alone = hfprep.build(BuildConfig(**vars(configs[1]) | {"output_dir": tmp_path / "alone"})).output_dir
    many = tmp_path / "many" / "ja_processed_data"
    for path in [*alone.glob("*/*.npy"), alone / "train_manifest.jsonl"]:
        assert (many / path.relative_to(alone)).read_bytes() == path.read_bytes()
    record = json.loads((many / "train_manifest.jsonl").read_text())
    assert record["language"] == "ja"
    again = hfprep.build_many(configs)
    assert [(summary.reused, summary.tally.done) for summary in again.summaries] == [(1, 0), (1, 0)]
    assert len(loads) == 2  # that of the build alone


def test_an_interrupt_stops_all_and_a_rerun_does_the_rest(
    golden_small: Path, manifests: dict[str, Path], tmp_path: Path
) -> None:
    arguments = ["--output-root", str(tmp_path / "out")]
    for spec in specs(manifests):
        arguments += ["--dataset", spec]
    sent: list[str] = []

    def interrupt(point: str, path: str) -> None:
        if path.endswith(".npy") and not sent:
            sent.append(point)
            os.kill(os.getpid(), signal.SIGTERM)

    atomic.set_observer(interrupt)
    try:
        stopped = invoke(golden_small, *arguments)
    finally:
        atomic.set_observer(None)
    assert stopped.exit_code == 128 + signal.SIGTERM, stopped.output
    assert "not started" in stopped.output
    assert not (tmp_path / "out" / "ja_processed_data").exists()
    done = invoke(golden_small, *arguments)
    assert done.exit_code == 0, done.output
    total = next(line for line in done.output.splitlines() if "total" in line)
    assert total.replace("│", " ").split()[1:4] == ["3", "2", "1"]
    assert "am_processed_data/rejected.jsonl" in done.output.replace("\n", "")
    assert invoke(golden_small, *arguments, "--strict").exit_code == 1


def test_an_output_in_use_keeps_only_its_own_data_set_back(
    golden_small: Path, manifests: dict[str, Path], tmp_path: Path
) -> None:
    lock = tmp_path / "out" / "am_processed_data" / ".hfprep" / "lock"
    lock.parent.mkdir(parents=True)
    arguments = [item for spec in specs(manifests) for item in ("--dataset", spec)]
    with open(lock, "w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        result = invoke(golden_small, *arguments, "--output-root", tmp_path / "out")
    assert result.exit_code == 1
    assert "failed" in result.output
    assert (tmp_path / "out" / "ja_processed_data" / "stats.json").is_file()


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["--dataset", "ja=a.jsonl", "--manifest", "b.jsonl"], 1, "--manifest cannot be used with --dataset"),
        (["--dataset", "ja=a.jsonl", "--output-dir", "out"], 1, "--output-dir cannot be used with --dataset"),
        (["--dataset", "ja=a.jsonl", "--language", "ja"], 1, "--language cannot be used with --dataset"),
        (["--manifest", "a.jsonl"], 2, "--output-dir"),
        (["--output-dir", "out"], 2, "--manifest"),
        (["--manifest", "a.jsonl", "--output-dir", "o", "--output-root", "r"], 2, "it is only for --dataset"),
    ],
)
def test_options_that_do_not_go_together(
    arguments: list[str], status: int, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["hfprep", "build", *arguments])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == status
    assert message in capsys.readouterr().err
