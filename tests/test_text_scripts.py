"""Texts without a language whose script fits no grammar."""

import pytest

from hfprep.inputs.text.language import detect_language
from hfprep.inputs.text.scripts import DIGITS_ALONE, OTHER_LATIN, DoubtfulGrammar, doubtful_grammar, has_digits


@pytest.mark.parametrize(
    ("text", "language", "script"),
    [
        ("Привет, 150 рублей", "zh", "Cyrillic"),
        ("안녕하세요 150", "zh", "Hangul"),
        ("नमस्ते", "zh", "Devanagari"),
        ("مرحبا", "zh", "Arabic"),
        ("สวัสดี", "zh", "Thai"),
        ("¿Dónde está?", "en", OTHER_LATIN),
        ("Größe: 3,50 Euro", "en", OTHER_LATIN),
        ("Привет from Moscow", "en", "Cyrillic"),
        ("Müller и Мюллеру", "en", "Cyrillic"),
        ("150", "zh", DIGITS_ALONE),
    ],
)
def test_what_gets_a_grammar_by_a_script_that_is_not_its_own(text: str, language: str, script: str) -> None:
    assert detect_language(text) == language
    assert doubtful_grammar(text) == DoubtfulGrammar(language, script)


@pytest.mark.parametrize(
    "text",
    [
        "Hello, 150 euros",
        "你好",
        "你好 Привет",
        "Hello 你好",
        "ni3 hao3",
        "ＡＢＣ hello",
        "ひらがな",
        "ሰላም",
        "...",
        "",
        "Don’t — wait…",
    ],
)
def test_what_fits(text: str) -> None:
    assert doubtful_grammar(text) is None


def test_digits_of_any_script() -> None:
    assert has_digits("a1")
    assert has_digits("१५०")
    assert not has_digits("one ½ ፩")
