"""Text as a speaker would read it: cleaned, numbers and symbols as words, punctuation as the tokenizer knows it.

Gives `clean`, `detect_language` and `TextNormalizer`, whose `normalize` follows the published IndexTTS-2 front end
(indextts/utils/front.py), so that training sees the tokens that inference will. Takes plain strings and a language
hint. Does not know tokens, manifests or audio.
"""

import hashlib
import re
import threading
import unicodedata
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Literal

from hfprep.errors import Reason, RejectedSample
from hfprep.inputs.text import language as languages
from hfprep.inputs.text import punctuation
from hfprep.inputs.text.grammar import PACKAGE, VERSION, ChineseGrammar, EnglishGrammar, GrammarFailed, grammar_folder
from hfprep.inputs.text.held import around
from hfprep.inputs.text.language import detect_language
from hfprep.inputs.text.plain import PlainChinese, PlainEnglish

__all__ = ["NORMALIZER_VERSION", "TextNormalizer", "clean", "detect_language"]

# Raised whenever the rules of this room give another token for any text.
NORMALIZER_VERSION = "1"

_SPEAKER_LABEL = re.compile(r"^\s*(?:speaker|spk)\s*\d+\s*[:：]\s*", re.IGNORECASE)
_AMHARIC_LABEL = re.compile(r"^\s*ተናጋሪ\s*\d+\s*[:：]\s*")
# The published front end asks for no word boundary, so "rabbit's" becomes "rabbit is": tokens at training must be the
# tokens at inference.
_CONTRACTED_IS = re.compile(r"(what|where|who|which|how|t?here|it|s?he|that|this)'s", re.IGNORECASE)
# How many capitalised chunks (English) and characters (Chinese) are remembered: some ten megabytes when full.
_CHUNK_CACHE = 20_000
# The grammars take some 180 kB and a millisecond for each character. The models have 600 positions for text: what is
# longer than this is far beyond them, and could take the memory of everything else.
_LONGEST_FOR_GRAMMAR = 5000
_SURROGATE = re.compile("[\ud800-\udfff]")
_WHITE_SPACE = re.compile(r"\s+")


def clean(text: str) -> str:
    """Return a text without outer white space, wide or unbreakable spaces, and a leading label such as "speaker 3:"."""
    text = text.strip().replace("\u3000", " ").replace("\xa0", " ")
    return _SPEAKER_LABEL.sub("", text).strip()


class TextNormalizer:
    """Normalises cleaned texts by language; loads a grammar when a text first needs it.

    Safe to call from several threads, and picklable (a copy loads its own grammars).
    """

    def __init__(self, *, grammar_dir: Path | None = None, cache_size: int = 4096) -> None:
        """Take the folder of the grammars' .fst files (None: the installed package's) and how many texts to keep."""
        self.grammar_dir = grammar_dir
        self.cache_size = cache_size
        self._lock = threading.Lock()
        self._english: Callable[[str], str] | None = None
        self._chinese: Callable[[str], str] | None = None
        self._common_marks = punctuation.PunctuationMap(punctuation.COMMON)
        self._chinese_marks = punctuation.PunctuationMap(punctuation.CHINESE)
        self._amharic_marks = punctuation.PunctuationMap(punctuation.AMHARIC)

    def __reduce__(self) -> tuple[Callable[..., "TextNormalizer"], tuple[Path | None, int]]:
        return _rebuild, (self.grammar_dir, self.cache_size)

    def normalize(self, text: str, language_hint: str | None = None) -> str:
        """Return the normalised form of a cleaned text; "" only where nothing but white space and labels is in it.

        Raises RejectedSample, text_failed where the text is no valid Unicode or the grammar has no reading of it,
        text_too_long where it is far too long for the grammar; ConfigError where a grammar is not installed.
        """
        surrogate = _SURROGATE.search(text)
        if surrogate:
            raise RejectedSample(
                Reason.TEXT_FAILED,
                f"the text holds half a character (U+{ord(surrogate[0]):04X} at position {surrogate.start()}): "
                "it was cut or wrongly decoded; write the whole character, or remove it",
            )
        if not text.strip():
            return ""
        language = languages.canonical_language(language_hint) or detect_language(text)
        if language == languages.ENGLISH:
            return self._common_marks(self._spoken(self._english_grammar(), text, language))
        if language == languages.CHINESE:
            return self._chinese_marks(self._spoken(self._chinese_grammar(), text, language))
        if language == languages.AMHARIC:
            return self._amharic_marks(_tidy(_AMHARIC_LABEL.sub("", text), "NFC")).strip()
        return self._common_marks(_tidy(text, "NFKC")).strip()

    def fingerprint(self) -> str:
        """Return what the normalised texts depend on besides the text: the rules' version, the grammars and Unicode."""
        grammars = f"{PACKAGE} {VERSION}" if self.grammar_dir is None else f"grammars {_sha256(self.grammar_dir)}"
        return f"rules {NORMALIZER_VERSION}, {grammars}, Unicode {unicodedata.unidata_version}"

    def _spoken(self, grammar: Callable[[str], str], text: str, language: str) -> str:
        text = _CONTRACTED_IS.sub(r"\1 is", text)
        try:
            spoken = grammar(text)
        except GrammarFailed as error:
            raise RejectedSample(Reason.TEXT_FAILED, f"the {language} grammar failed: {error}") from error
        if not spoken:
            raise RejectedSample(Reason.TEXT_FAILED, f"the {language} grammar made nothing of {text[:60]!r}")
        return spoken

    def _english_grammar(self) -> Callable[[str], str]:
        with self._lock:
            if self._english is None:
                self._english = _english(EnglishGrammar(self._folder()), self.cache_size)
            return self._english

    def _chinese_grammar(self) -> Callable[[str], str]:
        with self._lock:
            if self._chinese is None:
                self._chinese = _chinese(ChineseGrammar(self._folder()), self.cache_size)
            return self._chinese

    def _folder(self) -> Path:
        return self.grammar_dir if self.grammar_dir is not None else grammar_folder()


def _rebuild(grammar_dir: Path | None, cache_size: int) -> TextNormalizer:
    return TextNormalizer(grammar_dir=grammar_dir, cache_size=cache_size)


def _sha256(grammar_dir: Path) -> str:
    digest = hashlib.sha256()
    for grammar in (EnglishGrammar(grammar_dir), ChineseGrammar(grammar_dir)):
        for path in grammar.files:
            digest.update(path.read_bytes())
    return digest.hexdigest()


def _english(grammar: EnglishGrammar, cache_size: int) -> Callable[[str], str]:
    """The grammar behind its fast path and its memory."""
    plain = PlainEnglish(grammar, cache_size=_CHUNK_CACHE)
    remembered = lru_cache(cache_size)(grammar.normalize)

    def spoken(text: str) -> str:
        tokens = plain.tokens(text)
        return remembered(_readable(text)) if tokens is None else grammar.verbalize(tokens)

    return spoken


def _chinese(grammar: ChineseGrammar, cache_size: int) -> Callable[[str], str]:
    """The grammar behind its fast path, its memory, and what it must not read."""
    plain = PlainChinese(grammar, cache_size=_CHUNK_CACHE)
    remembered = lru_cache(cache_size)(grammar.normalize)

    def spoken(text: str) -> str:
        result = plain.spoken(text)
        return remembered(_readable(text)) if result is None else result

    return lambda text: around(text.rstrip(), spoken)


def _readable(text: str) -> str:
    if len(text) > _LONGEST_FOR_GRAMMAR:
        raise RejectedSample(
            Reason.TEXT_TOO_LONG,
            f"the text has {len(text)} characters; one with numbers or symbols can have {_LONGEST_FOR_GRAMMAR}. "
            "Cut the sample into sentences",
        )
    return text


def _tidy(text: str, form: Literal["NFC", "NFKC"]) -> str:
    return _WHITE_SPACE.sub(" ", unicodedata.normalize(form, text))
