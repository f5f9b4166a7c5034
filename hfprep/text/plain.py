r"""Plain sentences past the slow half of a grammar: the tokens that the tagger would give, found without running it.

Gives one class a language, which returns a text's tokens (or its spoken form) where it can vouch for them, else None.
Takes the grammar itself, which answers for single chunks and characters. Does not know languages' codes, nor what
becomes of the tokens.

What it rests on, checked on the compiled taggers of WeTextProcessing 1.0.4.1 by composing them with the language of
plain texts (all of it, not a sample) and walking every path:

- Chinese: a text without any character of `_CHINESE_TRIGGERS` has one reading, a `char` token for each character.
- English: a text of the chunks of `_CHUNK` outside `_ENGLISH_TRIGGERS` and without capitals has no reading with other
  tokens than `w` (letters) and `p` (marks); the cheapest makes one `w` of each run of letters, one `p` of each run of
  marks, and gives spaces beside marks to the first of them. With capitals there are others (Mr, Sat, Abp), but none
  that reaches over a space: so a chunk with capitals is plain if the tagger, given it alone, makes but w and p of it.
"""

import re
from functools import lru_cache

from hfprep.text.grammar import ChineseGrammar, EnglishGrammar, GrammarFailed, Token

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
    r"|here's|i'm|you're"
)
_CAPITAL = re.compile("[A-Z]")
_ENGLISH_TOKEN = re.compile(rf"(?P<letters>[{_LETTER}]+)|(?P<marks>\ *[{_MARK}]+\ *)")


class PlainEnglish:
    """The tokens of plain English texts; remembers which chunks the tagger leaves alone."""

    def __init__(self, grammar: EnglishGrammar, *, cache_size: int) -> None:
        self._grammar = grammar
        self._is_plain = lru_cache(cache_size)(self._ask)

    def tokens(self, text: str) -> list[Token] | None:
        """Return the tokens that the tagger would give for a text, or None where only the tagger knows."""
        chunks = text.split(" ")
        if not chunks[0] or not chunks[-1] or _ENGLISH_TRIGGERS.search(text):
            return None
        if not all(self._is_plain(chunk) for chunk in chunks if chunk):
            return None
        return [
            Token("w", (("v", match[0]),)) if match["letters"] else Token("p", (("v", match[0].replace('"', '\\"')),))
            for match in _ENGLISH_TOKEN.finditer(text)
        ]

    def _ask(self, chunk: str) -> bool:
        if _CHUNK.fullmatch(chunk) is None:
            return False
        if not _CAPITAL.search(chunk):
            return True
        try:
            return all(token.name in ("w", "p") for token in self._grammar.tag(chunk))
        except GrammarFailed:
            return False


class PlainChinese:
    """The spoken form of plain Chinese texts: each character as the grammar writes it when it stands alone."""

    def __init__(self, grammar: ChineseGrammar, *, cache_size: int) -> None:
        self._character = lru_cache(cache_size)(grammar.normalize)

    def spoken(self, text: str) -> str | None:
        """Return what the grammar would make of a text, or None where only the grammar knows."""
        if _CHINESE_TRIGGERS.search(text):
            return None
        return "".join(map(self._character, text))
