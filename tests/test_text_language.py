"""Hints and scripts, by hand."""

import json
from pathlib import Path

import pytest

from hfprep.errors import ConfigError, Reason
from hfprep.inputs.manifest.rows import NoLookup, parse_line
from hfprep.inputs.text.language import canonical_language, detect_language, language_option, read_hint
from hfprep.inputs.text.language_codes import KNOWN_CODES, MEANINGS
from hfprep.pipeline.config import BuildConfig
from hfprep.schema import Rejection, Utterance


@pytest.mark.parametrize(
    ("hint", "code"),
    [
        ("en", "en"),
        (" EN ", "en"),
        ("en-US", "en"),
        ("zh", "zh"),
        ("cn", "zh"),
        ("zh_TW", "zh"),
        ("ja", "ja"),
        ("JP", "ja"),
        ("am", "am"),
        ("amh", "am"),
        ("fr", "fr"),
        ("", None),
        ("  ", None),
        (None, None),
    ],
)
def test_hints(hint: str | None, code: str | None) -> None:
    assert canonical_language(hint) == code


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("Hello there.", "en"),
        ("Été à la mer", "en"),
        ("beta1 and voice2", "en"),  # letters before the syllable: not pinyin
        ("BETA1", "en"),
        ("ni3 hao3", "zh"),
        ("the word NI3", "zh"),
        ("12345", "zh"),
        ("!!!", "zh"),
        ("Привет", "zh"),
        ("안녕", "zh"),
        ("GPT模型", "zh"),
        ("ひらがな", "ja"),
        ("カタカナ and English", "ja"),
        ("ｶﾀｶﾅ", "ja"),
        ("人々", "ja"),
        ("東京〜大阪", "ja"),
        ("〆切", "ja"),
        ("克里斯·诺兰", "zh"),  # a middle dot that is not the Japanese one
        ("ー", "ja"),
        ("ሰላም hello 你好 こんにちは", "am"),
        ("hello።", "am"),
        ("hello፡", "am"),
    ],
)
def test_scripts(text: str, code: str) -> None:
    assert detect_language(text) == code


@pytest.mark.parametrize(
    ("hint", "kept"),
    [
        ("en", "en"),
        ("CN", "CN"),
        ("zh_TW", "zh_TW"),
        ("en-US", "en-US"),
        ("yue", "yue"),
        ("zh/en", "zh/en"),
        ("zhen", "zhen"),
        ("amh", "amh"),
        ("gez", "gez"),
        ("english", "en"),
        ("English", "en"),
        ("eng", "en"),
        ("ENG", "en"),
        ("amharic", "am"),
        (" Amharic ", "am"),
        ("Mandarin", "zh"),
        ("cmn-Hans", "zh"),
        ("Chinese (Taiwan)", "zh"),
        ("ger", "de"),
        ("deu", "de"),
        ("Haitian  Creole", "ht"),
        ("spanish", "es"),
    ],
)
def test_a_known_code_stays_and_a_plain_name_becomes_its_code(hint: str, kept: str) -> None:
    assert read_hint(hint) == kept


@pytest.mark.parametrize(
    ("hint", "nearest"),
    [
        ("englsh", "en (english)"),
        ("amharc", "am (amharic)"),
        ("xx", "did you mean|such as"),
        ("12", "such as en"),
        ("speaker one", "did you mean|such as"),
    ],
)
def test_what_is_no_language_is_refused_with_the_nearest(hint: str, nearest: str) -> None:
    with pytest.raises(ValueError, match=nearest.replace("(", r"\(").replace(")", r"\)")):
        read_hint(hint)


def test_the_table_has_every_code_once() -> None:
    assert {"en", "zh", "ja", "am", "uk", "zu"} <= KNOWN_CODES
    assert len({code for code in KNOWN_CODES if len(code) == 2}) == 183 + 3  # and cn, jp, jw
    assert not KNOWN_CODES & MEANINGS.keys()
    assert set(MEANINGS.values()) <= KNOWN_CODES
    assert all(name == name.lower().strip() for name in MEANINGS)


def row(language: object) -> bytes:
    return json.dumps({"id": "a", "text": "Hello", "audio": "a.wav", "language": language}).encode()


def test_a_row_s_language_is_read_so() -> None:
    finder = NoLookup(Path("m.jsonl"))
    found = parse_line(1, row("Amharic"), finder, None)
    assert isinstance(found, Utterance)
    assert found.language == "am"
    wrong = parse_line(1, row("englsh"), finder, None)
    assert isinstance(wrong, Rejection)
    assert (wrong.reason, wrong.id) == (Reason.INVALID_FIELD, "a")
    assert "language is 'englsh', not a known language code; did you mean en (english)" in wrong.message
    of_the_run = parse_line(1, row("englsh"), finder, "en")
    assert isinstance(of_the_run, Utterance)
    assert of_the_run.language == "en"


def test_the_language_of_a_run_is_read_so() -> None:
    assert BuildConfig(manifest=Path("m"), output_dir=Path("o"), language="Amharic").language == "am"
    assert language_option(" ") is None
    with pytest.raises(ConfigError, match=r"--language is 'englsh'; it must be a language code; did you mean en"):
        BuildConfig(manifest=Path("m"), output_dir=Path("o"), language="englsh")
