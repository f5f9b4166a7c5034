"""A saved Arrow data set (`datasets.DatasetDict.save_to_disk`) as a sample set.

Shards are memory-mapped and rows read without copies. A set that `datasets` has saved again can be read too, if it
still has the columns.
"""

import dataclasses
import json
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from hfprep.errors import StoreError
from hfprep.formats.extra_fields import ExtraColumn, rebuilt
from hfprep.formats.index import ADVICE, Places, read_index
from hfprep.formats.samples import (
    LABELS,
    Entry,
    Origin,
    Sample,
    SampleSet,
    Split,
    check_arrays,
    checked,
    entry_from,
    parse_exact,
)
from hfprep.io.json_file import DAMAGED, read_json
from hfprep.schema import Column, Schema

TITLE = "Training features made by hfprep."
MADE_BY = "made by hfprep"  # in the titles of all versions
FORMAT_NAME = "hfprep-arrow"  # in the index
EXACT_LINE, EXACT_EXTRA = "manifest_line", "extra_json"
DICT_FILE, INFO_FILE, STATE_FILE = "dataset_dict.json", "dataset_info.json", "state.json"
ROW = "row"  # a sample's place: the position of its row in its split


def describe(origin: Origin, columns: list[ExtraColumn]) -> str:
    """The description in the data set's info: a title, and the provenance as JSON on the second line."""
    extra = [dataclasses.asdict(item) for item in columns]
    return TITLE + "\n" + json.dumps(origin.record() | {"extra_columns": extra}, ensure_ascii=False)


def read_description(path: Path) -> dict[str, Any] | None:
    """The provenance in a data set's info file; None if the file is missing or not from hfprep."""

    def parse(info: Any) -> dict[str, Any] | None:
        title, _, rest = str(info.get("description")).partition("\n")
        return dict(json.loads(rest)) if MADE_BY in title else None

    try:
        return read_json(path, parse, ADVICE)
    except (OSError, StoreError):
        return None


def extra_columns_of(description: Mapping[str, Any]) -> list[ExtraColumn]:
    """The columns for other fields in a set's provenance; raises StoreError if they are damaged."""
    try:
        return [ExtraColumn.parse(item) for item in description.get("extra_columns", ())]
    except DAMAGED as error:
        raise StoreError(f"the set's description of its other fields is damaged ({error!r}); {ADVICE}") from error


def is_arrow_set(path: Path) -> bool:
    """Whether a folder is a saved DatasetDict."""
    return (path / DICT_FILE).is_file()


def is_own_export(path: Path) -> bool:
    """Whether a folder is a saved DatasetDict that hfprep wrote."""
    try:
        return is_arrow_set(path) and any(read_description(path / name / INFO_FILE) for name in _split_names(path))
    except (OSError, StoreError):
        return False


def _split_names(root: Path) -> list[str]:
    return read_json(root / DICT_FILE, lambda found: _texts(found["splits"]), ADVICE)


def split_files(root: Path) -> list[str]:
    """File names of a split's shards from its state.json; raises OSError or StoreError."""
    return read_json(root / STATE_FILE, lambda found: _texts(item["filename"] for item in found["_data_files"]), ADVICE)


def _texts(values: Iterable[Any]) -> list[str]:
    """These values; raises TypeError if there are none, or if one is not text."""
    found = list(values)
    if not found or not all(isinstance(value, str) for value in found):
        raise TypeError(f"{str(found)[:80]} must be text")
    return found


class ListColumn:
    """A column of (nested) lists in a record batch, as a flat array with offsets."""

    def __init__(self, column: pa.Array, ndim: int) -> None:
        array = column.storage if isinstance(column, pa.ExtensionArray) else column
        self._valid = None if not array.null_count else array.is_valid().to_numpy(zero_copy_only=False)
        self._levels: list[int | np.ndarray] = []  # per level: the fixed list size, or the offsets
        for _ in range(ndim):
            if isinstance(array.type, pa.FixedSizeListType):
                self._levels.append(array.type.list_size)
                array = array.values.slice(array.offset * array.type.list_size, len(array) * array.type.list_size)
            else:
                self._levels.append(array.offsets.to_numpy())
                array = array.values
        self._known = None if not array.null_count else array.is_valid().to_numpy(zero_copy_only=False)
        values = array if self._known is None else array.fill_null(0)
        self._values: np.ndarray = values.to_numpy()

    def row(self, row: int) -> np.ndarray:
        """A row as an array with `ndim` dimensions, without a copy; raises ValueError if it is ragged or has nulls."""
        if self._valid is not None and not self._valid[row]:
            return np.zeros((0,) * len(self._levels), np.float64)
        start, end, shape, lists = row, row + 1, [], 1
        for level in self._levels:
            if isinstance(level, int):
                start, end = start * level, end * level
            else:
                start, end = int(level[start]), int(level[end])
            shape.append((end - start) // lists if lists else 0)
            lists = end - start
        if self._known is not None and not self._known[start:end].all():
            raise ValueError("it contains nulls")
        return self._values[start:end].reshape(shape)


class BatchColumns:
    """The columns of a record batch, each prepared on first use."""

    def __init__(self, batch: pa.RecordBatch) -> None:
        self.batch = batch
        self._columns: dict[str, pa.Array] = {}
        self._lists: dict[str, ListColumn] = {}

    def value(self, name: str, row: int) -> Any:
        """A value as a Python object; raises KeyError if there is no such column."""
        column = self._columns.get(name)
        if column is None:
            column = self._columns[name] = self.batch.column(name)
        return column[row].as_py()

    def array(self, column: Column, row: int) -> np.ndarray:
        found = self._lists.get(column.name)
        if found is None:
            found = self._lists[column.name] = ListColumn(self.batch.column(column.name), column.ndim)
        return found.row(row)


class ArrowRows:
    """The rows of concatenated Arrow IPC streams. Each process memory-maps them itself."""

    def __init__(self, root: Path, files: Sequence[str] | None = None) -> None:
        self.root = root
        self.files = files  # None: those in the folder's state.json
        self._batches: list[BatchColumns] | None = None
        self._ends: list[int] = np.cumsum([batch.num_rows for batch in self.batches()], dtype=np.int64).tolist()

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_batches": None}

    def batches(self) -> list[pa.RecordBatch]:
        """The record batches of all files; raises StoreError if one cannot be read."""
        return [columns.batch for columns in self._opened()]

    def _opened(self) -> list[BatchColumns]:
        if self._batches is None:
            try:
                files = split_files(self.root) if self.files is None else self.files
                streams = [pa.ipc.open_stream(pa.memory_map(str(self.root / file))) for file in files]
                self.schema = streams[0].schema
                self._batches = [BatchColumns(batch) for stream in streams for batch in stream if batch.num_rows]
            except (OSError, ValueError, KeyError, IndexError, pa.ArrowException) as error:
                raise StoreError(f"{self.root} cannot be read as a saved data set: {error}; make it again") from error
        return self._batches

    def row(self, index: int) -> tuple[BatchColumns, int]:
        """The record batch of a row, and the row's position in it."""
        batches = self._opened()
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        number = bisect_right(self._ends, index)
        return batches[number], index - (self._ends[number - 1] if number else 0)


class ArrowSplit(Split):
    """A split of a saved data set; `places` is the order of its rows, None: as stored."""

    def __init__(
        self,
        schema: Schema,
        rows: ArrowRows,
        extra_columns: list[ExtraColumn],
        places: Places | None = None,
    ) -> None:
        self.schema = schema
        self.rows = rows
        self.extra_columns = extra_columns
        self.places = places
        names = {column.name for column in schema.columns} | schema.fields.keys()
        missing = sorted(names - set(rows.schema.names))
        if missing:
            raise StoreError(f"{rows.root} is not a data set of hfprep: it has no column {', '.join(missing)}")
        if places is not None and len(places) != len(rows):
            raise StoreError(f"{rows.root} has {len(rows)} rows instead of {len(places)}; make or fetch it again")

    def __len__(self) -> int:
        return len(self.rows)

    def _row(self, index: int) -> tuple[BatchColumns, int]:
        if self.places is not None and 0 <= index < len(self):
            index = int(self.places.table[index, 0])
        return self.rows.row(index)

    def entry(self, index: int) -> Entry:
        return self._entry(*self._row(index))

    def _entry(self, batch: BatchColumns, row: int) -> Entry:
        names = self.rows.schema.names
        exact_line = batch.value(EXACT_LINE, row) if EXACT_LINE in names else None
        exact_extra = batch.value(EXACT_EXTRA, row) if EXACT_EXTRA in names else None
        kept = [column for column in self.extra_columns if column.name in names]
        extra = exact_extra or rebuilt(kept, {column.name: batch.value(column.name, row) for column in kept})
        metadata = {name: batch.value(name, row) for name in self.schema.fields}
        return entry_from(self.schema, metadata, exact_line, extra)

    def sample(self, index: int) -> Sample:
        batch, row = self._row(index)
        sample = Sample(self._entry(batch, row), self._arrays(batch, row, self.schema.columns))
        return checked(self.schema, sample, str(self.rows.root))

    def read(self, index: int, columns: Sequence[Column] | None = None) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        batch, row = self._row(index)
        exact_line = batch.value(EXACT_LINE, row) if self._has_exact_lines else None
        if exact_line:
            record = parse_exact(exact_line).record
        else:
            record = {name: batch.value(name, row) for name in self._labels}
        arrays = self._arrays(batch, row, self.schema.columns if columns is None else columns)
        check_arrays(self.schema, record, arrays, str(self.rows.root))
        return record, arrays

    @cached_property
    def _has_exact_lines(self) -> bool:
        return EXACT_LINE in self.rows.schema.names

    @cached_property
    def _labels(self) -> tuple[str, ...]:
        """The fields that `read` returns."""
        return (*LABELS, *self.schema.lengths, *(item.name for item in self.schema.record_fields))

    def _arrays(self, batch: BatchColumns, row: int, columns: Sequence[Column]) -> dict[str, np.ndarray]:
        try:
            return {column.name: batch.array(column, row) for column in columns}
        except (ValueError, pa.ArrowException) as error:
            raise StoreError(f"{self.rows.root} has arrays that cannot be read: {error}; make it again") from error

    def ids(self) -> Iterator[str]:
        found = [name for batch in self.rows.batches() for name in batch.column("id").to_pylist()]
        if self.places is not None:
            found = [found[row] for row in self.places.column(ROW).tolist()]
        return iter(found)

    def lengths(self, name: str) -> np.ndarray:
        parts = [batch.column(name).to_numpy(zero_copy_only=False) for batch in self.rows.batches()]
        found = np.concatenate(parts).astype(np.int64) if parts else np.zeros(0, np.int64)
        return found if self.places is None else found[self.places.column(ROW)]


class ArrowSet(SampleSet):
    """A folder for `datasets.load_from_disk`."""

    format = "arrow"

    @cached_property
    def _description(self) -> Mapping[str, Any]:
        found = (read_description(self.root / name / INFO_FILE) for name in _split_names(self.root))
        return next((item for item in found if item is not None), {})

    @cached_property
    def _index(self) -> Mapping[str, Any]:
        """The index; empty if there is none, as after `datasets` has saved the set again."""
        return read_index(self.root, FORMAT_NAME) or {}

    @cached_property
    def origin(self) -> Origin:
        record = dict(self._description)
        if "latents_dtype" not in record:
            record["latents_dtype"] = self._stored_dtype()
        return Origin.parse(record)

    def _types(self) -> dict[str, pa.DataType]:
        """Storage types of the columns, without extension types."""
        schema = ArrowRows(self.root / _split_names(self.root)[0]).schema
        return {item.name: getattr(item.type, "storage_type", item.type) for item in schema}

    def _stored_dtype(self) -> str:
        kinds = {name: _value_type(dtype) for name, dtype in self._types().items()}
        return "float16" if pa.float16() in kinds.values() else "float32"

    def _width(self, column: str) -> int:
        dtype = self._types().get(column)
        if isinstance(dtype, pa.FixedSizeListType):
            return int(dtype.list_size)
        for name in _split_names(self.root):
            for batch in ArrowRows(self.root / name).batches():
                return len(batch.column(column)[0])
        return 0

    def split(self, name: str, file: str | None = None) -> ArrowSplit:
        """A split, or the rows of one `file` of it in their stored order."""
        names = _split_names(self.root)
        if name not in names:
            raise StoreError(f"{self.root} has no split {name!r}; it has {', '.join(names) or 'none'}")
        columns = extra_columns_of(self._description)
        rows = ArrowRows(self.root / name, None if file is None else [file])
        places = Places.of(self.root, self._index, name) if file is None and self._index else None
        return ArrowSplit(self.schema, rows, columns, places)


def _value_type(dtype: pa.DataType) -> pa.DataType:
    while isinstance(dtype, pa.ListType | pa.LargeListType | pa.FixedSizeListType):
        dtype = dtype.value_type
    return dtype
