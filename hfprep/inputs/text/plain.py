r"""Plain sentences past the slow half of a grammar: the tokens that the tagger would give, found without running it.

Gives one class a language, which returns a text's tokens (or its spoken form) where it can vouch for them, else None.
Takes the grammar itself, which answers for single chunks and characters. Does not know languages' codes, nor what
becomes of the tokens.

What it rests on, checked on the compiled taggers of WeTextProcessing 1.0.4.1 by composing them with the language of
plain texts (all of it, not a sample) and walking every path:

- Chinese: a text without any character of `_CHINESE_TRIGGERS` has one reading, a `char` token for each character.
- English: a text of the chunks of `_CHUNK` outside `_ENGLISH_TRIGGERS` has no reading with a token that reaches over a
  space, but for the marks' own. Where it has neither capitals nor `_LOWER_CASE_ENTRIES` it has no other tokens at all
  than `w` (letters) and `p` (marks): the cheapest reading makes one `w` of each run of letters and one `p` of each
  run of marks. Spaces go to the mark before them, else to the mark after them, else nowhere.
- English, a chunk with capitals (Mr., Sat, Abp): it is put to the tagger alone. In a text, each space beside a mark
  makes that mark cheaper by 1, a mark costs 2 and all other tokens about the same: one space cannot turn the choice
  between "Mr." and "Mr" with a full stop, two can. So with two spaces in a row only `w` and `p` are vouched for.
"""

import re
from functools import lru_cache

from hfprep.inputs.text.grammar import ChineseGrammar, EnglishGrammar, GrammarFailed, Token

# Digits in both widths, the signs that the grammar reads aloud, the full stop (in "M.V.P"), and the two spellings of
# the suffix whose words it knows. NUL and lone surrogates are no characters to it.
_CHINESE_TRIGGERS = re.compile("[0-9０-９+=<>.×÷≥≤儿兒\\-\0\ud800-\udfff]")

_LETTER = "A-Za-zÀ-ÖØ-öø-ɏ"
_MARK = ",.!?;:…\"“”‘’'()\\-–—"
_CHUNK = re.compile(
    rf"""["“‘'(]{{0,3}} [{_LETTER}]+ (?:['’\-–—][{_LETTER}]+)* [,.!?;:…)"”’']{{0,5}} | [\-–—…] | \.\.\.""",
    re.VERBOSE,
)
_ENGLISH_TRIGGERS = re.compile(
    r"per\ "  # "per m" is a unit even where it is the end of one word and the beginning of the next
    r"|[A-Z]\."  # initials
    r"|,\ *[A-Z][A-Z]"  # Boston, MA
    r"|World\ +War\ +I"
    r"|(?:Mon|Tu|Wed|Thu?r?s?|Fri|Sat|Sun)\.?\ +-"  # Mon - Fri
)
_LOWER_CASE_ENTRIES = "here's|i'm|you're"  # all that the list of abbreviations has in lower case
_ASKED = re.compile(f"[A-Z]|{_LOWER_CASE_ENTRIES}")
_ENGLISH_TOKEN = re.compile(rf"(?P<letters>[{_LETTER}]+)|(?P<marks>[{_MARK}]+)")


class PlainEnglish:
    """The tokens of plain English texts; remembers what the tagger makes of chunks."""

    def __init__(self, grammar: EnglishGrammar, *, cache_size: int) -> None:
        self._grammar = grammar
        self._ask = lru_cache(cache_size)(self._tag_alone)

    def tokens(self, text: str) -> list[Token] | None:
        """Return the tokens that the tagger would give for a text, or None where only the tagger knows."""
        chunks = text.split(" ")
        if not chunks[0] or not chunks[-1] or _ENGLISH_TRIGGERS.search(text):
            return None
        result: list[Token] = []
        spaces = ""
        for chunk in chunks:
            if chunk:
                tokens = self._chunk_tokens(chunk)
                if tokens is None:
                    return None
                _join(result, spaces, tokens)
                spaces = ""
            spaces += " "
        if "  " in text and any(token.name not in ("w", "p") for token in result):
            return None
        return result

    def _chunk_tokens(self, chunk: str) -> tuple[Token, ...] | None:
        if _CHUNK.fullmatch(chunk) is None:
            return None
        if _ASKED.search(chunk):
            return self._ask(chunk)
        return tuple(
            _word(match[0]) if match["letters"] else _mark(match[0].replace('"', '\\"'))
            for match in _ENGLISH_TOKEN.finditer(chunk)
        )

    def _tag_alone(self, chunk: str) -> tuple[Token, ...] | None:
        try:
            return tuple(self._grammar.tag(chunk))
        except GrammarFailed:
            return None


def _word(letters: str) -> Token:
    return Token("w", (("v", letters),))


def _mark(marks: str) -> Token:
    return Token("p", (("v", marks),))


def _join(tokens: list[Token], spaces: str, following: tuple[Token, ...]) -> None:
    """Append a chunk's tokens, the spaces before it going to a mark where one stands beside them."""
    if spaces and tokens[-1].name == "p":
        tokens[-1] = _mark(tokens[-1].fields[0][1] + spaces)
    elif spaces and following[0].name == "p":
        following = (_mark(spaces + following[0].fields[0][1]), *following[1:])
    tokens.extend(following)


class PlainChinese:
    """The spoken form of plain Chinese texts: each character as the grammar writes it when it stands alone."""

    def __init__(self, grammar: ChineseGrammar, *, cache_size: int) -> None:
        self._character = lru_cache(cache_size)(grammar.normalize)

    def spoken(self, text: str) -> str | None:
        """Return what the grammar would make of a text, or None where only the grammar knows."""
        if _CHINESE_TRIGGERS.search(text):
            return None
        return "".join(map(self._character, text))
