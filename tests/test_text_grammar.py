"""The compiled grammars: tokens, order, what the Chinese one keeps, what a broken installation says."""

import hashlib
from pathlib import Path

import pytest

from hfprep.errors import ConfigError
from hfprep.inputs.text.grammar import (
    ChineseGrammar,
    EnglishGrammar,
    GrammarFailed,
    Token,
    grammar_folder,
    parse_tokens,
)


@pytest.fixture(scope="module")
def english() -> EnglishGrammar:
    return EnglishGrammar(grammar_folder())


@pytest.fixture(scope="module")
def chinese() -> ChineseGrammar:
    return ChineseGrammar(grammar_folder())


def test_parse_tokens() -> None:
    tagged = 'date { year: "二零" month: "五月" } char { value: "\\"" } char { value: "}" } '
    assert list(parse_tokens(tagged)) == [
        Token("date", (("year", "二零"), ("month", "五月"))),
        Token("char", (("value", '\\"'),)),
        Token("char", (("value", "}"),)),
    ]
    assert list(parse_tokens("")) == []


@pytest.mark.parametrize("tagged", ['w { v: "a"', "hello", 'w { v: "a } ', 'w { v: "a" } x'])
def test_what_is_no_row_of_tokens(tagged: str) -> None:
    with pytest.raises(GrammarFailed):
        list(parse_tokens(tagged))


def test_spoken_order() -> None:
    token = Token("money", (("currency", "元"), ("value", "五"), ("other", "x")))
    assert token.write(("value", "currency")) == 'money { value: "五" currency: "元" }'
    assert token.write(None) == 'money { currency: "元" value: "五" other: "x" }'
    kept = Token("date", (("month", "May"), ("day", "five"), ("preserve_order", "true")))
    assert kept.write(("day", "month")) == 'date { month: "May" day: "five" preserve_order: "true" }'


@pytest.mark.parametrize(
    ("text", "spoken"),
    [
        ("", ""),
        ("May 5th, 2024", "May fifth, twenty twenty four"),
        ("5 May 2024", "five May twenty twenty four"),
        ("$1.50", "one point five dollars"),
        ('a\\b [c] "d"', 'a\\b [c] "d"'),
        ("Boston, MA", "Boston, Massachusetts"),
    ],
)
def test_english(english: EnglishGrammar, text: str, spoken: str) -> None:
    assert english.normalize(text) == spoken


@pytest.mark.parametrize(
    ("text", "spoken"),
    [
        ("", ""),
        ("啊，我呃不知道呃啊", "啊,我呃不知道呃啊"),
        ("玩儿去，儿童在这儿", "玩儿去,儿童在这儿"),
        ("2024年5月", "二零二四年五月"),
        ("繁體字", "繁体字"),
        ("ＡＢ", "AB"),
        ('"\\', '"\\'),
    ],
)
def test_chinese(chinese: ChineseGrammar, text: str, spoken: str) -> None:
    assert chinese.normalize(text) == spoken


def test_the_shipped_verbalizer_deletes_what_is_kept_here(chinese: ChineseGrammar) -> None:
    """Should this fail, the special treatment of three tokens has lost its ground."""
    for text, spoken in (("呃", ""), ("啊", ""), ("儿", ""), ("呀", "呀"), ("儿子", "儿子")):
        written = " ".join(token.write(None) for token in chinese.tag(text))
        assert chinese._verbalizer(written) == spoken


def test_the_files_are_those_that_the_rules_were_checked_on() -> None:
    """hfprep.inputs.text.plain and ChineseGrammar depend on these exact files: read both before changing this test."""
    folder = grammar_folder()
    sha256 = {name: hashlib.sha256((folder / f"{name}.fst").read_bytes()).hexdigest()[:16] for name in CHECKED}
    assert sha256 == CHECKED


CHECKED = {
    "en_tn_tagger": "c98302c885019df7",
    "en_tn_verbalizer": "0dc2bd8496a8e4a1",
    "zh_tn_tagger": "bc87c97977560ef3",
    "zh_tn_verbalizer": "5686678dec3b6220",
}


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"zh_tn_tagger\.fst.*pip install --no-deps WeTextProcessing==1\.0\.4\.1"):
        ChineseGrammar(tmp_path)


def test_another_version_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.metadata.version", lambda _: "1.2.0")
    with pytest.raises(ConfigError, match=r"WeTextProcessing 1\.2\.0 is installed"):
        grammar_folder()
