"""The table, written out a second time from the design, and the order of its entries."""

import pytest

from hfprep.inputs.text.punctuation import AMHARIC, CHINESE, COMMON, PunctuationMap

EXPECTED = {
    ",": "：；;，、:",
    ".": "。",
    "!": "！",
    "?": "？",
    " ": "\n",
    "-": "·—～~",
    "'": '“”"‘’（）()《》【】[]「」',
}


def test_single_marks() -> None:
    convert = PunctuationMap(COMMON)
    for result, marks in EXPECTED.items():
        assert convert(marks) == result * len(marks)
    assert sum(map(len, EXPECTED.values())) + 4 == len(COMMON)  # and four spellings of the ellipsis


@pytest.mark.parametrize(
    ("text", "result"),
    [
        ("a...b", "a…b"),
        ("a,,,b", "a…b"),
        ("a……b", "a…b"),
        ("a，，，b", "a,,,b"),  # each full-width comma comes first in the table
        ("a....b", "a….b"),
        ("a…b", "a…b"),
        ("a。。。b", "a...b"),  # what was replaced is not looked at again
        ("a$b", "a$b"),
        ("a፡b", "a፡b"),
        ("«a» – b", "«a» – b"),
    ],
)
def test_common(text: str, result: str) -> None:
    assert PunctuationMap(COMMON)(text) == result


def test_chinese_dollar() -> None:
    assert PunctuationMap(CHINESE)("a$，b") == "a.,b"


def test_amharic() -> None:
    assert PunctuationMap(AMHARIC)("።፣፤፥፦፧፨፡;") == ".,;::?! ,"
