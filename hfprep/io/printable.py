"""Escapes text from data so that it is safe to show in a terminal, a log or Markdown.

A manifest can contain escape sequences, line breaks and bidirectional controls. Showing it must not move the cursor,
set a title, fake a log line or act as markup.
"""

import re

# Control characters (C0, DEL, C1), line and paragraph separators, bidirectional controls, surrogates, byte order mark.
_UNSAFE = re.compile(
    "[\\x00-\\x1f\\x7f-\\x9f\\u061c\\u200e\\u200f\\u2028-\\u202e\\u2066-\\u2069\\ufeff\\ud800-\\udfff]"
)
_UNSAFE_IN_LINES = re.compile(_UNSAFE.pattern.replace("x00-", "x00-\\x09\\x0b-", 1))
_MARKDOWN = re.compile(r"([\\`*_{}\[\]()<>#+!|~&$-])")
INDENT = "    "


def printable(value: object) -> str:
    """A value as text on one line, with control characters escaped (such as \\x1b)."""
    return _UNSAFE.sub(_escape, str(value))


def printable_lines(value: object) -> str:
    """The same for a multi-line message; lines after the first are indented, so that none looks like a new message."""
    return _UNSAFE_IN_LINES.sub(_escape, str(value)).replace("\n", f"\n{INDENT}")


def printable_json(text: str) -> str:
    """JSON text on one line, with control characters as JSON escapes: its value stays the same."""
    return _UNSAFE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def markdown(value: object, longest: int = 80) -> str:
    """A value as literal text in Markdown, on one line, truncated to `longest` characters."""
    text = printable(value)
    return _MARKDOWN.sub(r"\\\1", text if len(text) <= longest else text[: longest - 1] + "\u2026")


def _escape(found: re.Match[str]) -> str:
    code = ord(found[0])
    return {9: "\\t", 10: "\\n", 13: "\\r"}.get(code) or (f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}")
