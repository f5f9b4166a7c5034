"""Finds texts without a language that get the Chinese or English grammar but are probably in another language.

The published front end chooses by script (see `detect_language`): text without Latin letters is Chinese, other text is
English. So `150 рублей` becomes `幺五零 рублей`, and `3,50 Euro` becomes `three,fifty Euro`. Takes plain strings.
"""

import unicodedata
from collections import Counter
from dataclasses import dataclass

from hfprep.inputs.text.language import CHINESE, ENGLISH, detect_language
from hfprep.inputs.text.normalizer import clean

OTHER_LATIN = "Latin with non-English letters"
DIGITS_ALONE = "digits without letters"
LANGUAGE_NAMES = {ENGLISH: "English", CHINESE: "Chinese"}


@dataclass(frozen=True, slots=True)
class DoubtfulGrammar:
    """The language whose grammar a text gets, and the script (or lack of one) that makes this doubtful."""

    language: str
    script: str

    def __str__(self) -> str:
        return f"without a language treated as {LANGUAGE_NAMES[self.language]} by script ({self.script})"


def doubtful_grammar(text: str) -> DoubtfulGrammar | None:
    """Why the grammar of a text without a language is doubtful; None if its script fits or it gets no grammar."""
    text = clean(text)
    language = detect_language(text)
    if language not in (ENGLISH, CHINESE) or (language == ENGLISH and text.isascii()):
        return None
    scripts = Counter(_script(character) for character in text if character.isalpha())
    if language == ENGLISH:
        del scripts["English"], scripts["Cjk"]
    elif scripts["Cjk"] or scripts["English"]:  # with toned pinyin
        return None
    if scripts:
        return DoubtfulGrammar(language, min(scripts, key=lambda script: (-scripts[script], script)))
    if language == CHINESE and has_digits(text):
        return DoubtfulGrammar(language, DIGITS_ALONE)
    return None


def has_digits(text: str) -> bool:
    """Whether a text has a digit, of any script."""
    return any(character.isdecimal() for character in text)


def _script(letter: str) -> str:
    if letter.isascii():
        return "English"
    script = unicodedata.name(letter, "unnamed").split()[0].title()
    if script == "Fullwidth":
        return "English"
    return OTHER_LATIN if script == "Latin" else script
