"""Growing shards: samples are appended in blocks and synced, and full shards are closed.

Provides `ShardFormat`, which Arrow and WebDataset implement, and `SplitWriter`, which writes all shards of builds and
exports. An open shard has the suffix `.open`; bytes in it beyond the recorded size are a torn tail, which `resume` cuts
off. A closed shard has its final name and does not change unless it is reopened to append.
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
from hfprep.schema import PickledAsTuple, Schema
from hfprep.store.shard_index import Shard

MAX_SHARD_BYTES = 500 * 10**6
OPEN = ".open"
BLOCKS_IN_A_SHARD = 8  # a block is at most this fraction of a shard, so that shards get close to the requested size


@dataclass(frozen=True, slots=True)
class Block(PickledAsTuple):
    """Serialised samples that are appended together."""

    data: bytes
    samples: int


@dataclass(frozen=True, slots=True)
class Appended:
    """Where a sample was appended: its row in a shard, and the start and size of its block."""

    shard: Shard
    row: int
    start: int
    size: int


@dataclass(frozen=True, kw_only=True)
class ShardOptions:
    """How shards are written: each has at most `max_shard_bytes`; vectors are stored in `dtype`."""

    max_shard_bytes: int = MAX_SHARD_BYTES
    dtype: str = "float32"

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ConfigError(f"--dtype is {self.dtype!r}; it must be {' or '.join(DTYPES)}")


# Reads the sample at a place of a shard, closed or open: its row, and the start and size of its block.
# Raises StoreError if it cannot be read.
ReadSample = Callable[[int, int, int], Sample]


class ShardFormat(ABC):
    """How samples are serialised to shards. Small enough to send to another process.

    `name` is also the folder of a build's set. `marker` is the file that makes a folder a complete set.
    """

    name: ClassVar[str]
    marker: ClassVar[str]
    tail: ClassVar[bytes]  # the end of a closed shard
    empty_splits: ClassVar[bool] = False  # whether a split without samples needs an empty shard

    def __init__(self, schema: Schema, options: ShardOptions) -> None:
        self.schema = schema
        self.options = options

    @property
    def head(self) -> bytes:
        return b""

    @property
    def max_samples(self) -> int | None:
        return None

    @abstractmethod
    def layout(self) -> str:
        """A short text that must be the same for all shards of a set."""

    @abstractmethod
    def shard_name(self, split: str, number: int) -> str:
        """The path of a closed shard, relative to the set's folder."""

    @abstractmethod
    def encode(self, samples: Sequence[Sample]) -> list[Block]:
        """Serialise samples to blocks, in order. Raises StoreError if one cannot be stored with these options."""

    @abstractmethod
    def reader(self, path: Path) -> ReadSample:
        """A reader for a shard's file; raises StoreError if it cannot be read."""

    @abstractmethod
    def earlier_places(self, path: Path) -> list[tuple[int, int]] | None:
        """Start and size of each row of a shard of hfprep 0.1.0; None if it would be written differently now.

        Raises StoreError if the file cannot be read.
        """

    @abstractmethod
    def describe(
        self, folder: Path, splits: Mapping[str, Sequence[Shard]], places: Mapping[str, np.ndarray], origin: Origin
    ) -> dict[str, int]:
        """Write the files that make closed shards a set, `marker` last; returns the number of samples per split.

        places: int64 (samples, columns of `place_columns`) per split, in source order.
        """

    @property
    @abstractmethod
    def place_columns(self) -> tuple[str, ...]:
        """The columns of a sample's place in the index."""

    @abstractmethod
    def place_of(
        self, place: tuple[int, int, int], shard: int, first_row: int, lengths: Mapping[str, int]
    ) -> tuple[int, ...]:
        """The values of `place_columns` for a sample; `place` is its row in the shard, and its block's start and size.

        `shard` and `first_row` are the positions of the shard and of its first row in the split.
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
        """Create an empty file, replacing one that a killed run left."""
        with atomic.explained(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            atomic.refuse_link(path.parent)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND | atomic.NO_LINK, 0o666)
            atomic.sync_folder(path.parent)
        return cls(path, descriptor, hashlib.sha256())

    @classmethod
    def resume(cls, path: Path, used: int) -> "ShardFile":
        """Reopen a file of an earlier run, truncated to `used` bytes; hashes its content."""
        atomic.refuse_link(path.parent)
        with atomic.explained(path):
            descriptor = os.open(path, os.O_RDWR | os.O_APPEND | atomic.NO_LINK)
            os.ftruncate(descriptor, used)
            with open(descriptor, "rb", closefd=False) as stream:
                digest = hashlib.file_digest(stream, "sha256")
        return cls(path, descriptor, digest)

    def append(self, data: bytes) -> None:
        """Append; durable after `sync`."""
        with atomic.explained(self.path):
            atomic.observe("before-append", self.path)
            atomic.write_all(self._descriptor, data)
            self._digest.update(data)
            atomic.observe("after-append", self.path)

    def sync(self) -> None:
        with atomic.explained(self.path):
            atomic.sync_file(self._descriptor, self.path)

    def finish(self, path: Path) -> str:
        """Sync the file and rename it to its final name; returns the SHA-256 of its content."""
        self.sync()
        self.close()
        with atomic.explained(path):
            atomic.rename(self.path, path)
            atomic.sync_folder(path.parent)
        return str(self._digest.hexdigest())

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def open_path(folder: Path, name: str) -> Path:
    return folder / f"{name}{OPEN}"


def found_path(folder: Path, name: str) -> Path:
    """The path of a shard, closed or open."""
    path = folder / name
    return path if path.exists() else open_path(folder, name)


@dataclass
class SplitWriter:
    """Appends the samples of a split; `new` returns the next shard, `resumed` is one with space left.

    Closed shards are in `closed` until the caller removes them.
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
        """Append blocks; returns the place of each sample. They are durable after `sync`."""
        places, waiting = [], list[bytes]()
        for block in blocks:
            if not self._fits(block):
                self._write(waiting)
                waiting = []
                self.finish()
            shard = self.opened()
            rows = range(shard.samples, shard.samples + block.samples)
            places += [Appended(shard, row, shard.used, len(block.data)) for row in rows]
            shard.samples += block.samples
            shard.used += len(block.data)
            waiting.append(block.data)
        self._write(waiting)
        return places

    def sync(self) -> None:
        """Make appended data durable."""
        if self._dirty and self._file is not None:
            self._file.sync()
            self._dirty = False

    def finish(self) -> None:
        """Close the open shard, if there is one."""
        if self.current is None and self.resumed is not None and not self.resumed.closed:
            self.opened()
        self.resumed, shard = None, self.current
        if shard is None or self._file is None:
            return
        self._file.append(self.shards.tail)
        shard.num_bytes = shard.used + len(self.shards.tail)
        shard.sha256 = self._file.finish(self.folder / shard.name)
        self.closed.append(shard)
        self.current = self._file = None

    def close(self) -> None:
        """Close the file of the open shard, which stays an open shard."""
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

    def opened(self) -> Shard:
        """The open shard; one is started if there is none."""
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
    """Split samples into runs of at most `most_samples` samples and a fraction of a shard's bytes."""
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
