"""Text and JSON that can be encoded as UTF-8."""

import json
from typing import Any


def is_encodable(text: str) -> bool:
    """Whether a text can be encoded as UTF-8: a lone surrogate cannot."""
    if text.isascii():
        return True
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def json_text(value: Any) -> str:
    """A value as JSON that can be encoded as UTF-8; escaped only if it contains a lone surrogate."""
    text = json.dumps(value, ensure_ascii=False)
    return text if is_encodable(text) else json.dumps(value)
