"""Shards that are written one sample after another: the files, and what is known of each once it is whole.

Gives `ShardFile`, `WrittenShard`, and the base that the streams of Arrow and WebDataset fill in. Where a shard ends
depends on the sequence of samples and the options alone, so that writing may stop after any shard and go on later.
"""

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from hfprep.formats.samples import Sample
from hfprep.io import atomic
from hfprep.io.file_hashes import sha256_file


@dataclass(frozen=True, slots=True)
class WrittenShard:
    """A shard that is whole and synced. `used` is what of the size allowed its samples take, `num_bytes` the file's."""

    path: Path
    samples: int
    used: int
    num_bytes: int
    sha256: str


class RoomLeft(Exception):
    """What comes first fits into the shard that was taken for full."""


class Abandoned(Exception):
    """A shard is not to be."""


class ShardFile:
    """A shard that grows under a temporary name."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._replacing = atomic.replacing(path)
        self.stream = self._replacing.__enter__()  # it ends in another call: finish or abandon

    def finish(self, samples: int, used: int) -> WrittenShard:
        """Sync the file and give it its name."""
        self._replacing.__exit__(None, None, None)
        with atomic.explained(self.path):
            return WrittenShard(self.path, samples, used, self.path.stat().st_size, sha256_file(self.path))

    def abandon(self) -> None:
        """Leave nothing behind."""
        self._replacing.__exit__(Abandoned, Abandoned(), None)


@dataclass(frozen=True, slots=True)
class Start:
    """Where a stream begins: number of its first shard, position of its first sample, what the shard before holds.

    `samples` and `used` are of that shard; where the first of the stream fits into it, the stream says `RoomLeft`.
    """

    number: int = 0
    position: int = 0
    samples: int = 0
    used: int = 0


class ShardStream(ABC):
    """The samples of one split on their way into shards; `shard_path` names the file of each shard by its number."""

    def __init__(self, shard_path: Callable[[int], Path], start: Start) -> None:
        self.shard_path = shard_path
        self.start = start
        self.number = start.number
        self.file: ShardFile | None = None
        self.samples = self.used = 0

    @abstractmethod
    def add(self, sample: Sample) -> list[WrittenShard]:
        """Take the next sample; gives the shards that are whole now, which need not hold this sample yet."""

    @abstractmethod
    def finish(self) -> list[WrittenShard]:
        """Write what is left; gives the shards that are whole now."""

    def abandon(self) -> None:
        """Drop the shard that is not whole."""
        if self.file is not None:
            self.file.abandon()
            self.file = None

    def _make_room(self, fits: Callable[[int, int], bool]) -> list[WrittenShard]:
        """End the open shard unless `fits(samples, used)`, and open one where none is; gives the shard that ended."""
        if self.file is not None and fits(self.samples, self.used):
            return []
        ended = []
        if self.file is not None:
            ended.append(self._end())
        elif self.start.samples and fits(self.start.samples, self.start.used):
            raise RoomLeft
        self._open()
        return ended

    def _open(self) -> None:
        self.file = ShardFile(self.shard_path(self.number))
        self.samples = self.used = 0

    def _end(self) -> WrittenShard:
        assert self.file is not None
        shard = self.file.finish(self.samples, self.used)
        self.file = None
        self.number += 1
        return shard


@contextlib.contextmanager
def closing_stream(stream: ShardStream) -> Iterator[None]:
    """Leave no shard behind that is not whole."""
    try:
        yield
    finally:
        stream.abandon()
