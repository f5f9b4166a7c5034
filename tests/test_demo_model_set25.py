"""The demo's models of IndexTTS-2.5: the published names, the same bytes from a seed, and a build that uses them."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from hfprep.cli.app import app
from hfprep.errors import ConfigError
from hfprep.recipes.indextts25.recipe import RECIPE
from hfprep.recipes.options import ModelOptions
from hfprep.recipes.registry import choose_recipe
from hfprep.tools.demo.model_set25 import make_model_set25
from tests.test_demo_model_set import _kinds

NAME = "indextts-2.5"
TORCH_FILES = ("gpt.pth", "codec.pth", "campplus_cn_common.bin")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model_set25(tmp_path_factory.mktemp("models"))


def contents(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def tensors(path: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = torch.load(path, weights_only=True, mmap=True)
    return found.get("model", found)  # type: ignore[return-value]


def test_a_seed_gives_the_same_bytes(models: Path, tmp_path: Path) -> None:
    assert contents(make_model_set25(tmp_path / "again")) == contents(models)
    other = contents(make_model_set25(tmp_path / "other", seed=1))
    for name in (*TORCH_FILES, "w2v-bert-2.0/model.safetensors"):
        assert other[name] != contents(models)[name]


def test_every_name_is_one_of_the_published_ones(models: Path, golden25_small: Path) -> None:
    """golden25-small has the published names; it is of other depths, so layer numbers are left out."""
    for name in TORCH_FILES:
        mine, golden = tensors(models / name), tensors(golden25_small / "checkpoints" / name)
        assert _kinds(mine) <= {kind.replace("tdnnd#", "tdnnd") for kind in _kinds(golden)} | _kinds(golden), name


def test_it_is_told_from_its_tensors_and_belongs_together(models: Path) -> None:
    options = ModelOptions(models=models)
    assert choose_recipe(None, options).name == NAME
    found = RECIPE.find(options, fetch=False)
    found.check()
    ids = found.text_encoder().encode("The ferry leaves at 7:45.", "en")
    assert 3 < len(ids) < 25
    assert ids.max() < found.config.number_text_tokens


def test_the_demo_builds_with_them(tmp_path: Path) -> None:
    command = ["demo", str(tmp_path / "demo"), "--num-samples", "4", "--recipe", NAME]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    output = tmp_path / "demo" / "features"
    lines = [
        line for name in ("train", "val") for line in (output / f"{name}_manifest.jsonl").read_bytes().splitlines()
    ]
    records = [json.loads(line) for line in lines]
    assert len(records) >= 4
    vectors = np.stack([np.load(output / record["spk_emb_path"]) for record in records])
    assert np.isfinite(vectors).all()
    assert np.ptp(vectors, axis=0).max() > 0.01  # speakers differ
    codes = np.concatenate([np.load(output / record["codes_path"]) for record in records])
    assert len(np.unique(codes)) > 20
    other = CliRunner().invoke(app, ["demo", str(tmp_path / "demo"), "--num-samples", "1"])
    with pytest.raises(ConfigError, match=r"has models of indextts-2\.5, not of indextts-2;"):
        raise other.exception or AssertionError(other.output)
