"""Pinyin and names: what is held back from a grammar, and how it comes back."""

import re

import pytest

from hfprep.inputs.text.protected import TONED_PINYIN, normalize_around, spell_pinyin

SYLLABLES = ("xuan4", "jve2", "ju4", "ying1", "zhong4", "shang5", "nü3", "lüe4", "lve4", "er2", "ng2", "a1", "ZHUANG1")


@pytest.mark.parametrize("syllable", SYLLABLES)
def test_pinyin(syllable: str) -> None:
    assert TONED_PINYIN.fullmatch(syllable)


@pytest.mark.parametrize("text", ["hm3", "beta1", "voice2", "BETA1", "xuan6", "xuan0", "xuan", "b1", "MP3", "F5"])
def test_not_pinyin(text: str) -> None:
    assert TONED_PINYIN.search(text) is None


@pytest.mark.parametrize(
    ("syllable", "spelled"),
    [
        ("ju4", "JV4"),
        ("xuan4", "XVAN4"),
        ("que1", "QVE1"),
        ("xün2", "XVN2"),
        ("jiang3", "JIANG3"),
        ("jiu3", "JIU3"),
        ("Qu4", "QV4"),
        ("jve2", "JVE2"),
        ("zhu4", "zhu4"),  # the tokenizer's own upper-casing does the rest
        ("lu4", "lu4"),
    ],
)
def test_spelling(syllable: str, spelled: str) -> None:
    assert spell_pinyin(syllable) == spelled


def _read_digits(text: str) -> str:
    """A grammar that reads every digit and turns every hyphen into a word."""
    return re.sub("[0-9]", "#", text).replace("-", "减")


def test_nothing_held() -> None:
    assert normalize_around("5-3", _read_digits) == "#减#"


def test_pinyin_and_names_come_back() -> None:
    assert normalize_around("ju4子5 约瑟夫·高登-莱维特-3", _read_digits) == "JV4子# 约瑟夫·高登-莱维特减#"


def test_the_same_piece_twice_and_one_inside_another() -> None:
    assert normalize_around("an1 xian1 an1 9", _read_digits) == "an1 XIAN1 an1 #"
    assert normalize_around("甲-乙，甲-乙-丙", _read_digits) == "甲-乙，甲-乙-丙"


def test_a_text_that_holds_a_stand_in_itself() -> None:
    assert normalize_around("<pinyin_a> ma1 <n_a> 甲-乙", _read_digits) == "<pinyin_a> ma1 <n_a> 甲-乙"


def test_more_pieces_than_letters() -> None:
    text = " ".join(f"{initial}{final}1" for initial in "bpmfdtnl" for final in ("a", "i", "u", "ang", "en"))
    assert normalize_around(text, _read_digits) == text


def test_a_grammar_that_swallows_the_stand_ins() -> None:
    assert normalize_around("3ma4=5", lambda text: _read_digits(text.replace("<", "小于"))) == "#ma4=#"


def test_a_grammar_sees_one_text_with_stand_ins() -> None:
    seen: list[str] = []

    def grammar(text: str) -> str:
        seen.append(text)
        return text

    normalize_around("他ma4甲-乙", grammar)
    assert seen == ["他<pinyin_a><n_a>"]
