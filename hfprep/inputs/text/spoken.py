"""Verbalizes numbers and symbols in English and Chinese text: the grammars with their fast paths and caches.

Provides `Grammars`, one object for both languages, and the steps before them. Takes strings. Knows nothing about
language codes or punctuation tables, which differ between model families.
"""

from __future__ import annotations

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
# Capitalised chunks (English) and characters (Chinese) to cache: about 10 MB when full.
_CHUNK_CACHE = 20_000
TEXT_CACHE = 4096
# The grammars take about 180 kB and 1 ms per character. The models have 600 positions for text: longer texts are of no
# use to them, and could exhaust the memory.
_LONGEST_FOR_GRAMMAR = 5000
_SURROGATE = re.compile("[\ud800-\udfff]")


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

    def __init__(self, folder: Path | None = None, *, cache_size: int = TEXT_CACHE) -> None:
        """`folder` contains the .fst files (None: the installed package's); `cache_size` is in texts."""
        self.folder = folder
        self.cache_size = cache_size
        self._lock = threading.Lock()
        self._english: Callable[[str], str] | None = None
        self._chinese: Callable[[str], str] | None = None

    def english(self, text: str) -> str:
        """The spoken form of an English text.

        Raises GrammarFailed if the grammar cannot parse it, RejectedSample (text_too_long) if it is far too long for
        the grammar, and ConfigError if the grammar is not installed.
        """
        with self._lock:
            if self._english is None:
                self._english = _english(EnglishGrammar(self._folder()), self.cache_size)
        return self._english(text)

    def chinese(self, text: str) -> str:
        """The spoken form of a Chinese text, except for pinyin and foreign names; raises as `english` does."""
        with self._lock:
            if self._chinese is None:
                self._chinese = _chinese(ChineseGrammar(self._folder()), self.cache_size)
        return self._chinese(text)

    def fingerprint(self) -> str:
        """What spoken forms depend on besides the text and these rules."""
        return f"{PACKAGE} {VERSION}" if self.folder is None else f"grammars {_sha256(self.folder)}"

    def _folder(self) -> Path:
        return self.folder if self.folder is not None else grammar_folder()


def _sha256(folder: Path) -> str:
    digest = hashlib.sha256()
    for grammar in (EnglishGrammar(folder), ChineseGrammar(folder)):
        for path in grammar.files:
            digest.update(path.read_bytes())
    return digest.hexdigest()


def _english(grammar: EnglishGrammar, cache_size: int) -> Callable[[str], str]:
    """The grammar with its fast path and its cache."""
    plain = PlainEnglish(grammar, cache_size=_CHUNK_CACHE)
    cached = lru_cache(cache_size)(grammar.normalize)

    def spoken(text: str) -> str:
        tokens = plain.tokens(text)
        return cached(_length_checked(text)) if tokens is None else grammar.verbalize(tokens)

    return spoken


def _chinese(grammar: ChineseGrammar, cache_size: int) -> Callable[[str], str]:
    """The grammar with its fast path, its cache, and the protection of pinyin and names."""
    plain = PlainChinese(grammar, cache_size=_CHUNK_CACHE)
    cached = lru_cache(cache_size)(grammar.normalize)

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
