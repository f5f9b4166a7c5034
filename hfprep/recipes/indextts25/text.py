"""Token ids of a text for IndexTTS-2.5, with the normalisation steps of its inference code.

Provides `TextEncoder`: text and language code in, int32 ids out, and every stage in between. Source: IndexTTS-2.5's
infer_v2_5.py and utils/front.py.

The rules differ from IndexTTS-2's: the punctuation table is applied before the grammars (which see "8,00" for "8:00"),
the grammar is chosen by the text and not by the language, and nothing is stripped.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import numpy as np

from hfprep.errors import Reason, RejectedSample
from hfprep.inputs.text import punctuation
from hfprep.inputs.text.grammar import GrammarFailed
from hfprep.inputs.text.protected import TONED_PINYIN, letters
from hfprep.inputs.text.spoken import Grammars, join_contractions, refuse_half_characters
from hfprep.inputs.text.tokenizer import TextStages, Tokenized
from hfprep.recipes.indextts25 import japanese
from hfprep.recipes.indextts25.glossary import Glossary
from hfprep.recipes.indextts25.vocabulary import DROPPED_IDS, MAX_CHARACTERS, Vocabulary

TEXT_VERSION = "1"  # raise it when a change in this module changes any text's tokens

SPOKEN_LANGUAGES = ("zh", "zhen", "en")
LOWER_CASE_LANGUAGES = (*SPOKEN_LANGUAGES, "ja")

_READING = re.compile(r"<([^|>\n]+)\|([^>\n]+)>")  # <surface|pronunciation>
_TOKEN = re.compile(r"<\|([^|]+)\|>")
_KANA = re.compile("[\u3040-\u309f]+|[\u30a0-\u30ff]+")
_CHINESE_CHARACTER = re.compile("[\u4e00-\u9fff]")
_LATIN_LETTER = re.compile("[A-Za-z]")
_MAIL_ADDRESS = re.compile("[a-zA-Z0-9]+@[a-zA-Z0-9]+[.][a-zA-Z]+")
_HYPHENED = re.compile("[A-Za-z][A-Za-z0-9]*(?:-[A-Za-z0-9]+)+")  # GPT-5-nano
_SHIELD = "<H>"
_SHIELDED = re.compile(rf"\s*{_SHIELD}\s*")

_COMMON_MARKS = punctuation.PunctuationMap(punctuation.COMMON)
_CHINESE_MARKS = punctuation.PunctuationMap(punctuation.CHINESE)


class TextEncoder:
    """Text to ids. Thread-safe, and picklable (a copy reopens the files)."""

    def __init__(self, vocabulary: Path, *, glossary: Path | None = None) -> None:
        """Read the vocabulary and the glossary; raises ConfigError if one is missing or not valid."""
        self.vocabulary = Vocabulary(vocabulary)
        self.glossary = Glossary() if glossary is None else Glossary.read(glossary)
        self._again = partial(TextEncoder, Path(vocabulary), glossary=glossary)
        self._grammars = Grammars()
        self._japanese = japanese.JapaneseWords()

    def __reduce__(self) -> tuple[Callable[[], TextEncoder], tuple[()]]:
        return self._again, ()

    @property
    def vocab_size(self) -> int:
        """The number of ids."""
        return self.vocabulary.size

    def fingerprint(self) -> str:
        """Everything that the ids depend on, apart from the text and its language."""
        rules = f"rules {TEXT_VERSION}, {self._grammars.fingerprint()}, {japanese.versions()}"
        files = f"vocabulary {self.vocabulary.sha256}, glossary {self.glossary.sha256}"
        return f"{rules}, Unicode {unicodedata.unidata_version}, {files}"

    def encode(self, text: str, language: str | None = None) -> np.ndarray:
        """The model's ids of a text, int32 (text_len,), without start and stop tokens.

        Raises RejectedSample: empty_text if there is nothing to say, text_failed if the text cannot be encoded or the
        grammar cannot read it, text_too_long if it has more than `MAX_CHARACTERS`.
        """
        return self._ids(self._spoken_stages(text, language), language)

    def tokenize(self, text: str, language: str | None = None) -> Tokenized:
        """A text's ids with all stages and pieces; raises as `encode` does. No piece is unknown: others are bytes."""
        stages = self._spoken_stages(text, language)
        ids = self._ids(stages, language)
        return Tokenized(stages, ids, tuple(self.vocabulary.pieces(ids.tolist())), ())

    def doubt(self, text: str, language: str | None) -> None:
        """Always None: a text without a language gets no grammar here."""

    def all_ids(self, stages: TextStages, language: str | None) -> list[int]:
        """The vocabulary's ids of the last stage, of which the model gets all but `DROPPED_IDS`."""
        return self.vocabulary.encode(f"<|{_code(language)}|> {stages.tokenizer_input}")

    def stages(self, text: str, language: str | None = None) -> TextStages:
        """A text before tokenization; raises RejectedSample, text_failed or text_too_long, as `encode` does."""
        _check(text)
        code = _code(language)
        cleaned = _COMMON_MARKS(text)
        normalized = self._spoken(cleaned) if code in SPOKEN_LANGUAGES else cleaned
        final = normalized
        if code in LOWER_CASE_LANGUAGES:
            final = final.lower()
        elif code == "es":
            final = final.upper()
        final = _READING.sub(_pronounced, final)
        if code == "ja":
            final = self._japanese(final)
        return TextStages(cleaned, normalized, _TOKEN.sub(lambda match: f"<|{match[1].upper()}|>", final))

    def _spoken_stages(self, text: str, language: str | None) -> TextStages:
        stages = self.stages(text, language)
        if not text.strip():
            raise RejectedSample(Reason.EMPTY_TEXT, f"nothing is spoken in the text {text[:60]!r}")
        if not stages.normalized.strip():
            raise RejectedSample(Reason.TEXT_FAILED, f"the zh grammar cannot parse {text[:60]!r}")
        return stages

    def _ids(self, stages: TextStages, language: str | None) -> np.ndarray:
        return np.array([number for number in self.all_ids(stages, language) if number not in DROPPED_IDS], np.int32)

    def _spoken(self, text: str) -> str:
        """A Chinese or English text with numbers and symbols as words; "" if the Chinese grammar cannot read it."""
        text, hidden = _hide_readings(text)
        chinese = _reads_as_chinese(text)
        text = self.glossary.apply(join_contractions(text), "zh" if chinese else "en")
        shielded = _HYPHENED.sub(lambda match: match[0].replace("-", _SHIELD), text.rstrip() if chinese else text)
        any_shield = _HYPHENED.search(text) is not None
        try:
            spoken = self._grammars.chinese(shielded) if chinese else self._grammars.english(shielded)
            spoken = _SHIELDED.sub("-", spoken) if any_shield else spoken
        except GrammarFailed:  # for example, on a no-break space
            spoken = "" if chinese else text
        spoken = (_CHINESE_MARKS if chinese else _COMMON_MARKS)(spoken)
        for stand_in, reading in hidden.items():
            spoken = spoken.replace(stand_in, reading)
        return spoken


def _code(language: str | None) -> str:
    return (language or "").lower()


def _check(text: str) -> None:
    refuse_half_characters(text)
    if len(text) > MAX_CHARACTERS:
        raise RejectedSample(
            Reason.TEXT_TOO_LONG,
            f"the text has {len(text):,} characters, more than {MAX_CHARACTERS:,}: no model has positions "
            "for so many. Split the sample into sentences",
        )


def _reads_as_chinese(text: str) -> bool:
    """Whether a text is for the Chinese grammar, which also reads bare numbers."""
    return (
        _CHINESE_CHARACTER.search(text) is not None
        or _LATIN_LETTER.search(text) is None
        or _MAIL_ADDRESS.fullmatch(text) is not None
        or TONED_PINYIN.search(text) is not None
    )


def _hide_readings(text: str) -> tuple[str, Mapping[str, str]]:
    """A text with a placeholder for each <surface|pronunciation>, and what each placeholder replaces."""
    hidden: dict[str, str] = {}

    def hide(match: re.Match[str]) -> str:
        stand_in = f"HELDREADING{letters(len(hidden))}HELDREADING"
        hidden[stand_in] = match[0]
        return stand_in

    return _READING.sub(hide, text), hidden


def _pronounced(match: re.Match[str]) -> str:
    """The model's form of <surface|pronunciation>: kana unchanged, others in capitals between two special tokens."""
    reading = match[2].upper()
    if _KANA.fullmatch(reading):
        return f" {reading} "
    token = "<|SPECIAL_TOKEN_2|>" if _CHINESE_CHARACTER.search(match[1]) else "<|SPECIAL_TOKEN_1|>"
    return f"{token}{reading}{token}"
