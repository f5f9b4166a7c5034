"""Sample sets written as a saved Arrow data set: what `datasets.load_from_disk` opens with no hfprep code.

Rows go to shards as they come, in memory no more than one record batch; the folder appears whole at the end.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa

import hfprep
from hfprep.errors import ConfigError, RejectedSample, StoreError
from hfprep.formats.arrow import DICT_FILE, EXACT_EXTRA, EXACT_LINE, FORMAT_NAME, STATE_FILE, describe, is_own_export
from hfprep.formats.extra_fields import ExtraColumn, ExtraColumns, rebuilt
from hfprep.formats.folders import appearing_folder
from hfprep.formats.index import listed, write_index
from hfprep.formats.samples import DTYPES, LATENTS, METADATA, SPLITS, Entry, Origin, Sample, SampleSet
from hfprep.formats.shard_files import ShardStream, Start, WrittenShard, closing_stream
from hfprep.inputs.audio.containers import read_clip
from hfprep.io import atomic
from hfprep.io.references import file_name_of
from hfprep.schema import COLUMNS

MAX_SHARD_BYTES = 500 * 10**6
BATCH_ROWS = 64
AUDIO = "audio"
_VALUE_TYPES = {str: "string", float: "float64", int: "int32"}


@dataclass(frozen=True, kw_only=True)
class ArrowOptions:
    """How a saved data set is written. `find_audio` gives the path of a record's audio, to embed the file itself."""

    max_shard_bytes: int = MAX_SHARD_BYTES
    dtype: str = "float32"
    find_audio: Callable[[str], str] | None = None

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ConfigError(f"--dtype is {self.dtype!r}; it must be {' or '.join(DTYPES)}")


@dataclass
class Survey:
    """What the records of a set need as columns, found before the first row is written."""

    exact_lines: bool = False
    exact_extras: bool = False
    extra: list[ExtraColumn] = field(default_factory=list)

    @classmethod
    def of(cls, entries: Callable[[], Iterable[Entry]]) -> "Survey":
        """The needs of records, which are gone through once or twice: train first, then validation."""
        survey, collected = cls(), ExtraColumns()
        for entry in entries():
            survey.exact_lines = survey.exact_lines or entry.exact_line() is not None
            collected.see(entry.extra)
        survey.extra = collected.columns([*METADATA, *COLUMNS, AUDIO, EXACT_LINE, EXACT_EXTRA])
        survey.exact_extras = bool(survey.extra) and any(survey.exact_extra(entry) for entry in entries())
        return survey

    def record(self) -> dict[str, Any]:
        """The JSON object that stands for it."""
        return dataclasses.asdict(self)

    @classmethod
    def parse(cls, record: Mapping[str, Any]) -> "Survey":
        """The opposite of `record`."""
        return cls(record["exact_lines"], record["exact_extras"], [ExtraColumn(**item) for item in record["extra"]])

    def values(self, entry: Entry) -> dict[str, Any]:
        """The typed columns of a row's other fields."""
        extra = json.loads(entry.extra)
        return {column.name: column.value(extra) for column in self.extra}

    def exact_extra(self, entry: Entry) -> str | None:
        """The other fields as JSON where their columns would not give them back exactly, else None."""
        return None if rebuilt(self.extra, self.values(entry)) == entry.extra else entry.extra


def export_arrow(source: SampleSet, target: Path, options: ArrowOptions | None = None) -> dict[str, int]:
    """Write a sample set as a saved DatasetDict {train, validation}; gives the number of samples a split.

    Columns: the record's fields, text_ids and codes (int32 lists), condition (2-D) and emo_vec (fixed length) in
    float32, or float16 where asked, and the source manifest's other fields. Replaces an earlier export as a whole.
    """
    options = options or ArrowOptions()
    stored = source.origin.latents_dtype
    origin = Origin(source.origin.stats, source.origin.fingerprints, stored if stored == "float16" else options.dtype)
    survey = Survey.of(lambda: (entry for name in SPLITS for entry in source.split(name).entries()))
    splits = {}
    with appearing_folder(target, is_own_export) as folder:
        columns = ArrowColumns.of(survey, _condition_shape(source), origin.latents_dtype, options)
        for name in SPLITS:
            (folder / name).mkdir()
            shards = _write_split(folder / name, source.split(name).samples(), columns, options)
            for shard, final in zip(shards, shard_names(len(shards)), strict=True):
                atomic.rename(shard.path, folder / name / final)
            describe_split(folder / name, shards, columns, origin)
            splits[name] = shards
        return describe_set(folder, splits)


def _condition_shape(source: SampleSet) -> tuple[int, ...]:
    first = next((sample for name in SPLITS for sample in islice(source.split(name).samples(), 1)), None)
    return first.arrays["condition"].shape if first else (0, 0)


def _write_split(
    folder: Path, samples: Iterable[Sample], columns: "ArrowColumns", options: ArrowOptions
) -> list[WrittenShard]:
    stream = ArrowStream(lambda number: folder / f"{number:05d}.arrow", columns, options)
    shards = []
    with closing_stream(stream):
        for sample in samples:
            shards += stream.add(sample)
        return shards + stream.finish()


def shard_names(count: int) -> list[str]:
    """The files of a split with so many shards."""
    return [f"data-{index:05d}-of-{count:05d}.arrow" for index in range(count)]


def describe_set(folder: Path, splits: Mapping[str, Sequence[WrittenShard]]) -> dict[str, int]:
    """Write the index, and then the file that makes a folder of splits a saved DatasetDict; gives their samples."""
    items = {
        name: listed(shards, (f"{name}/{file}" for file in shard_names(len(shards)))) for name, shards in splits.items()
    }
    counts = write_index(folder, FORMAT_NAME, items)
    atomic.write_bytes(folder / DICT_FILE, json.dumps({"splits": list(SPLITS)}).encode())
    return counts


@dataclass(frozen=True)
class ArrowColumns:
    """The columns of a data set, and what they are made from."""

    features: datasets.Features
    survey: Survey
    dtype: str

    @classmethod
    def of(cls, survey: Survey, condition: tuple[int, ...], dtype: str, options: ArrowOptions) -> "ArrowColumns":
        """The columns for records as surveyed and conditions of that shape."""
        rows, dim = condition
        columns: dict[str, Any] = {name: datasets.Value(_VALUE_TYPES[kind]) for name, kind in METADATA.items()}
        columns |= {
            "text_ids": datasets.List(datasets.Value("int32")),
            "codes": datasets.List(datasets.Value("int32")),
            "condition": datasets.Array2D((rows, dim), dtype),
            "emo_vec": datasets.List(datasets.Value(dtype), length=dim),
        }
        columns |= {column.name: datasets.Value(column.dtype) for column in survey.extra}
        if survey.exact_lines:
            columns[EXACT_LINE] = datasets.Value("string")
        if survey.exact_extras:
            columns[EXACT_EXTRA] = datasets.Value("string")
        if options.find_audio is not None:
            columns[AUDIO] = datasets.Audio()
        return cls(datasets.Features(columns), survey, dtype)


def describe_split(folder: Path, shards: Sequence[WrittenShard], columns: ArrowColumns, origin: Origin) -> None:
    """Write dataset_info.json and state.json beside a split's shards, which have their final names."""
    size, count = sum(shard.num_bytes for shard in shards), sum(shard.samples for shard in shards)
    description = describe(origin, columns.survey.extra)
    info = datasets.DatasetInfo(description=description, features=columns.features, dataset_name="hfprep")
    info.version = datasets.Version(hfprep.__version__)
    info.dataset_size = info.size_in_bytes = size
    info.splits = datasets.SplitDict(dataset_name="hfprep")
    info.splits.add(datasets.SplitInfo(folder.name, num_bytes=size, num_examples=count, dataset_name="hfprep"))
    info.write_to_directory(str(folder), pretty_print=True)
    content = [str(columns.features.arrow_schema), *(shard.sha256 for shard in shards)]
    state: dict[str, Any] = {
        "_data_files": [{"filename": name} for name in shard_names(len(shards))],
        "_fingerprint": hashlib.blake2b("\n".join(content).encode(), digest_size=8).hexdigest(),
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": None,
        "_output_all_columns": False,
        "_split": folder.name,
    }
    atomic.write_bytes(folder / STATE_FILE, json.dumps(state, indent=2, sort_keys=True).encode())


class ArrowStream(ShardStream):
    """Samples as rows of record batches; a split without samples gets one empty shard."""

    def __init__(
        self,
        shard_path: Callable[[int], Path],
        columns: ArrowColumns,
        options: ArrowOptions,
        start: Start | None = None,
    ) -> None:
        super().__init__(shard_path, start or Start())
        self.features = columns.features
        self.schema = columns.features.arrow_schema
        self.survey = columns.survey
        self.dtype = np.dtype(columns.dtype)
        self.options = options
        self._rows: list[Sample] = []

    def add(self, sample: Sample) -> list[WrittenShard]:
        self._rows.append(sample)
        return self._write_batch() if len(self._rows) == BATCH_ROWS else []

    def finish(self) -> list[WrittenShard]:
        shards = self._write_batch() if self._rows else []
        if self.file is None and self.number == 0:
            self._open()
        return shards if self.file is None else [*shards, self._end()]

    def _write_batch(self) -> list[WrittenShard]:
        batch, self._rows = self._batch(self._rows), []
        most = self.options.max_shard_bytes - batch.nbytes
        ended = self._make_room(lambda samples, used: not samples or used <= most)
        assert self.file is not None
        with atomic.explained(self.file.path):
            self._writer.write_batch(batch)
        self.samples, self.used = self.samples + batch.num_rows, self.used + batch.nbytes
        return ended

    def _open(self) -> None:
        super()._open()
        assert self.file is not None
        self._writer = pa.ipc.new_stream(self.file.stream, self.schema)

    def _end(self) -> WrittenShard:
        assert self.file is not None
        with atomic.explained(self.file.path):
            self._writer.close()
        return super()._end()

    def _batch(self, rows: Sequence[Sample]) -> pa.RecordBatch:
        columns: dict[str, Any] = {}
        for sample in rows:
            values = sample.entry.metadata() | self.survey.values(sample.entry)
            values |= {EXACT_LINE: sample.entry.exact_line(), EXACT_EXTRA: self.survey.exact_extra(sample.entry)}
            for key, value in values.items():
                columns.setdefault(key, []).append(value)
        for name in COLUMNS:
            columns[name] = [
                stored_latents(sample, name, self.dtype) if name in LATENTS else sample.arrays[name] for sample in rows
            ]
        if self.options.find_audio is not None:
            columns[AUDIO] = [_audio(sample.entry, self.options.find_audio) for sample in rows]
        arrays = [self._column(item, columns[item.name]) for item in self.schema]
        return pa.record_batch(arrays, schema=self.schema)

    def _column(self, item: pa.Field, values: list[Any]) -> pa.Array:
        if item.name not in COLUMNS:
            return pa.array(values, item.type)
        if item.name == "emo_vec":
            same = self._same_shape(item, values)
            return pa.FixedSizeListArray.from_arrays(pa.array(same.reshape(-1)), type=item.type)
        if item.name == "condition":
            same = self._same_shape(item, values)
            rows = pa.ListArray.from_arrays(_steps(same.shape[0] * same.shape[1], same.shape[2]), same.reshape(-1))
            storage = pa.ListArray.from_arrays(_steps(same.shape[0], same.shape[1]), rows)
            return pa.ExtensionArray.from_storage(item.type, storage.cast(item.type.storage_type))
        offsets = np.concatenate([[0], np.cumsum([len(value) for value in values])]).astype(np.int32)
        return pa.ListArray.from_arrays(offsets, pa.array(np.concatenate(values)))

    def _same_shape(self, item: pa.Field, values: list[np.ndarray]) -> np.ndarray:
        feature = self.features[item.name]
        wanted = (feature.length,) if item.name == "emo_vec" else tuple(feature.shape)
        for value in values:
            if value.shape != wanted:
                raise StoreError(
                    f"{item.name} has the shape {value.shape} in one sample and {wanted} in the first; a data set "
                    "holds features of one model: build these samples again"
                )
        return np.stack(values)


def stored_latents(sample: Sample, column: str, dtype: np.dtype[Any]) -> np.ndarray:
    """A sample's latents in the dtype that they are stored in; StoreError where float16 cannot hold them."""
    values = sample.arrays[column]
    if values.dtype == dtype:
        return values
    with np.errstate(over="ignore"):
        stored = values.astype(dtype)
    if not np.array_equal(np.isfinite(stored), np.isfinite(values)):
        raise StoreError(f"sample {sample.entry.id!r}: {column} is too large for {dtype}; export it as float32")
    return stored


def _steps(count: int, width: int) -> pa.Array:
    return pa.array(np.arange(count + 1, dtype=np.int32) * np.int32(width), pa.int32())


def _audio(entry: Entry, find: Callable[[str], str]) -> dict[str, Any]:
    audio = find(str(entry.record["audio_path"]))
    try:
        return {"bytes": read_clip(audio), "path": file_name_of(audio)}
    except (OSError, RejectedSample, pa.ArrowException) as error:
        raise StoreError(
            f"sample {entry.id!r}: its audio {audio} cannot be read: {getattr(error, 'strerror', None) or error}; "
            "say where it lies with --audio-root, or leave out --with-audio"
        ) from error
