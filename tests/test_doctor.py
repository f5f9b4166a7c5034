"""doctor names what is wrong with its remedy; download fetches, goes on after a break, and refuses other bytes."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from hfprep.cli.app import app
from hfprep.errors import StoreError
from hfprep.io.words import size
from hfprep.recipes.base import Download
from hfprep.recipes.indextts2.recipe import locate
from hfprep.recipes.options import ModelOptions
from hfprep.recipes.registry import DEFAULT, downloads, recipe
from hfprep.tools import doctor
from hfprep.tools import download as downloading
from hfprep.tools.doctor import Level, examine
from hfprep.tools.download import Wanted
from tests.fake_model_hub import Hub, hub_environment, serve_models


@pytest.fixture
def quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "DISK_PROBE_BYTES", 1 << 16)


def find(topic: str, **arguments: Any) -> list[doctor.Finding]:
    return [finding for finding in examine(**arguments) if finding.topic == topic]


@pytest.mark.usefixtures("quick_disk")
def test_everything_is_looked_at_and_nothing_is_left_behind(tmp_path: Path) -> None:
    topics = [finding.topic for finding in examine(folder=tmp_path / "not" / "yet")]
    assert set(topics) == {"Python", "packages", "devices", "CPU", "disk", "hub", "models"}
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("quick_disk")
def test_problems_come_first_with_their_remedies(tmp_path: Path, golden_small: Path) -> None:
    models = Path(shutil.copytree(golden_small / "checkpoints", tmp_path / "models"))
    (models / "gpt.pth").unlink()
    (models / "w2v-bert-2.0" / "model.safetensors").unlink()
    findings = examine(folder=tmp_path, models=models)
    assert [finding.level for finding in findings] == sorted(finding.level for finding in findings)
    first = findings[0]
    assert (first.level, first.topic) == (Level.PROBLEM, "models")
    assert "gpt.pth" in first.found
    assert "w2v-bert-2.0/model.safetensors" in first.found
    assert f"hfprep download {models}" in first.remedy
    assert all(finding.remedy for finding in findings if finding.level != Level.FINE)


@pytest.mark.usefixtures("quick_disk")
def test_models_that_are_there_are_fine(tmp_path: Path, golden_small: Path) -> None:
    found = find("models", folder=tmp_path, models=golden_small / "checkpoints")
    assert [finding.level for finding in found] == [Level.FINE]
    assert "codebook of 128" in found[0].found


@pytest.mark.usefixtures("quick_disk")
def test_models_that_are_not_cached_are_named_with_the_command(tmp_path: Path) -> None:
    found = find("models", folder=tmp_path)
    assert len(found) == 3
    assert all("hfprep download" in finding.remedy for finding in found)
    assert {source.repository for source in downloads(recipe(DEFAULT))} == {
        finding.found.split()[0] for finding in found
    }


@pytest.mark.usefixtures("quick_disk")
def test_missing_and_old_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = ["numpy>=999", "a-package-that-is-not>=1", 'ray>=2; extra == "ray"', "typer>=0.1"]
    monkeypatch.setattr(doctor.importlib.metadata, "requires", lambda name: wanted)
    problems = [finding for finding in find("packages", folder=tmp_path) if finding.level == Level.PROBLEM]
    assert [(item.found.split()[0], item.remedy) for item in problems] == [
        ("numpy", "pip install 'numpy>=999'"),
        ("a-package-that-is-not", "pip install 'a-package-that-is-not>=1'"),
    ]


@pytest.mark.usefixtures("quick_disk")
def test_a_gpu_that_torch_does_not_see(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    programs = {"nvidia-smi": "/usr/bin/nvidia-smi"}
    monkeypatch.setattr(doctor.shutil, "which", programs.get)
    (device,) = find("devices", folder=tmp_path)
    assert device.level == Level.PROBLEM


@pytest.mark.usefixtures("quick_disk")
def test_gpus_with_the_batch_size_that_would_be_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Card:
        name, total_memory = "Card", 24 << 30

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: Card)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda index: ((20 << 30, 1 << 30)[index], 24 << 30))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: ((9, 0), (7, 5))[device.index])
    monkeypatch.setattr("hfprep.models.precision.lacking", lambda: None)
    *old, new = sorted(find("devices", folder=tmp_path), key=lambda finding: finding.level == Level.FINE)
    assert "batch size 16" in new.found
    assert new.level == Level.FINE
    assert [finding.level for finding in old] == [Level.WARNING, Level.WARNING]
    assert "nvidia-smi" in old[0].remedy
    assert "cuda:1 supports --precision fp32 only: cuda:1 has compute capability 7.5" in old[1].found


@pytest.mark.usefixtures("quick_disk")
def test_a_disk_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(descriptor: int) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(os, "fsync", refuse)
    worst = find("disk", folder=tmp_path)[0]
    assert worst.level == Level.PROBLEM
    assert "Read-only" in worst.found
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("quick_disk")
def test_the_command_s_exit_status(tmp_path: Path, golden_small: Path) -> None:
    runner = CliRunner()
    fine = runner.invoke(app, ["doctor", "--output-dir", str(tmp_path), "--models", str(golden_small / "checkpoints")])
    assert fine.exit_code == 0, fine.output
    wrong = runner.invoke(app, ["doctor", "--output-dir", str(tmp_path), "--models", str(tmp_path)])
    assert wrong.exit_code == 1
    assert wrong.output.index("problem") < wrong.output.index("ok")


@pytest.fixture
def hub(golden_small: Path) -> Iterator[Hub]:
    with serve_models(golden_small / "checkpoints") as server:
        yield server


def run_download(hub: Hub, target: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | hub_environment(hub.url)
    command = [sys.executable, "-m", "hfprep", "download", str(target)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)


def test_download_fills_a_folder_that_a_build_takes(hub: Hub, tmp_path: Path, golden_small: Path) -> None:
    target = tmp_path / "models"
    result = run_download(hub, target)
    assert result.returncode == 0, result.stderr
    assert f"--models {target}" in result.stdout
    found = locate(ModelOptions(models=target))
    assert found.gpt_checkpoint.read_bytes() == (golden_small / "checkpoints" / "gpt.pth").read_bytes()
    assert found.semantic_codec == target / "semantic_codec" / "model.safetensors"
    assert (target / "bpe.model").is_file()
    fetched = hub.bodies.copy()
    assert run_download(hub, target).returncode == 0
    assert hub.bodies == fetched, "what is there is not fetched again"


def test_download_goes_on_with_what_is_missing(hub: Hub, tmp_path: Path) -> None:
    """Within a file it is the hub library that goes on, in steps of 10 MB: no file here is that large."""
    hub.break_after["model.safetensors"] = 100_000
    broken = run_download(hub, tmp_path)
    assert broken.returncode == 1
    assert "facebook/w2v-bert-2.0 could not be fetched" in broken.stderr
    assert "run the same command again" in broken.stderr
    assert "Traceback" not in broken.stderr
    hub.break_after.clear()
    assert run_download(hub, tmp_path).returncode == 0
    assert hub.bodies["gpt.pth"] == 1
    assert locate(ModelOptions(models=tmp_path)).semantic_weights == (tmp_path / "w2v-bert-2.0" / "model.safetensors",)


def test_download_refuses_other_bytes_than_the_hub_s(hub: Hub, tmp_path: Path) -> None:
    hub.claimed["bpe.model"] = "f" * 64
    result = run_download(hub, tmp_path)
    assert result.returncode == 1
    assert "bpe.model has the SHA-256" in result.stderr
    assert "Traceback" not in result.stderr


def test_download_without_a_hub_says_what_to_do(hub: Hub, tmp_path: Path) -> None:
    hub.files.clear()
    result = run_download(hub, tmp_path)
    assert result.returncode == 1
    assert "IndexTeam/IndexTTS-2" in result.stderr
    assert "Traceback" not in result.stderr


def test_download_says_first_what_it_will_fetch(hub: Hub, tmp_path: Path) -> None:
    target = tmp_path / "models"
    lines = run_download(hub, target).stdout.splitlines()
    total = sum(map(len, hub.files.values()))
    assert lines[0] == f"downloading {len(hub.files)} files of the indextts-2 models to {target}, {size(total)} in all:"
    (target / "gpt.pth").unlink()
    lines = run_download(hub, target).stdout.splitlines()
    assert lines[0].startswith("downloading 1 file of the indextts-2 models to")
    assert f"  IndexTeam/IndexTTS-2 gpt.pth: {size((target / 'gpt.pth').stat().st_size)}" in lines
    assert "  IndexTeam/IndexTTS-2 bpe.model: already downloaded" in lines


def test_download_stops_before_a_disk_that_is_too_small(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(downloading, "downloads", lambda recipe: (Download("me/small", ("a.bin",), 10),))
    monkeypatch.setattr(downloading, "ask_hub", lambda source: Wanted(source, "main", {"a.bin": 1 << 60}, {}))
    with pytest.raises(StoreError, match="free for a download of 1152922 TB"):
        downloading.download(tmp_path)


@pytest.mark.usefixtures("quick_disk")
def test_without_models_and_without_a_hub_it_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    result = CliRunner().invoke(app, ["doctor", "--output-dir", str(tmp_path)])
    assert result.exit_code == 1
    said = " ".join(result.output.replace("│", " ").split())
    assert "HF_HUB_OFFLINE is set" in said
    assert "IndexTeam/IndexTTS-2 is not in the cache" in said
    assert "hfprep download DIR makes one on a machine with network access" in said
    assert "3 problems to solve before a build." in result.output
    assert max(map(len, result.output.splitlines())) <= 80


@pytest.mark.usefixtures("quick_disk")
def test_a_hub_that_answers_is_said_to_be_reachable(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.url)
    (found,) = find("hub", folder=tmp_path)
    assert found.level == Level.FINE
    assert "the hub is reachable" in found.found
    assert {finding.level for finding in find("models", folder=tmp_path)} == {Level.WARNING}
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:1")
    (found,) = find("hub", folder=tmp_path)
    assert found.level == Level.WARNING
    assert "does not answer" in found.found


@pytest.mark.usefixtures("quick_disk")
def test_files_that_do_not_belong_together(tmp_path: Path, golden_small: Path) -> None:
    models = Path(shutil.copytree(golden_small / "checkpoints", tmp_path / "models"))
    path = models / "w2v-bert-2.0" / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"sampling_rate": 8000}))
    (found,) = find("models", folder=tmp_path, models=models)
    assert found.level == Level.PROBLEM
    assert "sampling_rate" in found.found
