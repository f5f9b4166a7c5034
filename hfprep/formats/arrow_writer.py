"""Writes the shards of a saved Arrow data set, which `datasets.load_from_disk` opens without hfprep.

A shard is an Arrow IPC stream, which can be appended to: a block of samples is a record batch at its end.
"""

import dataclasses
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

import hfprep
from hfprep.errors import RejectedSample, StoreError
from hfprep.formats.arrow import (
    DICT_FILE,
    EXACT_EXTRA,
    EXACT_LINE,
    FORMAT_NAME,
    INFO_FILE,
    ROW,
    STATE_FILE,
    ArrowRows,
    ArrowSplit,
    describe,
    is_own_export,
)
from hfprep.formats.exporting import export, stored_dtype
from hfprep.formats.extra_fields import ExtraColumn, ExtraColumns, rebuilt
from hfprep.formats.index import write_index
from hfprep.formats.samples import SPLITS, Entry, Origin, Sample, SampleSet, stored_vectors
from hfprep.formats.shards import Block, ReadSample, ShardFormat, ShardOptions, blocks_of
from hfprep.inputs.audio.containers import read_clip
from hfprep.inputs.audio.decode import read_header, segment_as_wav
from hfprep.io import atomic
from hfprep.io.digest import digest
from hfprep.io.object_storage import is_url
from hfprep.io.references import file_name_of, name_of
from hfprep.schema import Column, Schema, Segment
from hfprep.store.shard_index import Shard

if TYPE_CHECKING:
    import datasets

BATCH_ROWS = 64
AUDIO = "audio"
END_OF_STREAM = b"\xff\xff\xff\xff\x00\x00\x00\x00"  # continuation marker and message length 0
_VALUE_TYPES = {str: "string", float: "float64", int: "int32", bool: "bool"}


@dataclass(frozen=True, kw_only=True)
class ArrowOptions(ShardOptions):
    """How a saved data set is written. `find_audio` returns the path of a record's audio, to embed the file."""

    find_audio: Callable[[str], str] | None = None


@dataclass
class Survey:
    """The extra columns that a set needs, determined before the first row is written."""

    exact_lines: bool = False
    exact_extras: bool = False
    extra: list[ExtraColumn] = field(default_factory=list)

    @classmethod
    def of(cls, schema: Schema, entries: Callable[[], Iterable[Entry]], *, written: bool = True) -> "Survey":
        """Survey records, in one or two passes: train first, then validation.

        With `written` False, no record has a manifest line that differs from hfprep's.
        """
        survey, collected = cls(), ExtraColumns()
        for entry in entries():
            survey.exact_lines = survey.exact_lines or (written and entry.exact_line(schema) is not None)
            collected.see(entry.extra)
        names = [column.name for column in schema.columns]
        survey.extra = collected.columns([*schema.fields, *names, AUDIO, EXACT_LINE, EXACT_EXTRA])
        survey.exact_extras = bool(survey.extra) and any(survey.exact_extra(entry) for entry in entries())
        return survey

    @classmethod
    def parse(cls, record: Mapping[str, Any]) -> "Survey":
        """The survey of a stored JSON object. Raises KeyError, TypeError or ValueError for anything else."""
        extra = [ExtraColumn.parse(item) for item in record["extra"]]
        return cls(bool(record["exact_lines"]), bool(record["exact_extras"]), extra)

    def values(self, entry: Entry) -> dict[str, Any]:
        """The values of the typed columns for a row's other fields."""
        extra = json.loads(entry.extra)
        return {column.name: column.value(extra) for column in self.extra}

    def exact_extra(self, entry: Entry) -> str | None:
        """The other fields as JSON if they cannot be restored exactly from their columns, else None."""
        return None if rebuilt(self.extra, self.values(entry)) == entry.extra else entry.extra


def export_arrow(source: SampleSet, target: Path, options: ArrowOptions | None = None) -> dict[str, int]:
    """Write a sample set as a saved DatasetDict {train, validation}; returns the number of samples per split.

    Columns: the record's fields, the schema's columns (vectors in float32 or, if requested, float16), and the source
    manifest's other fields. Atomically replaces an earlier export.
    """
    options = stored_dtype(options or ArrowOptions(), source)
    survey = Survey.of(source.schema, lambda: (entry for name in SPLITS for entry in source.split(name).entries()))
    return export(source, target, ArrowShards(source.schema, options, survey))


class ArrowShards(ShardFormat):
    """A saved DatasetDict."""

    name = "arrow"
    marker = DICT_FILE
    tail = END_OF_STREAM
    empty_splits = True

    def __init__(self, schema: Schema, options: ArrowOptions, survey: Survey | None = None) -> None:
        super().__init__(schema, options)
        self.survey = survey or Survey()
        self._dtype = np.dtype(options.dtype)
        self._find_audio = options.find_audio

    @cached_property
    def features(self) -> "datasets.Features":
        import datasets  # takes a second, and workers do not need it

        schema, survey = self.schema, self.survey
        columns: dict[str, Any] = {
            name: datasets.Value(_VALUE_TYPES[kind]) for name, kind in schema.fields.items()
        }  # fmt: skip
        for column in schema.columns:
            dtype = self.options.dtype if column.kind == "vector" else column.dtype
            columns[column.name] = list_feature(schema, column, dtype)
        columns |= {column.name: datasets.Value(column.dtype) for column in survey.extra}
        if survey.exact_lines:
            columns[EXACT_LINE] = datasets.Value("string")
        if survey.exact_extras:
            columns[EXACT_EXTRA] = datasets.Value("string")
        if self._find_audio is not None:
            columns[AUDIO] = datasets.Audio()
        return datasets.Features(columns)

    @cached_property
    def arrow_schema(self) -> pa.Schema:
        return self.features.arrow_schema  # takes milliseconds

    @cached_property
    def storage(self) -> pa.Schema:
        """The same without extension types, which do not change how values are stored."""
        return pa.schema([(item.name, getattr(item.type, "storage_type", item.type)) for item in self.arrow_schema])

    def __getstate__(self) -> dict[str, Any]:
        """Only what workers need to serialise samples."""
        storage, unused = self.storage, ("features", "arrow_schema", "head")
        return {name: value for name, value in self.__dict__.items() if name not in unused} | {"storage": storage}

    @cached_property
    def head(self) -> bytes:
        return bytes(self.arrow_schema.serialize())

    def layout(self) -> str:
        return digest([str(self.features), [dataclasses.asdict(item) for item in self.survey.extra]]).hex()

    def shard_name(self, split: str, number: int) -> str:
        return f"{split}/data-{number:05d}.arrow"

    def encode(self, samples: Sequence[Sample]) -> list[Block]:
        runs = blocks_of(samples, BATCH_ROWS, self.options.max_shard_bytes)
        return [Block(bytes(self._batch(run).serialize()), len(run)) for run in runs]

    def _batch(self, rows: Sequence[Sample]) -> pa.RecordBatch:
        columns: dict[str, Any] = {}
        for sample in rows:
            values = sample.entry.metadata(self.schema) | self.survey.values(sample.entry)
            if self.survey.exact_lines:
                values[EXACT_LINE] = sample.entry.exact_line(self.schema)
            if self.survey.exact_extras:
                values[EXACT_EXTRA] = self.survey.exact_extra(sample.entry)
            for key, value in values.items():
                columns.setdefault(key, []).append(value)
        if self._find_audio is not None:
            columns[AUDIO] = [_audio(sample.entry, self._find_audio) for sample in rows]
        arrays = []
        for item in self.storage:
            if item.name in self.schema.by_name:
                stored = [stored_vectors(self.schema, sample, item.name, self._dtype) for sample in rows]
                arrays.append(list_array(stored, item.type))
            else:
                arrays.append(pa.array(columns[item.name], item.type))
        return pa.record_batch(arrays, schema=self.storage)

    def reader(self, path: Path) -> ReadSample:
        return ArrowReader(path, self).sample

    def earlier_places(self, path: Path) -> list[tuple[int, int]] | None:
        rows = ArrowRows(path.parent, [path.name])
        return [(0, 0)] * len(rows) if rows.schema.equals(self.arrow_schema) else None

    @property
    def place_columns(self) -> tuple[str, ...]:
        return (ROW,)

    def place_of(
        self, place: tuple[int, int, int], shard: int, first_row: int, lengths: Mapping[str, int]
    ) -> tuple[int, ...]:
        del shard, lengths
        return (first_row + place[0],)

    def describe(
        self, folder: Path, splits: Mapping[str, Sequence[Shard]], places: Mapping[str, np.ndarray], origin: Origin
    ) -> dict[str, int]:
        for name in SPLITS:
            (folder / name).mkdir(parents=True, exist_ok=True)  # its shards may be in object storage
            self._describe_split(folder / name, splits[name], origin)
        counts = write_index(folder, FORMAT_NAME, splits, places, self.place_columns)
        atomic.write_bytes(folder / DICT_FILE, json.dumps({"splits": list(SPLITS)}).encode())
        return counts

    def _describe_split(self, folder: Path, shards: Sequence[Shard], origin: Origin) -> None:
        import datasets

        size, count = sum(shard.num_bytes for shard in shards), sum(shard.samples for shard in shards)
        description = describe(origin, self.survey.extra)
        info = datasets.DatasetInfo(description=description, features=self.features, dataset_name="hfprep")
        info.version = datasets.Version(hfprep.__version__)
        info.dataset_size = info.size_in_bytes = size
        info.splits = datasets.SplitDict(dataset_name="hfprep")
        info.splits.add(datasets.SplitInfo(folder.name, num_bytes=size, num_examples=count, dataset_name="hfprep"))
        info.write_to_directory(str(folder), pretty_print=True)
        with atomic.explained(folder / INFO_FILE), open(folder / INFO_FILE, "rb") as stream:
            atomic.sync_file(stream.fileno(), folder / INFO_FILE)
        content = [str(self.arrow_schema), *(shard.sha256 for shard in shards)]
        state: dict[str, Any] = {
            "_data_files": [{"filename": shard.name.partition("/")[2]} for shard in shards],
            "_fingerprint": digest(content).hex()[:16],
            "_format_columns": None,
            "_format_kwargs": {},
            "_format_type": None,
            "_output_all_columns": False,
            "_split": folder.name,
        }
        atomic.write_bytes(folder / STATE_FILE, json.dumps(state, indent=2, sort_keys=True).encode())

    def replaceable(self, folder: Path) -> bool:
        return is_own_export(folder)


class ArrowReader:
    """Reads a shard; reopens a growing shard if a row is not there yet."""

    def __init__(self, path: Path, shards: ArrowShards) -> None:
        self.path = path
        self.shards = shards
        self._split = self._opened()

    def _opened(self) -> ArrowSplit:
        return ArrowSplit(self.shards.schema, ArrowRows(self.path.parent, [self.path.name]), self.shards.survey.extra)

    def sample(self, row: int, start: int, size: int) -> Sample:
        del start, size
        if row >= len(self._split):
            self._split = self._opened()
        try:
            return self._split.sample(row)
        except IndexError:
            message = f"{self.path} does not contain row {row}, which was written to it; check the disk, then run again"
            raise StoreError(message) from None


def _audio(entry: Entry, find: Callable[[str], str]) -> dict[str, Any]:
    audio = find(str(entry.record["audio_path"]))
    try:
        offset = json.loads(entry.extra).get("offset")
        if isinstance(offset, int | float):  # the row is a segment of the recording
            content = segment_as_wav(audio, Segment(float(offset), entry.record["duration"]))
            return {"bytes": content, "path": f"{name_of(audio)}@{offset:g}.wav"}
        if not is_url(audio):
            read_header(audio)  # the record may come from others: embed only audio files
        return {"bytes": read_clip(audio), "path": file_name_of(audio)}
    except (OSError, RejectedSample, pa.ArrowException) as error:
        raise StoreError(
            f"sample {entry.id!r}: its audio {audio} cannot be read: {getattr(error, 'strerror', None) or error}; "
            "give its folder with --audio-root, or leave out --with-audio"
        ) from error


def list_feature(schema: Schema, column: Column, dtype: str) -> Any:
    """The feature of a column whose values are stored in `dtype`: lists, of fixed size where all samples have the same.

    Two fixed dimensions are an `Array2D`, which `datasets` returns as one array.
    """
    import datasets  # takes a second, and workers do not need it

    sizes = [dim if isinstance(dim, int) else schema.fixed.get(dim) for dim in column.dims]
    if len(sizes) == 2 and None not in sizes:
        return datasets.Array2D((sizes[0], sizes[1]), dtype)
    feature: Any = datasets.Value(dtype)
    for size in reversed(sizes):
        feature = datasets.List(feature) if size is None else datasets.List(feature, length=size)
    return feature


def list_array(values: Sequence[np.ndarray], dtype: pa.DataType) -> pa.Array:
    """Arrays of samples, with as many dimensions as `dtype` has list levels, as an Arrow array of that type."""
    flat = pa.array(np.concatenate([value.reshape(-1) for value in values]))
    return _nested(flat, dtype, np.array([value.shape for value in values], np.int64))


def _nested(flat: pa.Array, dtype: pa.DataType, shapes: np.ndarray) -> pa.Array:
    """Wrap flat values into lists; shapes: int64 (arrays, dimensions), of the arrays at this level."""
    sizes = shapes[:, 0]
    inner = flat if shapes.shape[1] == 1 else _nested(flat, dtype.value_type, np.repeat(shapes[:, 1:], sizes, axis=0))
    if isinstance(dtype, pa.FixedSizeListType):
        return pa.FixedSizeListArray.from_arrays(inner, type=dtype)
    offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), inner, type=dtype)
