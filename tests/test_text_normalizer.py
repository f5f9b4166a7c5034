"""Cleaning, and the rules of each language around the grammars."""

import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import hfprep.inputs.text.normalizer as normalizer_module
import hfprep.inputs.text.spoken as spoken_module
from hfprep.errors import ConfigError, Reason, RejectedSample
from hfprep.inputs.text.normalizer import TextNormalizer, clean


@pytest.fixture(scope="module")
def normalizer() -> TextNormalizer:
    return TextNormalizer()


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("  a b\n", "a b"),
        ("a\u3000b\xa0c", "a b c"),
        ("\u3000a\xa0", "a"),
        ("Speaker 12 :  a", "a"),
        ("spk3：a", "a"),
        ("SPEAKER 1:", ""),
        ("speaker one: a", "speaker one: a"),
        ("the speaker 1: a", "the speaker 1: a"),
        ("speaker 1: speaker 2: a", "speaker 2: a"),
        ("a  b", "a  b"),
        ("ተናጋሪ 1: ሰላም", "ተናጋሪ 1: ሰላም"),
        ("", ""),
    ],
)
def test_clean(text: str, cleaned: str) -> None:
    assert clean(text) == cleaned


@pytest.mark.parametrize(
    ("text", "language", "normalized"),
    [
        ("It's here's what he's who's", "en", "It is here is what he is who is"),
        ("THAT's Tom's", "en", "THAT is Tom's"),
        ("the rabbit's hole", "en", "the rabbit is hole"),  # as the published front end has it
        ("She's 3: (yes)", "EN", "She is three, 'yes'"),
        ("it's 3", "zh", "it is 三"),
        ("成本$", "zh", "成本."),
        ("3<=ma4", "zh", "三小于等于ma4"),
        ("北京-上海，3-1", "zh", "北京-上海,三减一"),
        ("你好 ", "zh", "你好"),
        ("１２　ａ\t\nｂ：", "ja", "12 a b,"),
        ("half ½ ﬁ", "fr", "half 1⁄2 fi"),
        ("ተናጋሪ 2： ሰላም", "am", "ሰላም"),
        ("ﬁ ሰላም፡", "am", "ﬁ ሰላም"),
        ("5 ሰላም", None, "5 ሰላም"),
        ("5 apples", None, "five apples"),
        ("5个", "  ", "五个"),
        ("", None, ""),
        (" ", "en", ""),
        ("ተናጋሪ 2:", "am", ""),
    ],
)
def test_rules(normalizer: TextNormalizer, text: str, language: str | None, normalized: str) -> None:
    assert normalizer.normalize(text, language) == normalized


@pytest.mark.parametrize("language", ["en", "zh", "ja", "am", "fr", None])
def test_half_a_character_is_rejected_by_name(normalizer: TextNormalizer, language: str | None) -> None:
    with pytest.raises(RejectedSample, match=r"U\+D83D at position 3") as rejected:
        normalizer.normalize("hi \ud83d there 5", language)
    assert rejected.value.reason is Reason.TEXT_FAILED
    rejected.value.message.encode("utf-8")


@pytest.mark.parametrize("language", ["en", "zh"])
def test_text_that_the_grammar_makes_nothing_of(normalizer: TextNormalizer, language: str) -> None:
    with pytest.raises(RejectedSample) as rejected:
        normalizer.normalize("\0", language)
    assert rejected.value.reason is Reason.TEXT_FAILED


@pytest.mark.parametrize(("language", "word"), [("en", "word 5 "), ("zh", "第5个")])
def test_text_far_too_long_for_a_grammar(normalizer: TextNormalizer, language: str, word: str) -> None:
    with pytest.raises(RejectedSample, match="has 7000 characters") as rejected:
        normalizer.normalize((word * 4000)[:7000].replace(" ", "_"), language)
    assert rejected.value.reason is Reason.TEXT_TOO_LONG


@pytest.mark.parametrize(
    ("language", "word"), [("en", "word, "), ("zh", "没有数字"), ("ja", "数 5 "), ("am", "ሰላም 5 ")]
)
def test_other_text_may_be_long(normalizer: TextNormalizer, language: str, word: str) -> None:
    text = (word * 10_000).strip()
    assert normalizer.normalize(text, language) == text


def test_a_grammar_that_returns_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spoken_module.EnglishGrammar, "normalize", lambda *_: "")
    with pytest.raises(RejectedSample, match="returned nothing for 'fifty 50'") as rejected:
        TextNormalizer().normalize("fifty 50", "en")
    assert rejected.value.reason is Reason.TEXT_FAILED


def test_missing_grammar(tmp_path: Path) -> None:
    normalizer = TextNormalizer(grammar_dir=tmp_path)
    assert normalizer.normalize("ሰላም", "am") == "ሰላም"
    with pytest.raises(ConfigError, match="en_tn_tagger"):
        normalizer.normalize("a", "en")


def test_threads_and_pickles_agree(normalizer: TextNormalizer) -> None:
    texts = [f"Take {number} of the apples, Mr. Smith" for number in range(6)] + [
        f"第{number}章，儿" for number in range(6)
    ]
    alone = [normalizer.normalize(text) for text in texts]
    fresh = pickle.loads(pickle.dumps(normalizer))
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(fresh.normalize, texts * 3)) == alone * 3


def test_fingerprint(monkeypatch: pytest.MonkeyPatch) -> None:
    fingerprints = [TextNormalizer().fingerprint()]
    for module, name in ((normalizer_module, "NORMALIZER_VERSION"), (spoken_module, "VERSION")):
        monkeypatch.setattr(module, name, "other")
        fingerprints.append(TextNormalizer().fingerprint())
    assert len(set(fingerprints)) == 3
    assert "WeTextProcessing 1.0.4.1" in fingerprints[0]


def test_fingerprint_of_other_grammars(tmp_path: Path) -> None:
    names = [f"{language}_tn_{step}.fst" for language in ("en", "zh") for step in ("tagger", "verbalizer")]
    fingerprints = set()
    for content in (b"a", b"b"):
        for name in names:
            (tmp_path / name).write_bytes(content)
        fingerprints.add(TextNormalizer(grammar_dir=tmp_path).fingerprint())
    assert len(fingerprints) == 2
