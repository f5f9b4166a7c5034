"""The ranks file, the special tokens, the languages' numbers."""

import base64
from pathlib import Path

import pytest
import tiktoken
from hypothesis import given
from hypothesis import strategies as st

from hfprep.errors import ConfigError
from hfprep.recipes.indextts25.vocabulary import NUM_TOKENS, PATTERN, Vocabulary, language_id, special_tokens

FILE = "checkpoints/multilingual_zh_ja_yue_char_del.tiktoken"


@pytest.fixture(scope="module")
def vocabulary(golden25_small: Path) -> Vocabulary:
    return Vocabulary(golden25_small / FILE)


def test_size_and_places_of_the_special_tokens(vocabulary: Vocabulary) -> None:
    assert vocabulary.size == NUM_TOKENS == 60_509
    assert len(special_tokens()) == len(set(special_tokens())) == 1673
    known = {
        "<|endoftext|>": 58836, "<|startoftranscript|>": 58837, "<|en|>": 58838, "<|zh|>": 58839, "<|su|>": 58936,
        "<|ASR|>": 58937, "<|HAPPY|>": 58948, "<|SAD|>": 58949, "<|SPECIAL_TOKEN_1|>": 58958, "<|30.00|>": 60508,
    }  # fmt: skip
    assert {token: vocabulary.encode(token) for token in known} == {token: [number] for token, number in known.items()}


def test_pieces(vocabulary: Vocabulary) -> None:
    assert vocabulary.pieces([58838, 7627, 0, 238]) == ["<|en|>", " hello", "!", "\ufffd"]


BITS = [
    *special_tokens()[:20], "<|0.02|>", "<|", "|>", "|", "<", ">", "en", " the", "0.02", "/Speech", "\u00e9", "\u4e2d",
    "\n",
]  # fmt: skip


@pytest.fixture(scope="module")
def published(vocabulary: Vocabulary) -> tiktoken.Encoding:
    lines = map(bytes.split, vocabulary.path.read_bytes().splitlines())
    ranks = {b"" if token == b"=" else base64.b64decode(token): int(rank) for token, rank in lines}
    special = {token: len(ranks) + place for place, token in enumerate(special_tokens())}
    return tiktoken.Encoding("published", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens=special)


@given(st.lists(st.sampled_from(BITS), max_size=12).map("".join))
def test_special_tokens_are_found_as_tiktoken_finds_them(
    vocabulary: Vocabulary, published: tiktoken.Encoding, text: str
) -> None:
    assert vocabulary.encode(text) == published.encode(text, allowed_special="all")


def test_language_numbers() -> None:
    assert [language_id(code) for code in ("en", "ZH", "am", "su", "yue", "zh/en", "zhen", "", None)] == [
        0, 1, 75, 98, 99, 103, 105, 105, 105,
    ]  # fmt: skip


def test_a_vocabulary_may_have_more_ranks(golden25_small: Path, tmp_path: Path) -> None:
    longer = tmp_path / "longer.tiktoken"
    longer.write_bytes((golden25_small / FILE).read_bytes() + b"4YqI4YiL4Yid 58836\n")
    vocabulary = Vocabulary(longer)
    assert vocabulary.size == NUM_TOKENS + 1
    assert vocabulary.encode("<|en|>") == [58839]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"IQ== 0\nIg==\n", "line 2"),
        (b"IQ== 0\n?? 1\n", "line 2"),
        (b"IQ== 0\nIg== x\n", "line 2"),
        (b"IQ== 0\nIg== 1\n", "is incomplete: its 2 lines"),
        (b"", "is incomplete: its 0 lines"),
    ],
)
def test_what_is_no_vocabulary_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "some.tiktoken"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        Vocabulary(path)


@pytest.mark.parametrize("change", [(b"IGRpbGlnZW50 48470", b"IGRpbGlnZW50 48469"), (b"IQ== 0\n", b"")])
def test_ranks_must_be_whole(golden25_small: Path, tmp_path: Path, change: tuple[bytes, bytes]) -> None:
    path = tmp_path / "some.tiktoken"
    path.write_bytes((golden25_small / FILE).read_bytes().replace(*change))
    with pytest.raises(ConfigError, match="is incomplete"):
        Vocabulary(path)


def test_a_missing_file_is_named_with_where_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.tiktoken .*IndexTeam/IndexTTS-2\.5"):
        Vocabulary(tmp_path / "none.tiktoken")
