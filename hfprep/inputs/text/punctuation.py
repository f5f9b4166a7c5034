"""The punctuation marks that the tokenizer knows, and what the others become.

Gives one function over plain strings and the tables it uses. Does not know which language a text is in.
"""

import re

# The order matters: at each place the first entry that fits wins, so that a full-width comma is a comma three times
# over before three of them could be an ellipsis.
COMMON: dict[str, str] = (
    dict.fromkeys("：；;，、:", ",")
    | {"。": ".", "！": "!", "？": "?", "\n": " "}
    | dict.fromkeys("·—～~", "-")
    | dict.fromkeys(("...", ",,,", "，，，", "……"), "…")
    | dict.fromkeys('“”"‘’（）()《》【】[]「」', "'")
)
CHINESE: dict[str, str] = {"$": "."} | COMMON
AMHARIC: dict[str, str] = {
    "።": ".",
    "፣": ",",
    "፤": ";",
    "፥": ":",
    "፦": ":",
    "፧": "?",
    "፨": "!",
    "፡": " ",
} | COMMON


class PunctuationMap:
    """Replaces marks by a table, longest not first but in the table's order, in one pass (nothing is mapped twice)."""

    def __init__(self, table: dict[str, str]) -> None:
        self._table = dict(table)
        self._pattern = re.compile("|".join(map(re.escape, self._table)))

    def __call__(self, text: str) -> str:
        """Return the text with each mark of the table replaced."""
        return self._pattern.sub(lambda match: self._table[match.group()], text)
