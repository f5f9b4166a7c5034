"""Long sequences, some items at a time."""

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TypeVar

Item = TypeVar("Item")


def chunks_of(items: Iterable[Item], length: int) -> Iterator[list[Item]]:
    """The items in lists of `length`, the last one shorter; takes no more of them than it gives."""
    source = iter(items)
    while chunk := list(islice(source, length)):
        yield chunk
