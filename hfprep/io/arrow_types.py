"""Kinds of Arrow types, regardless of their encoding."""

from typing import Any

import pyarrow as pa


def holds_clips(kind: Any) -> bool:
    """Whether values of an Arrow type are plain bytes."""
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind))


def holds_audio(kind: Any) -> bool:
    """Whether values of an Arrow type are plain bytes, or structs with such a field `bytes`, as in an Audio column."""
    if pa.types.is_struct(kind):
        return any(field.name == "bytes" and holds_clips(field.type) for field in kind)
    return holds_clips(kind)


def holds_text(kind: Any) -> bool:
    """Whether values of an Arrow type are text."""
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))
