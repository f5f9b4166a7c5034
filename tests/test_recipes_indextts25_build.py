"""Builds of IndexTTS-2.5: golden numbers at every batch size, and what a changed file or option computes again."""

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import hfprep
from hfprep.errors import ConfigError
from hfprep.pipeline.config import BuildConfig
from hfprep.recipes.base import Recipe
from hfprep.recipes.indextts25.recipe import RECIPE
from hfprep.recipes.registry import choose_recipe

COLUMNS = ("text_ids", "codes", "spk_emb", "emo_vec")
VOCABULARY = "multilingual_zh_ja_yue_char_del.tiktoken"
Build = Callable[..., hfprep.Summary]

CHECKED: Recipe = RECIPE  # by mypy: it is all that the seam asks for


@pytest.fixture
def models(golden25_small: Path, tmp_path: Path) -> Path:
    """The small model set, to be changed."""
    return Path(shutil.copytree(golden25_small / "checkpoints", tmp_path / "models"))


@pytest.fixture
def build(golden25_small: Path, models: Path, tmp_path: Path) -> Build:
    def run(**options: Any) -> hfprep.Summary:
        values: dict[str, Any] = {
            "manifest": golden25_small / "manifest.jsonl", "models": models, "output_dir": tmp_path / "out",
        }  # fmt: skip
        return hfprep.build(hfprep.BuildConfig(**(values | options)))

    return run


def records(output: Path) -> dict[str, dict[str, Any]]:
    lines = [
        line
        for split in ("train", "val")
        for line in (output / f"{split}_manifest.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    return {record["id"]: record for record in map(json.loads, lines)}


def relative(got: np.ndarray, wanted: np.ndarray) -> float:
    assert got.shape == wanted.shape
    return float(np.linalg.norm(got - wanted) / np.linalg.norm(wanted))


def check(golden: Path, output: Path, kind: str = "") -> None:
    """Hold every array and record of a build against the golden set."""
    text = json.loads((golden / "expected/text_ids.json").read_text(encoding="utf-8"))
    found = records(output)
    assert set(found) == set(text)
    for name, record in found.items():
        path = golden / f"expected/{name}{kind}.npz"
        expected = np.load(path if path.is_file() else golden / f"expected/{name}.npz")
        arrays = {column: np.load(output / record[f"{column}_path"]) for column in COLUMNS}
        assert arrays["text_ids"].tolist() == text[name]["ids"]
        assert record["lang_id"] == text[name]["lang_id"]
        assert arrays["codes"].tolist() == expected["codes"].tolist()
        assert (record["text_len"], record["code_len"]) == (len(arrays["text_ids"]), len(arrays["codes"]))
        assert [str(arrays[column].dtype) for column in COLUMNS] == ["int32", "int32", "float32", "float32"]
        assert relative(arrays["spk_emb"], expected["spk_emb"]) < 3e-4
        assert relative(arrays["emo_vec"], expected["emo_vec"]) < 1e-4


@pytest.mark.parametrize("batch_size", [0, 1, 3, 8])
def test_the_published_numbers_at_every_batch_size(
    build: Build, golden25_small: Path, tmp_path: Path, batch_size: int
) -> None:
    assert build(batch_size=batch_size).accepted == 4
    check(golden25_small, tmp_path / "out")


def test_by_way_of_22050_hz(build: Build, golden25_small: Path, tmp_path: Path) -> None:
    build(audio_sr=22_050)
    check(golden25_small, tmp_path / "out", "@22k")


def written(output: Path) -> dict[str, dict[str, int]]:
    """When each array was written, by column and id."""
    return {column: {path.stem: path.stat().st_mtime_ns for path in (output / column).iterdir()} for column in COLUMNS}


def change(models: Path, part: str) -> None:
    """Change one file of a model set, so that it still is one."""
    if part == "vocabulary":
        path = models / VOCABULARY
        swapped = {b"IGRpbGlnZW50 48470": b"IG1hbmlmZXN0cw== 48470", b"IG1hbmlmZXN0cw== 48471": b"IGRpbGlnZW50 48471"}
        content = path.read_bytes()
        path.write_bytes(b"\n".join(swapped.get(line, line) for line in content.splitlines()) + b"\n")
    elif part == "glossary":
        (models / "glossary.yaml").write_text("IndexTTS: index T T S\n")
    else:
        path = models / part
        values = torch.load(path, weights_only=True)
        tensors = values.get("model", values)
        name = {"codec.pth": "down.bias", "gpt.pth": "emo_layer.bias"}.get(part, "xvector.dense.linear.weight")
        tensors[name] = tensors[name] + 1
        torch.save(values, path)


@pytest.mark.parametrize(
    ("part", "column"),
    [
        ("vocabulary", "text_ids"),
        ("glossary", "text_ids"),
        ("codec.pth", "codes"),
        ("campplus_cn_common.bin", "spk_emb"),
        ("gpt.pth", "emo_vec"),
    ],
)
def test_a_new_file_touches_its_own_column_alone(
    build: Build, models: Path, tmp_path: Path, part: str, column: str
) -> None:
    build()
    before = written(tmp_path / "out")
    change(models, part)
    assert build().accepted == 4
    after = written(tmp_path / "out")
    changed = {name for name in COLUMNS if before[name] != after[name]}
    assert changed == {column}
    assert not set(before[column].values()) & set(after[column].values())


def test_the_beginning_as_reference_touches_both_vectors_alone(build: Build, tmp_path: Path) -> None:
    build()
    before = written(tmp_path / "out")
    build(reference_seconds=1.0)
    after = written(tmp_path / "out")
    assert {name for name in COLUMNS if before[name] != after[name]} == {"spk_emb", "emo_vec"}
    build(reference_seconds=1.0)
    assert written(tmp_path / "out") == after


@pytest.mark.parametrize("seconds", [-1.0, float("nan"), float("inf")])
def test_reference_seconds_must_be_a_length(build: Build, seconds: float) -> None:
    with pytest.raises(ConfigError, match="--reference-seconds is"):
        build(reference_seconds=seconds)


def test_the_recipe_is_told_from_the_files(golden25_small: Path, golden_small: Path, models: Path) -> None:
    def chosen(**options: Any) -> str:
        config = BuildConfig(manifest=Path("m.jsonl"), output_dir=Path("out"), **options)
        return choose_recipe(config.recipe, config).name

    assert chosen(models=golden25_small / "checkpoints") == "indextts-2.5"
    assert chosen(models=golden_small / "checkpoints") == "indextts-2"
    assert chosen(config=models / "config.yaml") == "indextts-2.5"
    # A vocabulary with more tokens, as of a model with another language.
    text = (models / "config.yaml").read_text().replace("number_text_tokens: 60509", "number_text_tokens: 60600")
    (models / "config.yaml").write_text(text)
    assert chosen(models=models) == "indextts-2.5"
    os.replace(golden_small_gpt(golden_small, models), models / "gpt.pth")
    assert chosen(models=models) == "indextts-2"
    assert chosen(models=models, recipe="indextts-2.5") == "indextts-2.5"


def golden_small_gpt(golden_small: Path, models: Path) -> Path:
    """A copy of IndexTTS-2's checkpoint."""
    return Path(shutil.copy(golden_small / "checkpoints/gpt.pth", models / "other.pth"))


def test_a_vocabulary_that_the_checkpoint_has_no_rows_for_is_refused(models: Path) -> None:
    with (models / VOCABULARY).open("ab") as file:
        file.write(b"4YqI4YiL4Yid 58836\n")
    config = BuildConfig(manifest=Path("m.jsonl"), output_dir=Path("out"), models=models)
    with pytest.raises(ConfigError, match=r"has 60510 tokens, but the checkpoint has only 60509"):
        RECIPE.find(config).check()


def test_a_japanese_text_needs_its_packages_and_others_do_not(
    build: Build, tmp_path: Path, golden25_small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    audio = str(golden25_small / "audio/synth6.ogg")
    rows = [
        {"id": "a", "text": "足が長く", "audio": audio, "language": "ja"},
        {"id": "b", "text": "long legs", "audio": audio, "language": "en"},
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    monkeypatch.setitem(sys.modules, "fugashi", None)
    summary = build(manifest=tmp_path / "rows.jsonl")
    assert (summary.accepted, dict(summary.rejected)) == (1, {"text_failed": 1})
    rejected = json.loads((tmp_path / "out/rejected.jsonl").read_text(encoding="utf-8"))
    assert (rejected["id"], rejected["reason"]) == ("a", "text_failed")
    assert "pip install 'hfprep[ja]'" in rejected["message"]
