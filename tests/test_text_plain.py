"""The fast path: what it answers is what the slow path says, and it answers where it should."""

import random
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hfprep.inputs.text.grammar import ChineseGrammar, EnglishGrammar, grammar_folder
from hfprep.inputs.text.plain import PlainChinese, PlainEnglish

ENGLISH = EnglishGrammar(grammar_folder())
CHINESE = ChineseGrammar(grammar_folder())
PLAIN_ENGLISH = PlainEnglish(ENGLISH)
PLAIN_CHINESE = PlainChinese(CHINESE)

# Public-domain lines (Austen, Carroll, Dickens, Melville, Stevenson) and lines of our own.
ENGLISH_LINES = """\
It is a truth universally acknowledged, that a single man in possession of a good fortune, must be in want of a wife.
"My dear Mr. Bennet," said his lady to him one day, "have you heard that Netherfield Park is let at last?"
Mr. Bennet replied that he had not.
Alice was beginning to get very tired of sitting by her sister on the bank, and of having nothing to do.
So she was considering in her own mind (as well as she could) whether it would be worth the trouble.
"Oh dear! Oh dear! I shall be late!" thought the Rabbit — and then it was gone…
Call me Ishmael.
Some years ago — never mind how long precisely — having little or no money, I thought I would sail about a little.
It was the best of times, it was the worst of times; it was the age of wisdom: it was the age of foolishness.
Squire Trelawney, Dr. Livesey, and the rest of these gentlemen have asked me to write down the whole story.
“Curiouser and curiouser!” cried Alice; “now I’m opening out like the largest telescope that ever was!”
I don't think we've met, have we? No, we haven't; you're new here.
Don’t you ever stop talking, o’clock or no o’clock?
The well-known mother-in-law of the café's owner, Zoë, drew a naïve picture.
We meet every Mon and Wed, or Sat at the latest.
A TV in the USA, and a radio in the UK
Yes?! No!! Maybe...
one line,  oddly   spaced -  as some are
'Tis the season
the end."
Capt. Ahab and Lt. Stubb sailed on Sun morning, vs. Rev. Smith's wishes
"Wait," he said, "(please) wait!"
I'm sure she's there, isn't she
Here's to you, D'Artagnan, and to Sa'id""".splitlines()

# What looks plain and is not: each of these must be left to the grammar, or answered as it answers.
ENGLISH_TRAPS = [
    "Twice per minute.",
    "a super kg of it",
    "Go to Boston, MA now.",
    "after World War I ended",
    "from Mon - Fri only",
    "it is a BlackFri - Mon thing",
    "I like A. B. C.",
    "Ms.  Smith, with two spaces",
    "U.S.A. and e.g. this",
    "Mon-Fri",
    "A'manda and I'malive",
    "there's hawaii'm",
    "five km/h",
    "hello.com",
    "a@b",
    "[x] {y}",
    "50",
    "£ and €",
    "a\tb",
]

CHINESE_LINES = """\
今天天气很好，我们一起去公园散步吧。
他说：“停下！”然后走了……
学而时习之，不亦说乎？有朋自远方来，不亦乐乎？
床前明月光，疑是地上霜；举头望明月，低头思故乡。
啊，我呃不知道，嗯。
繁體中文也讀得出來，「好」的《書》（上）【注】
这是NASA的项目，用GPU和Python做的 OK?
ＡＢＣａｂｃ，．！？
一二三四五六七八九十百千万亿
半夜三点半，二〇二四年五月
x^y_z|{a}~`'\\/"[]()$%&*@#:;
한국어と日本語と😀ñ""".splitlines()

CHINESE_TRAPS = ["第3章", "儿童玩儿", "M.V.P", "-", "×", "a+b", "１２", "兒子", ">=", "3.5", "a<b", "5:3"]


def _check_english(text: str) -> bool:
    tokens = PLAIN_ENGLISH.tokens(text)
    if tokens is None:
        return False
    assert tokens == ENGLISH.tag(text)
    assert ENGLISH.verbalize(tokens) == ENGLISH.normalize(text)
    return True


def _check_chinese(text: str) -> bool:
    spoken = PLAIN_CHINESE.spoken(text)
    if spoken is None:
        return False
    assert spoken == CHINESE.normalize(text)
    return True


@pytest.mark.parametrize("line", ENGLISH_LINES)
def test_english_lines_are_fast_and_the_same(line: str) -> None:
    assert _check_english(line)


@pytest.mark.parametrize("line", CHINESE_LINES)
def test_chinese_lines_are_fast_and_the_same(line: str) -> None:
    assert _check_chinese(line)


@pytest.mark.parametrize("text", ENGLISH_TRAPS)
def test_english_traps(text: str) -> None:
    if not _check_english(text):
        return
    # The fast path may know a trap, but only with the tagger's own tokens for it.
    assert any(token.name not in ("w", "p") for token in ENGLISH.tag(text))


@pytest.mark.parametrize("text", CHINESE_TRAPS)
def test_chinese_traps_are_left_to_the_grammar(text: str) -> None:
    assert PLAIN_CHINESE.spoken(text) is None


WORDS = [
    *("the", "a", "of", "and", "Then", "He", "She", "don't", "it's", "we've", "you", "o'clock", "paper", "per", "hour"),
    *("market", "kg", "m", "Sun", "may", "May", "March", "said", "Mr", "Mrs", "Dr", "St", "No", "Ms", "wed", "NASA"),
    *(
        "OK",
        "TV",
        "USA",
        "I",
        "A",
        "X",
        "café",
        "Ünï",
        "UK",
        "etc",
        "vs",
        "co",
        "Boston",
        "Al",
        "MA",
        "in",
        "or",
        "mid",
    ),
    *("World", "War", "II", "am", "Abp", "Ltd", "jr", "can't", "I'm", "Smith's", "ten", "super", "i'm", "there's"),
]
LEADS = ["", "", "", '"', "“", "‘", "'", "(", "“‘"]
TAILS = ["", "", "", ",", ".", "!", "?", ";", ":", "…", "...", ',"', '."', "”", ")", "’", "'", "?)"]
_word = st.builds(
    "{}{}{}{}".format,
    st.sampled_from(LEADS),
    st.sampled_from(WORDS) | st.text("abcimprsuyABMST'", min_size=1, max_size=5),
    st.sampled_from(["", "", "", "-so", "—Mr", "'s", "’ll"]),
    st.sampled_from(TAILS),
)
_sentence = st.lists(_word | st.sampled_from(["-", "–", "—", "…"]), min_size=1, max_size=5).map(" ".join)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(_sentence)
def test_english_combinations(text: str) -> None:
    _check_english(text)


_character = st.sampled_from("".join(CHINESE_LINES)) | st.characters(codec="utf-8")


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.text(_character, min_size=1, max_size=12))
def test_chinese_combinations(text: str) -> None:
    _check_chinese(text)


def _sentences_a_second(answer, texts: list[str]) -> float:  # type: ignore[no-untyped-def]
    """By this process's own time, so that what else the machine does is not counted."""
    start = time.process_time()
    assert all(answer(text) is not None for text in texts)
    return len(texts) / (time.process_time() - start)


def test_plain_text_is_no_bottleneck() -> None:
    shuffle = random.Random(0)
    words = " ".join(ENGLISH_LINES[:5]).lower().replace('"', "").replace(".", "").split()
    english = [" ".join(shuffle.choices(words, k=15)) + "." for _ in range(400)]
    characters = "".join(CHINESE_LINES[:6])
    chinese = ["".join(shuffle.choices(characters, k=25)) for _ in range(400)]

    def english_answer(text: str) -> str | None:
        tokens = PLAIN_ENGLISH.tokens(text)
        return None if tokens is None else ENGLISH.verbalize(tokens)

    assert _sentences_a_second(english_answer, english) > 300
    assert _sentences_a_second(PLAIN_CHINESE.spoken, chinese) > 300
