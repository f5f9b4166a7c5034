"""Protects parts of a Chinese text from the grammar: pinyin with a tone digit, and hyphenated foreign names.

They are replaced by placeholders, and get their final spelling afterwards. Takes plain strings and, for
`normalize_around`, the function that normalises the rest. Knows nothing about the grammar itself.
"""

import re
from collections.abc import Callable, Iterator
from itertools import count

_FINALS = "|".join(
    (
        "i?ang|i?ong|[uvü]ang|[ei]ng|ian|iao|uai|[uvü]an",
        "[aeiuv]n|[ae]i|u[aio]|ao|ou|i[aeu]|[uvü]e|[aeiouüv]",
    )
)
# The look-behind includes capitals, since the pattern ignores case: neither beta1 nor BETA1 is pinyin.
TONED_PINYIN = re.compile(rf"(?<![a-z])(?:(?:[zcs]h|[bpmfdtnlgkhjqxzcsryw])?(?:{_FINALS})|ng|er)[1-5]", re.IGNORECASE)
# The look-behind does not change matches; without it, a long text without names takes quadratic time.
_NAME = re.compile("(?<![\u4e00-\u9fff])[\u4e00-\u9fff]+(?:[-·—][\u4e00-\u9fff]+){1,2}")
_AFTER_JQX = re.compile(r"([jqx])[uü](n|e|an)?(?=[1-5])", re.IGNORECASE)


def spell_pinyin(syllable: str) -> str:
    """Return a toned syllable as the tokenizer was trained: after j, q and x, u becomes v, and all letters capitals."""
    if syllable[0] not in "jqxJQX":
        return syllable
    return _AFTER_JQX.sub(r"\1v\2", syllable).upper()


def normalize_around(text: str, normalize: Callable[[str], str]) -> str:
    """Normalise a text except for its pinyin and names.

    The grammar reads the text once, with placeholders, as in the published front end. If it consumed a placeholder
    ("<n_a>=3" is read as "greater or equal"), the parts between are normalised one by one.
    """
    pieces = list(_pieces(text))
    if not pieces:
        return normalize(text)
    placeholders = _placeholders(text, pieces)
    result = normalize("".join(placeholders.get(piece, piece[1]) for piece in pieces))
    if all(result.count(placeholder) == pieces.count(piece) for piece, placeholder in placeholders.items()):
        for piece, placeholder in placeholders.items():
            result = result.replace(placeholder, _spelled(piece))
        return result
    return "".join(
        _spelled(piece) if piece[0] else (normalize(piece[1]) if piece[1].strip() else piece[1]) for piece in pieces
    )


# A piece is its kind ("pinyin", "n" for a name, "" for other text) and its characters.
_Piece = tuple[str, str]


def _spelled(piece: _Piece) -> str:
    return spell_pinyin(piece[1]) if piece[0] == "pinyin" else piece[1]


def _pieces(text: str) -> Iterator[_Piece]:
    """Split a text into protected pieces and other text; pinyin takes precedence over names."""
    for kind, part in _cut("pinyin", TONED_PINYIN, text):
        if kind:
            yield kind, part
        else:
            yield from _cut("n", _NAME, part)


def _cut(kind: str, pattern: re.Pattern[str], text: str) -> Iterator[_Piece]:
    end = 0
    for match in pattern.finditer(text):
        if match.start() > end:
            yield "", text[end : match.start()]
        yield kind, match.group()
        end = match.end()
    if end < len(text):
        yield "", text[end:]


def _placeholders(text: str, pieces: list[_Piece]) -> dict[_Piece, str]:
    """A placeholder for each distinct protected piece; none of them occurs in the text."""
    result: dict[_Piece, str] = {}
    for kind in ("pinyin", "n"):
        names = (f"<{kind}_{letters(number)}>" for number in count())  # <n_a>, <n_b>, ... <n_z>, <n_aa>, <n_ab>, ...
        free = (name for name in names if name not in text)
        for piece in pieces:
            if piece[0] == kind and piece not in result:
                result[piece] = next(free)
    return result


def letters(number: int) -> str:
    """0 to 25 are a to z, then aa, ab, ...: a number that no grammar turns into words."""
    found = ""
    while number >= 0:
        found = chr(ord("a") + number % 26) + found
        number = number // 26 - 1
    return found
