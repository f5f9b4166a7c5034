"""Shards that grow: samples are appended in blocks and synced, and a shard that is full is closed.

Provides `ShardFormat`, which Arrow and WebDataset fill in, and `SplitWriter`, the one maker of shards: builds and
exports append with it. An open shard has its own suffix (`.open`); what is in it beyond what its owner knows of is a
torn tail, which `resume` cuts off. A closed shard has its name and is never touched until it is appended to again.
"""

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from hfprep.errors import ConfigError
from hfprep.formats.samples import DTYPES, Origin, Sample
from hfprep.io import atomic
from hfprep.schema import Schema
from hfprep.store.shard_index import Shard

MAX_SHARD_BYTES = 500 * 10**6
OPEN = ".open"
BLOCKS_IN_A_SHARD = 8  # a block is at most this part of a shard, so that shards come near the size asked for
READ_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Block:
    """Samples as they are appended: all of them at once."""

    data: bytes
    samples: int


@dataclass(frozen=True, slots=True)
class Appended:
    """Where a sample was appended: its row in a shard, where the block that holds it starts, and how long that is."""

    shard: Shard
    row: int
    start: int
    size: int


@dataclass(frozen=True, kw_only=True)
class ShardOptions:
    """How shards are written: one ends before it would pass `max_shard_bytes`; vectors are stored in `dtype`."""

    max_shard_bytes: int = MAX_SHARD_BYTES
    dtype: str = "float32"

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ConfigError(f"--dtype is {self.dtype!r}; it must be {' or '.join(DTYPES)}")


class ShardReader(ABC):
    """One shard's file, closed or open, by place."""

    @abstractmethod
    def sample(self, row: int, start: int, size: int) -> Sample:
        """The sample there; raises StoreError if it cannot be read."""


class ShardFormat(ABC):
    """How samples become the bytes of shards. Small enough to send to another process.

    `name` is also the folder of a build's set. `marker` is the file without which a folder is no set.
    """

    name: ClassVar[str]
    marker: ClassVar[str]
    tail: ClassVar[bytes]  # what a closed shard ends with
    empty_splits: ClassVar[bool] = False  # whether a split without samples is a shard without samples

    def __init__(self, schema: Schema, options: ShardOptions) -> None:
        self.schema = schema
        self.options = options

    @property
    def head(self) -> bytes:
        """What a shard begins with."""
        return b""

    @property
    def max_samples(self) -> int | None:
        """Samples that a shard holds at most."""
        return None

    @abstractmethod
    def layout(self) -> str:
        """What the shards of one set must have in common, as a short text."""

    @abstractmethod
    def shard_name(self, split: str, number: int) -> str:
        """Path of a closed shard below the set's folder."""

    @abstractmethod
    def encode(self, samples: Sequence[Sample]) -> list[Block]:
        """Samples as blocks, in their order. Raises StoreError if one cannot be stored as the options ask."""

    @abstractmethod
    def reader(self, path: Path) -> ShardReader:
        """A shard's file, by place; raises StoreError if it cannot be read."""

    @abstractmethod
    def earlier_places(self, path: Path) -> list[tuple[int, int]] | None:
        """Start and size of each row of a shard that hfprep 0.1.0 wrote; None if it would be written otherwise now.

        Raises StoreError if the file cannot be read.
        """

    @abstractmethod
    def describe(
        self, folder: Path, splits: Mapping[str, Sequence[Shard]], places: Mapping[str, np.ndarray], origin: Origin
    ) -> dict[str, int]:
        """Write the files that make closed shards a set, `marker` last; gives the samples of each split.

        places: of each split, int64 (samples, columns of `place_columns`), in source order.
        """

    @property
    @abstractmethod
    def place_columns(self) -> tuple[str, ...]:
        """What the index says of each sample."""

    @abstractmethod
    def place_of(
        self, place: tuple[int, int, int], shard: int, first_row: int, lengths: Mapping[str, int]
    ) -> tuple[int, ...]:
        """The values of `place_columns` for a sample; `place` is its row in the shard, and its block's start and size.

        `shard` and `first_row` are the shard's and its first row's positions in the split.
        """

    @abstractmethod
    def replaceable(self, folder: Path) -> bool:
        """Whether a folder is a set of this format that hfprep wrote."""


class ShardFile:
    """The file of an open shard."""

    def __init__(self, path: Path, descriptor: int, digest: Any) -> None:
        self.path = path
        self._descriptor = descriptor
        self._digest = digest

    @classmethod
    def create(cls, path: Path) -> "ShardFile":
        """An empty file; one that a killed run left there goes."""
        with atomic.explained(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            atomic.refuse_link(path.parent)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND | atomic.NO_LINK, 0o666)
            atomic.sync_folder(path.parent)
        return cls(path, descriptor, hashlib.sha256())

    @classmethod
    def resume(cls, path: Path, used: int) -> "ShardFile":
        """A file of an earlier run, cut back to `used` bytes; what it holds is hashed once."""
        atomic.refuse_link(path.parent)
        with atomic.explained(path):
            descriptor = os.open(path, os.O_RDWR | os.O_APPEND | atomic.NO_LINK)
            os.ftruncate(descriptor, used)
            digest, position = hashlib.sha256(), 0
            while data := os.pread(descriptor, READ_BYTES, position):
                digest.update(data)
                position += len(data)
        return cls(path, descriptor, digest)

    def append(self, data: bytes) -> None:
        """Append; durable after `sync`."""
        with atomic.explained(self.path):
            atomic.observe("before-append", self.path)
            atomic.write_all(self._descriptor, data)
            self._digest.update(data)
            atomic.observe("after-append", self.path)

    def sync(self) -> None:
        """Make durable what was appended."""
        with atomic.explained(self.path):
            atomic.sync_file(self._descriptor, self.path)

    def finish(self, path: Path) -> str:
        """Sync the file and give it its name; gives the SHA-256 of its content."""
        self.sync()
        self.close()
        with atomic.explained(path):
            atomic.rename(self.path, path)
            atomic.sync_folder(path.parent)
        return str(self._digest.hexdigest())

    def close(self) -> None:
        """Let go of the file."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def open_path(folder: Path, name: str) -> Path:
    """Where a shard that will have this name grows."""
    return folder / f"{name}{OPEN}"


def found_path(folder: Path, name: str) -> Path:
    """Where a shard of that name is: under its name, or open."""
    path = folder / name
    return path if path.exists() else open_path(folder, name)


@dataclass
class SplitWriter:
    """Appends the samples of one split; `new` gives the next shard, `resumed` is one that has room left.

    Shards that were closed are in `closed` until somebody takes them from there.
    """

    shards: ShardFormat
    folder: Path
    new: Callable[[], Shard]
    resumed: Shard | None = None
    closed: list[Shard] = field(default_factory=list)
    current: Shard | None = None
    _file: ShardFile | None = None
    _dirty: bool = False

    def append(self, blocks: Iterable[Block]) -> list[Appended]:
        """Append blocks; gives the place of each of their samples. They are durable after `sync`."""
        places, waiting = [], list[bytes]()
        for block in blocks:
            if not self._fits(block):
                self._write(waiting)
                waiting = []
                self.finish()
            shard = self._opened()
            rows = range(shard.samples, shard.samples + block.samples)
            places += [Appended(shard, row, shard.used, len(block.data)) for row in rows]
            shard.samples += block.samples
            shard.used += len(block.data)
            waiting.append(block.data)
        self._write(waiting)
        return places

    def sync(self) -> None:
        """Make durable what was appended."""
        if self._dirty and self._file is not None:
            self._file.sync()
            self._dirty = False

    def finish(self) -> None:
        """Close the open shard, if there is one."""
        if self.current is None and self.resumed is not None and not self.resumed.closed:
            self._opened()
        self.resumed, shard = None, self.current
        if shard is None or self._file is None:
            return
        tail = self.shards.tail
        if tail:
            self._file.append(tail)
        shard.num_bytes = shard.used + len(tail)
        shard.sha256 = self._file.finish(self.folder / shard.name)
        self.closed.append(shard)
        self.current = self._file = None

    def open_empty(self) -> None:
        """Begin a shard, where none is open: a split without samples is one, where the format has such."""
        self._opened()

    def close(self) -> None:
        """Let go of the open shard as it is."""
        if self._file is not None:
            self._file.close()
            self.current = self._file = None

    def _fits(self, block: Block) -> bool:
        shard = self.current or self.resumed
        if shard is None or not shard.samples:
            return True
        most = self.shards.max_samples
        within = shard.used + len(block.data) + len(self.shards.tail) <= self.shards.options.max_shard_bytes
        return within and (most is None or shard.samples + block.samples <= most)

    def _opened(self) -> Shard:
        if self.current is None:
            resumed, self.resumed = self.resumed, None
            self.current = shard = resumed or self.new()
            path = open_path(self.folder, shard.name)
            if resumed is not None:
                if not path.exists():
                    with atomic.explained(path):
                        atomic.rename(self.folder / shard.name, path)
                        atomic.sync_folder(path.parent)
                self._file = ShardFile.resume(path, shard.used)
                shard.num_bytes, shard.sha256 = 0, ""
            else:
                self._file = ShardFile.create(path)
                shard.used = len(self.shards.head)
                self._write([self.shards.head])
        return self.current

    def _write(self, data: Sequence[bytes]) -> None:
        joined = b"".join(data)
        if joined and self._file is not None:
            self._file.append(joined)
            self._dirty = True


def blocks_of(samples: Sequence[Sample], most_samples: int, max_shard_bytes: int) -> list[list[Sample]]:
    """Samples in runs of so many at most, and of no more bytes than a small part of a shard."""
    most_bytes = max_shard_bytes // BLOCKS_IN_A_SHARD
    runs: list[list[Sample]] = []
    size = 0
    for sample in samples:
        own = sum(array.nbytes for array in sample.arrays.values())
        if not runs or len(runs[-1]) == most_samples or size + own > most_bytes:
            runs.append([])
            size = 0
        runs[-1].append(sample)
        size += own
    return runs
