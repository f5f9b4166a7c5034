r"""Fast path for plain sentences: the tokens that the tagger would return, without running it.

Provides one class per language, which returns a text's tokens (or its spoken form) where they are certain, otherwise
None. Takes the grammar, which it runs on single chunks and characters. Knows nothing about language codes, or what the
tokens are used for.

This relies on the following facts, proven for the compiled taggers of WeTextProcessing 1.0.4.1 by composing them with
the language of plain texts (all of it, not a sample) and walking every path:

- Chinese: a text without any character of `_CHINESE_TRIGGERS` has one parse, a `char` token for each character.
- English: a text of chunks matching `_CHUNK`, without `_ENGLISH_TRIGGERS`, has no parse with a token that spans a
  space, except for marks. Without capitals and `_LOWER_CASE_ENTRIES` it only has `w` (letters) and `p` (marks) tokens:
  the cheapest parse has one `w` for each run of letters and one `p` for each run of marks. Spaces belong to the mark
  before them, else to the mark after them, else to no token.
- English, a chunk with capitals (Mr., Sat, Abp): the tagger is run on the chunk alone. In a text, each space beside a
  mark makes that mark cheaper by 1, while a mark costs 2 and all other tokens about the same: one space cannot change
  the choice between "Mr." and "Mr" with a full stop, two can. So with two spaces in a row only `w` and `p` are certain.
"""

import re
from functools import lru_cache

from hfprep.inputs.text.grammar import ChineseGrammar, EnglishGrammar, GrammarFailed, Token

CACHE_SIZE = 20_000  # capitalised chunks (English) or characters (Chinese): about 10 MB when full

# Digits in both widths, the symbols that the grammar reads aloud, the full stop (in "M.V.P"), and both spellings of
# the erhua suffix, as it has a list of such words. It does not accept NUL and lone surrogates.
_CHINESE_TRIGGERS = re.compile("[0-9０-９+=<>.×÷≥≤儿兒\\-\0\ud800-\udfff]")

_LETTER = "A-Za-zÀ-ÖØ-öø-ɏ"
_MARK = ",.!?;:…\"“”‘’'()\\-–—"
_CHUNK = re.compile(
    rf"""["“‘'(]{{0,3}} [{_LETTER}]+ (?:['’\-–—][{_LETTER}]+)* [,.!?;:…)"”’']{{0,5}} | [\-–—…] | \.\.\.""",
    re.VERBOSE,
)
_ENGLISH_TRIGGERS = re.compile(
    r"per\ "  # "per m" is a unit even across the end of one word and the start of the next
    r"|[A-Z]\."  # initials
    r"|,\ *[A-Z][A-Z]"  # Boston, MA
    r"|World\ +War\ +I"
    r"|(?:Mon|Tu|Wed|Thu?r?s?|Fri|Sat|Sun)\.?\ +-"  # Mon - Fri
)
_LOWER_CASE_ENTRIES = "here's|i'm|you're"  # all lower-case entries of the list of abbreviations
_ASKED = re.compile(f"[A-Z]|{_LOWER_CASE_ENTRIES}")
_ENGLISH_TOKEN = re.compile(rf"(?P<letters>[{_LETTER}]+)|(?P<marks>[{_MARK}]+)")


class PlainEnglish:
    """The tokens of plain English texts; caches the tagger's results for chunks."""

    def __init__(self, grammar: EnglishGrammar) -> None:
        self._grammar = grammar
        self._ask = lru_cache(CACHE_SIZE)(self._tag_alone)

    def tokens(self, text: str) -> list[Token] | None:
        """Return the tokens that the tagger would return for a text; None if the tagger has to be run."""
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
            Token("w", (("v", match[0]),)) if match["letters"] else _mark(match[0].replace('"', '\\"'))
            for match in _ENGLISH_TOKEN.finditer(chunk)
        )

    def _tag_alone(self, chunk: str) -> tuple[Token, ...] | None:
        try:
            return tuple(self._grammar.tag(chunk))
        except GrammarFailed:
            return None


def _mark(marks: str) -> Token:
    return Token("p", (("v", marks),))


def _join(tokens: list[Token], spaces: str, following: tuple[Token, ...]) -> None:
    """Append a chunk's tokens; the spaces before it are added to an adjacent mark, if there is one."""
    if spaces and tokens[-1].name == "p":
        tokens[-1] = _mark(tokens[-1].fields[0][1] + spaces)
    elif spaces and following[0].name == "p":
        following = (_mark(spaces + following[0].fields[0][1]), *following[1:])
    tokens.extend(following)


class PlainChinese:
    """The spoken form of plain Chinese texts: that of each character alone."""

    def __init__(self, grammar: ChineseGrammar) -> None:
        self._character = lru_cache(CACHE_SIZE)(grammar.normalize)

    def spoken(self, text: str) -> str | None:
        """Return the grammar's result for a text; None if the grammar has to be run."""
        if _CHINESE_TRIGGERS.search(text):
            return None
        return "".join(map(self._character, text))
