"""Maps punctuation marks to those that the tokenizer knows.

Provides one callable over plain strings and its tables. Knows nothing about the language of a text.
"""

import re

# The order matters: the first entry that matches wins, so three full-width commas become three commas, not an ellipsis.
COMMON: dict[str, str] = (
    dict.fromkeys("：；;，、:", ",")
    | {"。": ".", "！": "!", "？": "?", "\n": " "}
    | dict.fromkeys("·—～~", "-")
    | dict.fromkeys(("...", ",,,", "，，，", "……"), "…")
    | dict.fromkeys('“”"‘’（）()《》【】[]「」', "'")
)
CHINESE: dict[str, str] = {"$": "."} | COMMON
AMHARIC: dict[str, str] = dict(zip("።፣፤፥፦፧፨፡", ".,;::?! ", strict=True)) | COMMON


class PunctuationMap:
    """Replaces marks by a table in one pass (nothing is mapped twice), trying entries in the table's order."""

    def __init__(self, table: dict[str, str]) -> None:
        self._table = dict(table)
        self._pattern = re.compile("|".join(map(re.escape, self._table)))

    def __call__(self, text: str) -> str:
        """Return the text with each mark of the table replaced."""
        return self._pattern.sub(lambda match: self._table[match.group()], text)
