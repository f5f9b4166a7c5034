"""Reads the samples of an output from shards, from artifacts of the npy layout, or partly from both."""

from collections import OrderedDict
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from hfprep.formats.samples import Sample
from hfprep.formats.shards import ShardFormat, ShardReader
from hfprep.store.layout import NpyOutput
from hfprep.store.shard_index import Place, Shard, ShardIndex
from hfprep.store.state import SampleState

OPEN_SHARDS = 4


class StoredSamples:
    """Reads samples of an output. Keeps the last shards open, even if they are deleted meanwhile.

    `path_of` returns a shard's file; `released` is called with the serial of a shard that is no longer read.
    """

    def __init__(
        self,
        output: NpyOutput,
        index: ShardIndex,
        shards: ShardFormat,
        path_of: Callable[[Shard], Path],
        released: Callable[[int], None] = lambda _: None,
    ) -> None:
        self.output = output
        self.index = index
        self.shards = shards
        self._path_of = path_of
        self._released = released
        self._open: OrderedDict[int, ShardReader] = OrderedDict()

    def sample(self, place: Place) -> Sample:
        """The sample at a place; raises StoreError if it cannot be read."""
        reader = self._open.get(place.shard)
        if reader is None:
            shard = next(shard for shard in self.index.shards() if shard.serial == place.shard)
            reader = self._open[place.shard] = self.shards.reader(self._path_of(shard))
            if len(self._open) > OPEN_SHARDS:
                self._released(self._open.popitem(last=False)[0])
        self._open.move_to_end(place.shard)
        return reader.sample(place.row, place.start, place.size)

    def forget(self, serial: int) -> None:
        """Close a shard; it is reopened on the next read. For shards whose file has moved."""
        self._open.pop(serial, None)

    def arrays(
        self, sample_id: str, sample: SampleState, place: Place | None, groups: Iterable[str]
    ) -> dict[str, np.ndarray]:
        """The columns of these groups that the state lists; raises StoreError if one cannot be read."""
        wanted = self.shards.schema.columns_of(groups)
        held = frozenset[str]() if place is None else place.holds(sample)
        found = {}
        if place is not None and any(column.group in held for column in wanted):
            found = self.sample(place).arrays
        return {
            column.name: found[column.name] if column.group in held else self.output.read(column.name, sample_id)
            for column in wanted
        }
