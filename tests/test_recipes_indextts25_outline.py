"""What is known of IndexTTS-2.5 before its weights are here: what is fetched, what is missing, what check says."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from hfprep.cli.app import app
from hfprep.recipes.indextts25.recipe import RECIPE, locate
from hfprep.recipes.indextts25.schema import PUBLISHED
from hfprep.recipes.options import ModelOptions
from hfprep.tools import doctor
from hfprep.tools.check.options import CheckOptions
from hfprep.tools.check.scan import check
from hfprep.tools.doctor import Level, examine
from tests.fake_model_hub import hub_environment, serve_models

NAME = "indextts-2.5"


def test_without_files_it_is_that_of_the_published_models() -> None:
    outline = RECIPE.outline(ModelOptions())
    assert outline.schema == PUBLISHED
    assert outline.text_encoder is None
    assert [outline.num_codes(frames) for frames in (3, 4, 5)] == [2, 2, 3]


def test_with_files_it_is_theirs(golden25_small: Path) -> None:
    options = ModelOptions(models=golden25_small / "checkpoints")
    outline, models = RECIPE.outline(options), RECIPE.find(options, fetch=False)
    assert outline.schema == models.schema
    assert outline.text_encoder is not None
    assert outline.text_encoder.encode("Tiny!", "en").tolist() == models.text_encoder().encode("Tiny!", "en").tolist()


def test_download_fetches_what_a_build_needs_and_no_more(golden25_small: Path, tmp_path: Path) -> None:
    models = tmp_path / "models"
    command = [sys.executable, "-m", "hfprep", "download", str(models), "--recipe", NAME]
    with serve_models(golden25_small / "checkpoints", NAME) as hub:
        environment = os.environ | hub_environment(hub.url) | {"HF_HOME": str(tmp_path / "home")}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stdout + done.stderr
        assert sum(hub.bodies.values()) == 9
    located = locate(ModelOptions(models=models), fetch=False)
    for path in (located.campplus, located.semantic_codec, located.gpt_checkpoint, *located.semantic_weights):
        wanted = golden25_small / "checkpoints" / path.relative_to(models)
        assert path.read_bytes() == wanted.read_bytes()


def test_doctor_names_what_is_missing(golden25_small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "DISK_PROBE_BYTES", 1 << 16)
    models = Path(shutil.copytree(golden25_small / "checkpoints", tmp_path / "models"))

    def found() -> list[doctor.Finding]:
        return [finding for finding in examine(folder=tmp_path, models=models) if finding.topic == "models"]

    assert [finding.level for finding in found()] == [Level.FINE]
    (models / "campplus_cn_common.bin").unlink()
    (problem,) = found()
    assert problem.level == Level.PROBLEM
    assert "campplus_cn_common.bin" in problem.found
    assert "download" in problem.remedy


def test_check_counts_texts_that_are_over_the_limit(golden25_small: Path, tmp_path: Path) -> None:
    """Amharic costs 2.2 ids a character: 300 characters are more than 600 ids, and 300 of English are not."""
    audio = str(golden25_small / "audio/synth6.ogg")
    rows = [
        {"id": f"{language}{number}", "text": text * 30, "audio": audio, "language": language}
        for language, text in (("am", "ሰላም ለዓለም። "), ("en", "long legs "))
        for number in range(2)
    ]
    manifest = tmp_path / "rows.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    options = CheckOptions(manifest=manifest, tokenizer=golden25_small / "checkpoints" / VOCABULARY, recipe=NAME)
    found = check(options).findings
    assert (found.accepted, found.schema.limits["text_len"], found.overlong["text_len"].count) == (4, 600, 2)
    assert {name: cost.overlong for name, cost in found.dense.items()} == {"am": 2}
    assert 2.0 < found.dense["am"].rate < 2.5
    result = CliRunner().invoke(app, ["check", str(manifest), "--tokenizer", str(options.tokenizer), "--recipe", NAME])
    rate = found.dense["am"].rate
    assert f"am: {rate:.1f} text ids per character, room for {600 / rate:.0f} characters;" in result.output
    assert "2 samples beyond the model's 600 positions" in result.output
    assert {example[0] for example in found.overlong["text_len"].examples} == {"am0", "am1"}


VOCABULARY = "multilingual_zh_ja_yue_char_del.tiktoken"
