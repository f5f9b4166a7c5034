"""Hints and scripts, by hand."""

import pytest

from hfprep.inputs.text.language import canonical_language, detect_language


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
