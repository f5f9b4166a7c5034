"""Iteration in chunks."""

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TypeVar

Item = TypeVar("Item")


def chunks_of(items: Iterable[Item], length: int) -> Iterator[list[Item]]:
    """Lists of `length` items, the last one may be shorter; `items` is consumed lazily."""
    source = iter(items)
    while chunk := list(islice(source, length)):
        yield chunk
