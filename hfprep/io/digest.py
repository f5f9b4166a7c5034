"""A short hash of any JSON value."""

import hashlib
import json
from typing import Any

DIGEST_BYTES = 16


def digest(value: Any) -> bytes:
    """A 16-byte hash of a JSON value, independent of the order of its keys."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=DIGEST_BYTES).digest()
