"""Which texts without a language get the Chinese or English grammar though they are hardly in that language.

The published front end chooses by script (see `detect_language`): whatever has no Latin letter is Chinese to it, and
what has one is English. So `150 рублей` becomes `幺五零 рублей`, and `3,50 Euro` becomes `three,fifty Euro`. Takes
plain strings.
"""

import unicodedata
from collections import Counter
from dataclasses import dataclass

from hfprep.inputs.text.language import CHINESE, ENGLISH, detect_language
from hfprep.inputs.text.normalizer import clean

OTHER_LATIN = "Latin with letters that English lacks"
DIGITS_ALONE = "digits without letters"
LANGUAGE_NAMES = {ENGLISH: "English", CHINESE: "Chinese"}


@dataclass(frozen=True, slots=True)
class DoubtfulGrammar:
    """The language whose grammar a text gets, and the script (or lack of one) that speaks against it."""

    language: str
    script: str


def doubtful_grammar(text: str) -> DoubtfulGrammar | None:
    """What is doubtful about the grammar of a text without a language; None where its script fits, or it gets none."""
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
    if language == CHINESE and any(character.isdecimal() for character in text):
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
