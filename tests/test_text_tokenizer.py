"""From text to ids: stages, unknown pieces, what is refused, threads and pickles."""

import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from hfprep.errors import ConfigError, Reason, RejectedSample
from hfprep.inputs.text.normalizer import TextNormalizer
from hfprep.inputs.text.tokenizer import TextTokenizer, space_cjk

MODEL = Path(__file__).parent / "data" / "text-bpe.model"


@pytest.fixture(scope="module")
def tokenizer() -> TextTokenizer:
    return TextTokenizer(MODEL)


@pytest.mark.parametrize(
    ("text", "spaced"),
    [
        ("你好world世界", "你 好 WORLD 世 界"),
        (" a  b ", "A  B"),
        ("あア한ㄅ", "あ ア 한 ㄅ"),
        ("ｱ𠀀豈", "ｱ 𠀀 豈"),
        ("，a", "，A"),  # full-width forms below U+FF65 are no CJK characters here
        ("straße", "STRASSE"),
        ("ሰላም", "ሰላም"),
        ("", ""),
        ("  ", ""),
    ],
)
def test_space_cjk(text: str, spaced: str) -> None:
    assert space_cjk(text) == spaced


def test_stages_ids_and_unknown_pieces(tokenizer: TextTokenizer) -> None:
    result = tokenizer.tokenize(" 第1章（上）", "zh")
    assert result.stages.cleaned == "第1章（上）"
    assert result.stages.normalized == "第一章'上'"
    assert result.stages.tokenizer_input == "第 一 章 ' 上 '"
    assert result.ids.tolist() == tokenizer.encode("第1章（上）", "zh").tolist()
    assert result.pieces == ("▁", "第", "▁一", "▁", "章", "▁'", "▁上", "▁'")
    assert result.unknown == ("第", "章")


def test_ids_are_int32(tokenizer: TextTokenizer) -> None:
    ids = tokenizer.encode("Hello, world!")
    assert ids.dtype == np.int32
    assert ids.ndim == 1
    assert ids.min() >= 0
    assert ids.max() < tokenizer.vocab_size
    assert tokenizer.vocab_size == 2600


@pytest.mark.parametrize("character", ["x", "5", "“"])
def test_a_single_character_goes_straight_to_the_model(tokenizer: TextTokenizer, character: str) -> None:
    stages = tokenizer.prepare(f" {character}\n", "en")
    assert (stages.cleaned, stages.normalized, stages.tokenizer_input) == (character,) * 3


@pytest.mark.parametrize("text", ["", "  \n", "\u3000\xa0", "speaker 1:", "ተናጋሪ 1:"])
def test_empty_text(tokenizer: TextTokenizer, text: str) -> None:
    with pytest.raises(RejectedSample) as rejected:
        tokenizer.encode(text, "am")
    assert rejected.value.reason is Reason.EMPTY_TEXT


@pytest.mark.parametrize("text", ["\ud800", "a\udfffb", "你\ud800好"])
def test_half_characters(tokenizer: TextTokenizer, text: str) -> None:
    with pytest.raises(RejectedSample) as rejected:
        tokenizer.encode(text)
    assert rejected.value.reason is Reason.TEXT_FAILED


ODD_TEXTS = ["a\0b 5", "\ufffd\ufffe", "e\u0301" * 50, "👩\u200d👧 5", "\x07 bell", "\u202eabc", "[EOS] {w} <3"]


@pytest.mark.parametrize("text", ODD_TEXTS)
@pytest.mark.parametrize("language", ["en", "zh", "ja", "am", "xx", None])
def test_odd_text_gives_ids(tokenizer: TextTokenizer, text: str, language: str | None) -> None:
    assert tokenizer.encode(text, language).size > 0


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no\.model"):
        TextTokenizer(tmp_path / "no.model")


@pytest.mark.parametrize("content", [b"", b"not a model", b"\x0a\x00" * 100])
def test_broken_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broken.model"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"broken\.model"):
        TextTokenizer(path)


def test_a_model_cut_short(tmp_path: Path) -> None:
    path = tmp_path / "cut.model"
    path.write_bytes(MODEL.read_bytes()[:100_000])
    with pytest.raises(ConfigError, match=r"cut\.model"):
        TextTokenizer(path)


def test_threads_and_pickles_agree(tokenizer: TextTokenizer) -> None:
    texts = [f"He paid {number} dollars" for number in range(5)] + ["今天天气很好", "ሰላም", "こんにちは"]
    alone = [tokenizer.encode(text).tolist() for text in texts]
    copy = pickle.loads(pickle.dumps(tokenizer))
    with ThreadPoolExecutor(4) as pool:
        assert [ids.tolist() for ids in pool.map(copy.encode, texts * 3)] == alone * 3


def test_fingerprint(tokenizer: TextTokenizer, golden_small: Path) -> None:
    other = TextTokenizer(golden_small / "checkpoints" / "bpe.model", normalizer=TextNormalizer())
    assert other.fingerprint() != tokenizer.fingerprint()
    assert tokenizer.normalizer.fingerprint() in tokenizer.fingerprint()
