"""The real WeTextProcessing, run through pynini, beside our own runner of its grammars."""

import logging

import pytest

from hfprep.inputs.text.grammar import ChineseGrammar, EnglishGrammar, grammar_folder

ENGLISH = [
    "On May 5th, 2024 he paid $19.99 at 3:45 p.m.",
    "Call (555) 123-4567, or mail a7@b.com.",
    "5.5 kg, 120 mph and -40 °C",
    "Mr. Lee's 3/4 cup; 1/2 of 1,250,000",
    'the "1990s" [sic] {a} \\ b',
    "Dr. Smith, 12 Main St., Boston, MA",
    "twice per minute, from Mon - Fri",
    "(ok) then... he’s gone — really?",
    "IP 192.168.0.1 #1 & 2 * 3 = 6",
    "plain words only",
]
CHINESE = [
    "2024年5月5日下午3点45分，花了￥19.99元",
    "电话13512345678或010-62345678",
    "温度-5℃，涨了50.5%，1/3的人",
    "第12章，比分3:2，18楼，200本",
    "繁體字１２３ＡＢ、B2B和M.V.P",
    '3+5=8，2×4，"a\\b"',
    "儿童和女儿",
    "没有数字的一句话。",
]


@pytest.fixture(autouse=True)
def _quiet_loggers() -> None:
    """The package adds handlers of its own to its loggers."""
    for name in ("wetext-en_normalizer", "wetext-zh_normalizer"):
        logging.getLogger(name).disabled = True


def test_english() -> None:
    oracle = pytest.importorskip("tn.english.normalizer").Normalizer()
    ours = EnglishGrammar(grammar_folder())
    assert [ours.normalize(text) for text in ENGLISH] == [oracle.normalize(text) for text in ENGLISH]


def test_chinese() -> None:
    """The shipped grammar, without the words that it alone removes."""
    oracle = pytest.importorskip("tn.chinese.normalizer").Normalizer()
    ours = ChineseGrammar(grammar_folder())
    assert [ours.normalize(text) for text in CHINESE] == [oracle.normalize(text) for text in CHINESE]
