"""Arrays of finished samples wherever they lie: in artifacts of the npy layout, in shards, or in both together."""

from collections import OrderedDict

import numpy as np

from hfprep.errors import StoreError
from hfprep.formats.packing.formats import ReadArrays, ShardFormat
from hfprep.io.npy_format import parse_npy
from hfprep.schema import COLUMNS, Need
from hfprep.store.fingerprints import Fingerprints
from hfprep.store.layout import NpyOutput
from hfprep.store.shard_index import Packed, ShardIndex
from hfprep.store.state import SampleState

OPEN_SHARDS = 4


class SampleReader:
    """Reads samples of one output; keeps the shards that it read last open, even where they are deleted meanwhile."""

    def __init__(self, output: NpyOutput, index: ShardIndex, shards: ShardFormat) -> None:
        self.output = output
        self.index = index
        self.shards = shards
        self._open: OrderedDict[int, ReadArrays] = OrderedDict()

    def arrays(
        self, sample_id: str, wanted: Fingerprints | SampleState, packed: Packed | None, need: Need = Need.ALL
    ) -> dict[str, np.ndarray]:
        """The columns of the groups in `need`, as `wanted`; raises StoreError where a file cannot be read."""
        held = Need.NOTHING if packed is None else packed.holds(wanted) & need
        found = self._shard(packed.shard)(packed.row) if packed is not None and held else {}
        arrays = {}
        for name, column in COLUMNS.items():
            if column.need & held:
                arrays[name] = found[name]
            elif column.need & need:
                arrays[name] = self._artifact(name, sample_id)
        return arrays

    def _artifact(self, column: str, sample_id: str) -> np.ndarray:
        path = self.output.artifact(column, sample_id)
        try:
            return parse_npy(path.read_bytes())
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or error  # without the path, which the message has already
            message = f"{path} was complete and cannot be read now: {why}; run the same command again"
            raise StoreError(message) from error

    def _shard(self, serial: int) -> ReadArrays:
        if serial not in self._open:
            shard = next(shard for shard in self.index.shards() if shard.serial == serial)
            self._open[serial] = self.shards.reader(self.index.path(shard), shard.samples)
            if len(self._open) > OPEN_SHARDS:
                self._open.popitem(last=False)
        self._open.move_to_end(serial)
        return self._open[serial]
