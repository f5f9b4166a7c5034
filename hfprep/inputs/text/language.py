"""Which normalisation rules apply to a text: by a language code, or by the text's script.

Validates language hints, maps them to canonical codes, and detects the language of texts without one. Takes plain
strings. Knows nothing about the rules of a language, or where hints come from.
"""

import difflib
import functools
import re

from hfprep.errors import ConfigError
from hfprep.inputs.text.language_codes import KNOWN_CODES, MEANINGS
from hfprep.inputs.text.protected import TONED_PINYIN

ENGLISH, CHINESE, JAPANESE, AMHARIC = "en", "zh", "ja", "am"

REMEMBERED = 256  # hints: all rows of a manifest have the same few

_ALIASES = {"en": ENGLISH, "zh": CHINESE, "cn": CHINESE, "ja": JAPANESE, "jp": JAPANESE, "am": AMHARIC, "amh": AMHARIC}

# Ethiopic: the basic block (punctuation included), its supplement, extended and extended-A.
_ETHIOPIC = re.compile("[\u1200-\u139f\u2d80-\u2ddf\uab00-\uab2f]")
# Kana in all widths, then marks that only Japanese uses: wave dash, double prime quotes, middle dot and prolonged
# sound mark (both inside the katakana block), ideographic iteration and closing marks.
_JAPANESE = re.compile("[\u3040-\u30ff\u31f0-\u31ff\uff66-\uff9f\u301c-\u301f々〆]")
_CHINESE_CHARACTER = re.compile("[\u4e00-\u9fff]")
_THREE_LETTERS = re.compile("[a-z]{3}")
_LATIN_LETTER = re.compile("[A-Za-z]")


def canonical_language(hint: str | None) -> str | None:
    """Return the code that the rules use for a hint: "CN" -> "zh", "en-US" -> "en", "fr" -> "fr", blank -> None."""
    if hint is None or not hint.strip():
        return None
    code = hint.strip().lower()
    primary = re.split("[-_]", code, maxsplit=1)[0]
    return _ALIASES.get(primary, code)


@functools.lru_cache(maxsize=REMEMBERED)
def read_hint(hint: str) -> str:
    """Return a hint unchanged if its code is known, otherwise the code of the language it names.

    "CN" and "en-US" stay; "english" and "eng" become "en", "Amharic" becomes "am". A three-letter code without a
    shorter form ("gez") stays, too. Raises ValueError, with similar names, for anything else.
    """
    name = " ".join(hint.lower().replace("_", "-").split())
    primary = name.split("-", maxsplit=1)[0]
    if primary in KNOWN_CODES or name in KNOWN_CODES:
        return hint
    for spelling in (name, primary, name.split(" ", maxsplit=1)[0]):  # "Chinese (Taiwan)", too
        if spelling in MEANINGS:
            return MEANINGS[spelling]
    if _THREE_LETTERS.fullmatch(primary):
        return hint
    names = [*MEANINGS, *KNOWN_CODES]
    near = [f"{MEANINGS.get(found, found)} ({found})" for found in difflib.get_close_matches(name, names, n=3)]
    raise ValueError(f"did you mean {' or '.join(near)}?" if near else "such as en, zh, ja or am")


def language_option(value: str | None) -> str | None:
    """Return the hint for a value of --language, None for a blank one; raises ConfigError if it is not a language."""
    if value is None or not value.strip():
        return None
    try:
        return read_hint(value)
    except ValueError as error:
        raise ConfigError(f"--language is {value!r}; it must be a language code; {error}") from None


def detect_language(text: str) -> str:
    """Return "am", "ja", "zh" or "en" from the characters of a text.

    A text without Latin letters counts as Chinese, whose grammar also reads bare numbers, as in the published front
    end (indextts/utils/front.py).
    """
    if _ETHIOPIC.search(text):
        return AMHARIC
    if _JAPANESE.search(text):
        return JAPANESE
    if _CHINESE_CHARACTER.search(text) or not _LATIN_LETTER.search(text) or TONED_PINYIN.search(text):
        return CHINESE
    return ENGLISH
