"""Text that comes from data, made safe to show: in a terminal, in a log, in a page of Markdown.

A manifest can hold escape sequences, line ends and marks that turn the direction of what follows. What is shown of it
must not move a cursor, set a title, look like another line of a log, or be markup.
"""

import re

# Control characters (C0, DEL, C1), line and paragraph separators, marks of direction, surrogates, a byte order mark.
_UNSAFE = re.compile(
    "[\\x00-\\x1f\\x7f-\\x9f\\u061c\\u200e\\u200f\\u2028-\\u202e\\u2066-\\u2069\\ufeff\\ud800-\\udfff]"
)
_UNSAFE_IN_LINES = re.compile(_UNSAFE.pattern.replace("x00-", "x00-\\x09\\x0b-", 1))
_MARKDOWN = re.compile(r"([\\`*_{}\[\]()<>#+!|~&$-])")
INDENT = "    "


def printable(value: object) -> str:
    """A value as text on one line: whatever could act on a terminal or a log as an escape such as \\x1b."""
    return _UNSAFE.sub(_escape, str(value))


def printable_lines(value: object) -> str:
    """The same for a message of several lines: those after the first are indented, so that none begins like another."""
    return _UNSAFE_IN_LINES.sub(_escape, str(value)).replace("\n", f"\n{INDENT}")


def printable_json(text: str) -> str:
    """JSON text on one line with whatever could act on a terminal as JSON's own escapes: it says the same."""
    return _UNSAFE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def markdown(value: object, longest: int = 80) -> str:
    """A value as plain words in Markdown, on one line, cut to a length."""
    text = printable(value)
    return _MARKDOWN.sub(r"\\\1", text if len(text) <= longest else text[: longest - 1] + "\u2026")


def _escape(found: re.Match[str]) -> str:
    code = ord(found[0])
    return {9: "\\t", 10: "\\n", 13: "\\r"}.get(code) or (f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}")
