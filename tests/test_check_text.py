"""check: what the text rules make of a manifest is shown, and what hardly anybody wants is counted."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
from typer.testing import CliRunner

from hfprep.cli.app import app
from hfprep.errors import Reason
from hfprep.inputs.text.scripts import OTHER_LATIN, DoubtfulGrammar
from hfprep.tools.check import scan
from hfprep.tools.check.findings import TextExample
from hfprep.tools.check.scan import CheckOptions, check
from hfprep.tools.shares import NONE_GIVEN

pytestmark = pytest.mark.usefixtures("two_layers", "one_clip_is_timed")

TEXTS = (
    ("ru", "Мне 150 лет."),
    ("en", "It's 3:45 PM."),
    ("en", "Good day."),
    ("en", "Good night."),
    ("en", "Good morning."),
    (None, "150 рублей"),
    (None, "200 рублей"),
    (None, "¿Cuánto? 3,50 euros"),
    (None, "Plain English."),
    ("russian", "Привет"),
    ("rusian", "Привет"),
)


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    soundfile.write(tmp_path / "a.wav", 0.1 * np.sin(np.arange(8000) * 0.05), 16000)
    rows = [
        {"id": f"r{number}", "text": text, "audio": "a.wav"} | ({"language": language} if language else {})
        for number, (language, text) in enumerate(TEXTS)
    ]
    path = tmp_path / "manifest.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize("in_processes", [False, True])
def test_texts_are_kept_for_each_language_and_doubtful_grammars_counted(
    manifest: Path, golden_small: Path, monkeypatch: pytest.MonkeyPatch, in_processes: bool
) -> None:
    if in_processes:
        monkeypatch.setattr(scan, "FEW_ROWS", 2)
    found = check(CheckOptions(manifest=manifest, models=golden_small / "checkpoints", workers=2)).findings
    assert [example.id for example in found.texts["en"]] == ["r1", "r2", "r3"]
    assert found.texts["en"][0].normalized == "It is three forty five PM."
    assert "".join(found.texts["en"][1].pieces) == "▁GOOD▁DAY."
    assert [example.id for example in found.texts["ru"]] == ["r0", "r9"]
    assert found.doubtful == {DoubtfulGrammar("zh", "Cyrillic"): 2, DoubtfulGrammar("en", OTHER_LATIN): 1}
    example = found.doubtful_examples[DoubtfulGrammar("zh", "Cyrillic")]
    assert isinstance(example, TextExample)
    assert (example.id, example.normalized) == ("r5", "幺五零 рублей")
    assert found.digits_left == {"ru": 1}
    assert found.digit_examples == {"ru": "r0"}
    assert found.languages.keys() == {"ru", "en", NONE_GIVEN}
    assert found.rejected == {Reason.INVALID_FIELD: 1}


def test_the_command_shows_them(manifest: Path, golden_small: Path) -> None:
    result = CliRunner().invoke(app, ["check", str(manifest), "--models", str(golden_small / "checkpoints")])
    said = " ".join(result.output.split())
    assert "Texts, normalised and tokenized" in said
    for line in (
        "2 samples without a language treated as Chinese by script (Cyrillic), such as r5: '150 рублей' -> "
        "'幺五零 рублей'",
        "1 sample without a language treated as English by script (Latin with non-English letters)",
        "1 sample in ru with digits left after normalisation, such as r0",
    ):
        assert line in said
    assert "language is 'rusian'" in said


def test_without_a_tokenizer_the_doubtful_ones_are_counted_still(manifest: Path) -> None:
    found = check(CheckOptions(manifest=manifest)).findings
    assert found.doubtful.total() == 3
    assert not found.texts
    assert not found.digits_left
    result = CliRunner().invoke(app, ["check", str(manifest)])
    assert "2 samples without a language treated as Chinese by script (Cyrillic)" in result.output
