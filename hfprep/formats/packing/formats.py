"""What the two shard formats have in common for a build that keeps its features in one of them, and what not.

Gives `ArrowShards` and `WebDatasetShards`: streams that write a split, readers of single shards, the names of shards
in a complete set, and the files that make a folder of shards such a set. Knows nothing of when a shard is due.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from hfprep.formats.arrow import DICT_FILE, ArrowShard, is_own_export
from hfprep.formats.arrow_writer import (
    ArrowColumns,
    ArrowOptions,
    ArrowStream,
    Survey,
    describe_set,
    describe_split,
    shard_names,
)
from hfprep.formats.index import INDEX, INDEX_VERSION
from hfprep.formats.samples import SPLITS, Entry, Origin
from hfprep.formats.shard_files import ShardStream, Start, WrittenShard
from hfprep.formats.webdataset import WebDatasetSplit, is_webdataset
from hfprep.formats.webdataset_writer import WebDatasetOptions, WebDatasetStream, shard_path
from hfprep.formats.webdataset_writer import describe_set as describe_tars

ReadArrays = Callable[[int], dict[str, np.ndarray]]
Entries = Callable[[], Iterable[Entry]]


class ShardFormat(Protocol):
    """One of the formats.

    `marker` is the file that is written last into a complete set; `survey` is what the columns were chosen by, where
    there is such a thing. A shard may stay where it is only if its layout is the present one: `layout()`.
    """

    name: str
    suffix: str
    marker: str

    def prepare(self, survey: Any, condition: tuple[int, int]) -> None:
        """Settle the columns, for latents of that shape."""

    def survey(self, entries: Entries) -> Any:
        """What these records need, as JSON; None where it makes no difference."""

    def layout(self) -> str:
        """What a shard's bytes depend on besides its samples."""

    def stream(self, shard_path: Callable[[int], Path], start: Start) -> ShardStream:
        """A writer of shards."""

    def reader(self, path: Path, samples: int) -> ReadArrays:
        """A function that gives the arrays of a row of a shard."""

    def names(self, split: str, count: int) -> list[str]:
        """Paths of a split's shards in the complete set."""

    def describe(self, folder: Path, splits: Mapping[str, Sequence[WrittenShard]], origin: Origin) -> None:
        """Write the files beside the shards, `marker` last."""

    def replaceable(self, folder: Path) -> bool:
        """Whether a folder is a set that hfprep wrote."""


def _digest(*values: Any) -> str:
    return hashlib.blake2b(json.dumps(values, sort_keys=True).encode(), digest_size=16).hexdigest()


@dataclass
class ArrowShards:
    """A saved DatasetDict."""

    options: ArrowOptions
    name = "arrow"
    suffix = ".arrow"
    marker = DICT_FILE

    def prepare(self, survey: Any, condition: tuple[int, int]) -> None:
        self.columns = ArrowColumns.of(Survey.parse(survey), condition, self.options.dtype, self.options)

    def survey(self, entries: Entries) -> Any:
        return Survey.of(entries).record()

    def layout(self) -> str:
        columns = self.columns
        return _digest(self.name, self.options.max_shard_bytes, str(columns.features), columns.survey.record())

    def stream(self, shard_path: Callable[[int], Path], start: Start) -> ShardStream:
        return ArrowStream(shard_path, self.columns, self.options, start)

    def reader(self, path: Path, samples: int) -> ReadArrays:
        del samples
        return ArrowShard(path).arrays

    def names(self, split: str, count: int) -> list[str]:
        return [f"{split}/{name}" for name in shard_names(count)]

    def describe(self, folder: Path, splits: Mapping[str, Sequence[WrittenShard]], origin: Origin) -> None:
        for split in SPLITS:
            describe_split(folder / split, splits[split], self.columns, origin)
        describe_set(folder, splits)

    def replaceable(self, folder: Path) -> bool:
        return is_own_export(folder)


@dataclass
class WebDatasetShards:
    """Tar shards and their index."""

    options: WebDatasetOptions
    name = "webdataset"
    suffix = ".tar"
    marker = INDEX

    def prepare(self, survey: Any, condition: tuple[int, int]) -> None:
        del survey, condition

    def survey(self, entries: Entries) -> Any:
        del entries

    def layout(self) -> str:
        options = self.options
        return _digest(self.name, INDEX_VERSION, options.max_shard_bytes, options.max_shard_samples, options.dtype)

    def stream(self, shard_path: Callable[[int], Path], start: Start) -> ShardStream:
        return WebDatasetStream(shard_path, self.options, start)

    def reader(self, path: Path, samples: int) -> ReadArrays:
        shard = {"name": path.name, "samples": samples, "bytes": path.stat().st_size}
        split = WebDatasetSplit(path.parent, [shard])
        return lambda row: split.sample(row).arrays

    def names(self, split: str, count: int) -> list[str]:
        return [shard_path(Path(), split, number).name for number in range(count)]

    def describe(self, folder: Path, splits: Mapping[str, Sequence[WrittenShard]], origin: Origin) -> None:
        describe_tars(folder, splits, origin)

    def replaceable(self, folder: Path) -> bool:
        return is_webdataset(folder)


def shard_format(name: str, max_shard_bytes: int) -> ShardFormat:
    """The format of that name, with shards of that size at most."""
    if name == "arrow":
        return ArrowShards(ArrowOptions(max_shard_bytes=max_shard_bytes))
    return WebDatasetShards(WebDatasetOptions(max_shard_bytes=max_shard_bytes))
