"""Fast pickling of the records that processes exchange for every sample.

By default, a frozen dataclass with slots looks up its fields each time it is pickled or read, which takes longer than
all the rest.
"""

from typing import Any, ClassVar


class PickledAsTuple:
    """Base of a frozen dataclass with slots: pickled as its class and the values that its constructor takes."""

    __slots__ = ()
    __match_args__: ClassVar[tuple[str, ...]]

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), tuple([getattr(self, name) for name in self.__match_args__])
