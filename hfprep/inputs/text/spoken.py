"""Verbalizes numbers and symbols in English and Chinese text: the grammars with their fast paths and caches.

Provides `Grammars`, one object for both languages, and the steps before them. Takes strings. Knows nothing about
language codes or punctuation tables, which differ between model families.
"""

import hashlib
import re
import threading
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

from hfprep.errors import Reason, RejectedSample
from hfprep.inputs.text.grammar import PACKAGE, VERSION, ChineseGrammar, EnglishGrammar, grammar_folder
from hfprep.inputs.text.plain import PlainChinese, PlainEnglish
from hfprep.inputs.text.protected import normalize_around

# The published front end does not require a word boundary, so "rabbit's" becomes "rabbit is". This must stay the same:
# training needs the tokens of inference.
_CONTRACTED_IS = re.compile(r"(what|where|who|which|how|t?here|it|s?he|that|this)'s", re.IGNORECASE)
TEXT_CACHE = 4096  # texts
# The grammars take about 180 kB and 1 ms per character. The models have 600 positions for text: longer texts are of no
# use to them, and could exhaust the memory.
_LONGEST_FOR_GRAMMAR = 5000
_SURROGATE = re.compile("[\ud800-\udfff]")

_Load = Callable[[Path], Callable[[str], str]]  # from the folder of the .fst files


def join_contractions(text: str) -> str:
    """The text with "what's", "it's" and so on expanded to "what is", "it is"."""
    return _CONTRACTED_IS.sub(r"\1 is", text)


def refuse_half_characters(text: str) -> None:
    """Raise RejectedSample, text_failed, for a text that is not valid Unicode."""
    surrogate = _SURROGATE.search(text)
    if surrogate:
        raise RejectedSample(
            Reason.TEXT_FAILED,
            f"the text contains an incomplete character (U+{ord(surrogate[0]):04X} at position {surrogate.start()}): "
            "it was truncated or decoded wrongly; correct or remove it",
        )


class Grammars:
    """Both grammars, each loaded when a text first needs it. Thread-safe."""

    def __init__(self, folder: Path | None = None) -> None:
        """`folder` contains the .fst files (None: the installed package's)."""
        self.folder = folder
        self._lock = threading.Lock()
        self._loaded: dict[_Load, Callable[[str], str]] = {}

    def english(self, text: str) -> str:
        """The spoken form of an English text.

        Raises GrammarFailed if the grammar cannot parse it, RejectedSample (text_too_long) if it is far too long for
        the grammar, and ConfigError if the grammar is not installed.
        """
        return self._of(_english)(text)

    def chinese(self, text: str) -> str:
        """The spoken form of a Chinese text, except for pinyin and foreign names; raises as `english` does."""
        return self._of(_chinese)(text)

    def _of(self, load: _Load) -> Callable[[str], str]:
        with self._lock:
            if load not in self._loaded:
                self._loaded[load] = load(self.folder or grammar_folder())
            return self._loaded[load]

    def fingerprint(self) -> str:
        """What spoken forms depend on besides the text and these rules."""
        if self.folder is None:
            return f"{PACKAGE} {VERSION}"
        files = EnglishGrammar(self.folder).files + ChineseGrammar(self.folder).files
        return f"grammars {hashlib.sha256(b''.join(path.read_bytes() for path in files)).hexdigest()}"


def _english(folder: Path) -> Callable[[str], str]:
    """The grammar with its fast path and its cache."""
    grammar = EnglishGrammar(folder)
    plain = PlainEnglish(grammar)
    cached = lru_cache(TEXT_CACHE)(grammar.normalize)

    def spoken(text: str) -> str:
        tokens = plain.tokens(text)
        return cached(_length_checked(text)) if tokens is None else grammar.verbalize(tokens)

    return spoken


def _chinese(folder: Path) -> Callable[[str], str]:
    """The grammar with its fast path, its cache, and the protection of pinyin and names."""
    grammar = ChineseGrammar(folder)
    plain = PlainChinese(grammar)
    cached = lru_cache(TEXT_CACHE)(grammar.normalize)

    def spoken(text: str) -> str:
        result = plain.spoken(text)
        return cached(_length_checked(text)) if result is None else result

    return lambda text: normalize_around(text.rstrip(), spoken)


def _length_checked(text: str) -> str:
    if len(text) > _LONGEST_FOR_GRAMMAR:
        raise RejectedSample(
            Reason.TEXT_TOO_LONG,
            f"the text has {len(text)} characters; with numbers or symbols it can have up to {_LONGEST_FOR_GRAMMAR}. "
            "Split the sample into sentences",
        )
    return text
