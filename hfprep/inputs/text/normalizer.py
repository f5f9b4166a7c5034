"""Text normalisation: cleaned text, numbers and symbols as words, punctuation that the tokenizer knows.

Provides `clean` and `TextNormalizer`, whose `normalize` follows the published IndexTTS-2 front end
(indextts/utils/front.py), so that training sees the same tokens as inference. Takes plain strings and a language hint.
Knows nothing about tokens, manifests or audio.
"""

import re
import unicodedata
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Literal

from hfprep.errors import Reason, RejectedSample
from hfprep.inputs.text import language as languages
from hfprep.inputs.text import punctuation
from hfprep.inputs.text.grammar import GrammarFailed
from hfprep.inputs.text.language import detect_language
from hfprep.inputs.text.spoken import Grammars, join_contractions, refuse_half_characters

# Incremented whenever the rules in this folder change the tokens of any text.
NORMALIZER_VERSION = "1"

_SPEAKER_LABEL = re.compile(r"^\s*(?:speaker|spk)\s*\d+\s*[:：]\s*", re.IGNORECASE)
_AMHARIC_LABEL = re.compile(r"^\s*ተናጋሪ\s*\d+\s*[:：]\s*")
_WHITE_SPACE = re.compile(r"\s+")


def clean(text: str) -> str:
    """Return a text without surrounding white space or a leading label such as "speaker 3:", with plain spaces."""
    text = text.strip().replace("\u3000", " ").replace("\xa0", " ")
    return _SPEAKER_LABEL.sub("", text).strip()


class TextNormalizer:
    """Normalises cleaned texts by language; loads a grammar when a text first needs it.

    Thread-safe, and picklable (a copy loads its own grammars).
    """

    def __init__(self, *, grammar_dir: Path | None = None) -> None:
        """`grammar_dir` is the folder of the .fst files (None: the installed package's)."""
        self._grammars = Grammars(grammar_dir)
        self._common_marks = punctuation.PunctuationMap(punctuation.COMMON)
        self._chinese_marks = punctuation.PunctuationMap(punctuation.CHINESE)
        self._amharic_marks = punctuation.PunctuationMap(punctuation.AMHARIC)

    def __reduce__(self) -> tuple[Callable[[], "TextNormalizer"], tuple[()]]:
        return partial(TextNormalizer, grammar_dir=self._grammars.folder), ()

    def normalize(self, text: str, language_hint: str | None = None) -> str:
        """Return the normalised form of a cleaned text; "" only if it has nothing but white space and labels.

        Raises RejectedSample (text_failed if the text is not valid Unicode or the grammar cannot parse it,
        text_too_long if it is far too long for the grammar), and ConfigError if a grammar is not installed.
        """
        refuse_half_characters(text)
        if not text.strip():
            return ""
        language = languages.canonical_language(language_hint) or detect_language(text)
        if language == languages.ENGLISH:
            return self._common_marks(self._spoken(self._grammars.english, text, language))
        if language == languages.CHINESE:
            return self._chinese_marks(self._spoken(self._grammars.chinese, text, language))
        if language == languages.AMHARIC:
            return self._amharic_marks(_tidy(_AMHARIC_LABEL.sub("", text), "NFC")).strip()
        return self._common_marks(_tidy(text, "NFKC")).strip()

    def fingerprint(self) -> str:
        """Return what normalised texts depend on besides the text: versions of the rules, the grammars and Unicode."""
        grammars = self._grammars.fingerprint()
        return f"rules {NORMALIZER_VERSION}, {grammars}, Unicode {unicodedata.unidata_version}"

    def _spoken(self, grammar: Callable[[str], str], text: str, language: str) -> str:
        try:
            spoken = grammar(join_contractions(text))
        except GrammarFailed as error:
            raise RejectedSample(Reason.TEXT_FAILED, f"the {language} grammar failed: {error}") from error
        if not spoken:
            raise RejectedSample(Reason.TEXT_FAILED, f"the {language} grammar returned nothing for {text[:60]!r}")
        return spoken


def _tidy(text: str, form: Literal["NFC", "NFKC"]) -> str:
    return _WHITE_SPACE.sub(" ", unicodedata.normalize(form, text))
