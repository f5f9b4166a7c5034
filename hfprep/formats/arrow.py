"""A saved Arrow data set (`datasets.DatasetDict.save_to_disk`) as a sample set.

Reads the shards by memory mapping, a row without copies. What `datasets` itself saves again later can be read too, as
long as the columns are there.
"""

import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from hfprep.errors import StoreError
from hfprep.formats.extra_fields import ExtraColumn, rebuilt
from hfprep.formats.samples import LATENTS, METADATA, Entry, Origin, Sample, SampleSet, Split, checked, entry_from
from hfprep.schema import COLUMNS

TITLE = "IndexTTS-2 training features made by hfprep: text ids, semantic codes, conditioning latents, emotion vectors."
FORMAT_NAME = "hfprep-arrow"  # in the index
EXACT_LINE, EXACT_EXTRA = "manifest_line", "extra_json"
DICT_FILE, INFO_FILE, STATE_FILE = "dataset_dict.json", "dataset_info.json", "state.json"


def describe(origin: Origin, columns: list[ExtraColumn]) -> str:
    """The description that travels in the data set's info: a title, and the provenance as JSON on the second line."""
    extra = [{"field": item.field, "name": item.name, "dtype": item.dtype} for item in columns]
    return TITLE + "\n" + json.dumps(origin.record() | {"extra_columns": extra}, ensure_ascii=False)


def read_description(path: Path) -> dict[str, Any] | None:
    """The provenance in a data set's info file; None where it is not there or is not hfprep's."""
    try:
        title, _, rest = str(json.loads(path.read_bytes()).get("description")).partition("\n")
        return dict(json.loads(rest)) if title == TITLE else None
    except (OSError, ValueError):
        return None


def is_arrow_set(path: Path) -> bool:
    """Whether a folder is a saved DatasetDict."""
    return (path / DICT_FILE).is_file()


def is_own_export(path: Path) -> bool:
    """Whether a folder is a saved DatasetDict that hfprep wrote."""
    return is_arrow_set(path) and any(read_description(path / name / INFO_FILE) for name in _split_names(path))


def _split_names(root: Path) -> list[str]:
    return list(json.loads((root / DICT_FILE).read_bytes())["splits"])


def split_files(root: Path) -> list[str]:
    """Names of a split's shards, as its folder lists them; OSError, ValueError or KeyError where it does not."""
    return [item["filename"] for item in json.loads((root / STATE_FILE).read_bytes())["_data_files"]]


class ArrowSplit(Split):
    """One split of a saved data set, or one `file` of it."""

    def __init__(self, root: Path, extra_columns: list[ExtraColumn], file: str | None = None) -> None:
        self.root = root
        self.extra_columns = extra_columns
        self.file = file
        self._batches: list[pa.RecordBatch] | None = None
        self._ends = np.cumsum([batch.num_rows for batch in self.batches()], dtype=np.int64)
        missing = sorted((METADATA.keys() | COLUMNS.keys()) - set(self._names()))
        if missing:
            raise StoreError(f"{root} is not a data set of hfprep: it has no column {', '.join(missing)}")

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_batches": None}

    def batches(self) -> list[pa.RecordBatch]:
        """The record batches of all shards, memory-mapped."""
        if self._batches is None:
            try:
                files = split_files(self.root) if self.file is None else [self.file]
                streams = [pa.ipc.open_stream(pa.memory_map(str(self.root / file))) for file in files]
                self._schema = streams[0].schema
                self._batches = [batch for stream in streams for batch in stream if batch.num_rows]
            except (OSError, ValueError, KeyError, IndexError, pa.ArrowException) as error:
                raise StoreError(f"{self.root} cannot be read as a saved data set: {error}; make it again") from error
        return self._batches

    def _names(self) -> list[str]:
        self.batches()
        return list(self._schema.names)

    def _row(self, index: int) -> tuple[pa.RecordBatch, int]:
        batches = self.batches()
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        number = int(np.searchsorted(self._ends, index, side="right"))
        return batches[number], index - (int(self._ends[number - 1]) if number else 0)

    def entry(self, index: int) -> Entry:
        return self._entry(*self._row(index))

    def _entry(self, batch: pa.RecordBatch, row: int) -> Entry:
        def value(name: str) -> Any:
            return batch.column(name)[row].as_py()

        names = batch.schema.names
        exact_line = value(EXACT_LINE) if EXACT_LINE in names else None
        exact_extra = value(EXACT_EXTRA) if EXACT_EXTRA in names else None
        kept = [column for column in self.extra_columns if column.name in names]
        extra = exact_extra or rebuilt(kept, {column.name: value(column.name) for column in kept})
        return entry_from({name: value(name) for name in METADATA}, exact_line, extra)

    def sample(self, index: int) -> Sample:
        batch, row = self._row(index)
        entry = self._entry(batch, row)
        arrays = {name: _array(batch.column(name), row, COLUMNS[name].ndim) for name in COLUMNS}
        return checked(Sample(entry, arrays), str(self.root))

    def lengths(self, name: str) -> np.ndarray:
        parts = [batch.column(name).to_numpy(zero_copy_only=False) for batch in self.batches()]
        return np.concatenate(parts).astype(np.int64) if parts else np.zeros(0, np.int64)


def _array(column: pa.Array, row: int, ndim: int) -> np.ndarray:
    """One row of a list column as an array, without a copy; of a 2-D column with its rows."""
    storage = column.storage if isinstance(column, pa.ExtensionArray) else column
    values = storage[row].values
    if values is None:
        return np.zeros((0,) * ndim, np.float64)
    if ndim == 1:
        return np.asarray(values.to_numpy())
    return np.asarray(values.flatten().to_numpy()).reshape(len(values), -1)


class ArrowShard:
    """One shard's file, of any split, by row; memory-mapped."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with pa.memory_map(str(path)) as source, pa.ipc.open_stream(source) as batches:
                self._batches = [batch for batch in batches if batch.num_rows]
        except (OSError, ValueError, pa.ArrowException) as error:
            raise StoreError(f"{path} cannot be read: {error}; see `verify` for what is broken") from error
        self._ends = np.cumsum([batch.num_rows for batch in self._batches], dtype=np.int64)

    def arrays(self, row: int) -> dict[str, np.ndarray]:
        """The arrays of a row, as they are stored."""
        number = int(np.searchsorted(self._ends, row, side="right"))
        start = int(self._ends[number - 1]) if number else 0
        batch = self._batches[number]
        return {name: _array(batch.column(name), row - start, COLUMNS[name].ndim) for name in COLUMNS}


class ArrowSet(SampleSet):
    """A folder that `datasets.load_from_disk` opens."""

    format = "arrow"

    @cached_property
    def _description(self) -> Mapping[str, Any]:
        found = (read_description(self.root / name / INFO_FILE) for name in _split_names(self.root))
        return next((item for item in found if item is not None), {})

    @cached_property
    def origin(self) -> Origin:
        return Origin.parse({"latents_dtype": self._stored_dtype()} | dict(self._description))

    def _stored_dtype(self) -> str:
        batches = [batch for name in _split_names(self.root) for batch in self.split(name).batches()[:1]]
        half = bool(batches) and all(_value_type(batches[0].column(name).type) == pa.float16() for name in LATENTS)
        return "float16" if half else "float32"

    def split(self, name: str, file: str | None = None) -> ArrowSplit:
        names = _split_names(self.root)
        if name not in names:
            raise StoreError(f"{self.root} has no split {name!r}; it has {', '.join(names) or 'none'}")
        columns = [ExtraColumn(**item) for item in self._description.get("extra_columns", ())]
        return ArrowSplit(self.root / name, columns, file)


def _value_type(dtype: pa.DataType) -> pa.DataType:
    dtype = dtype.storage_type if isinstance(dtype, pa.ExtensionType) else dtype
    while isinstance(dtype, pa.ListType | pa.LargeListType | pa.FixedSizeListType):
        dtype = dtype.value_type
    return dtype
