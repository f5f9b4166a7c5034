"""Sample sets written as a saved Arrow data set: what `datasets.load_from_disk` opens with no hfprep code.

Rows go to shards as they come, in memory no more than one record batch; the folder appears whole at the end.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa

import hfprep
from hfprep.audio.containers import read_clip
from hfprep.errors import ConfigError, RejectedSample, StoreError
from hfprep.exporters.arrow import (
    DICT_FILE,
    EXACT_EXTRA,
    EXACT_LINE,
    FORMAT_NAME,
    STATE_FILE,
    describe,
    is_own_export,
)
from hfprep.exporters.extra_fields import ExtraColumn, ExtraColumns, rebuilt
from hfprep.exporters.folders import appearing_folder
from hfprep.exporters.index import Shard, shard_of, write_index
from hfprep.exporters.samples import DTYPES, LATENTS, METADATA, SPLITS, Entry, Origin, Sample, SampleSet
from hfprep.records import COLUMNS
from hfprep.references import file_name_of
from hfprep.store import atomic

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
class _Survey:
    """What the records of a set need as columns, found before the first row is written."""

    exact_lines: bool = False
    exact_extras: bool = False
    extra: list[ExtraColumn] = field(default_factory=list)

    @classmethod
    def of(cls, source: SampleSet) -> "_Survey":
        survey, collected = cls(), ExtraColumns()
        for name in SPLITS:
            for entry in source.split(name).entries():
                survey.exact_lines = survey.exact_lines or entry.exact_line() is not None
                collected.see(entry.extra)
        survey.extra = collected.columns([*METADATA, *COLUMNS, AUDIO, EXACT_LINE, EXACT_EXTRA])
        if survey.extra:
            for name in SPLITS:
                if any(survey.exact_extra(entry) for entry in source.split(name).entries()):
                    survey.exact_extras = True
                    break
        return survey

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
    survey = _Survey.of(source)
    shards = {}
    with appearing_folder(target, is_own_export) as folder:
        features = _features(source, survey, origin.latents_dtype, with_audio=options.find_audio is not None)
        for name in SPLITS:
            writer = _SplitWriter(folder / name, features, survey, options, origin)
            shards[name] = writer.write(name, source.split(name).samples(), describe(origin, survey.extra))
        atomic.write_bytes(folder / DICT_FILE, json.dumps({"splits": list(SPLITS)}).encode())
        return write_index(folder, FORMAT_NAME, shards)


def _features(source: SampleSet, survey: _Survey, dtype: str, *, with_audio: bool) -> datasets.Features:
    first = next((sample for name in SPLITS for sample in islice(source.split(name).samples(), 1)), None)
    rows, dim = first.arrays["condition"].shape if first else (0, 0)
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
    if with_audio:
        columns[AUDIO] = datasets.Audio()
    return datasets.Features(columns)


class _SplitWriter:
    """Writes one split's folder: shards, state.json, dataset_info.json."""

    def __init__(
        self, folder: Path, features: datasets.Features, survey: _Survey, options: ArrowOptions, origin: Origin
    ) -> None:
        self.folder = folder
        self.features = features
        self.schema = features.arrow_schema
        self.survey = survey
        self.options = options
        self.dtype = np.dtype(origin.latents_dtype)
        self.hash = hashlib.blake2b(str(self.schema).encode(), digest_size=8)
        self.num_bytes = 0

    def write(self, name: str, samples: Iterator[Sample], description: str) -> list[Shard]:
        """Write all samples; gives an index item for each shard."""
        self.folder.mkdir()
        num_shards = 0
        rows: list[int] = []
        batch = self._next(samples)
        while batch is not None or num_shards == 0:
            rows.append(0)
            with ExitStack() as stack:
                sink = stack.enter_context(pa.OSFile(str(self._shard(num_shards)), "wb"))
                writer = stack.enter_context(pa.ipc.new_stream(sink, self.schema))
                size = 0
                while batch is not None and (size == 0 or size + batch.nbytes <= self.options.max_shard_bytes):
                    writer.write_batch(batch)
                    size += batch.nbytes
                    rows[-1] += batch.num_rows
                    batch = self._next(samples)
            num_shards += 1
            self.num_bytes += size
        names = [f"data-{index:05d}-of-{num_shards:05d}.arrow" for index in range(num_shards)]
        for index, final in enumerate(names):
            self._finish_shard(index, final)
        self._describe(name, sum(rows), names, description)
        root = self.folder.parent
        return [shard_of(root, f"{name}/{file}", count) for file, count in zip(names, rows, strict=True)]

    def _shard(self, index: int) -> Path:
        return self.folder / f"{index:05d}.tmp"

    def _finish_shard(self, index: int, name: str) -> None:
        with open(self._shard(index), "rb") as stream:
            atomic.sync_file(stream.fileno(), self.folder / name)
        atomic.rename(self._shard(index), self.folder / name)

    def _describe(self, name: str, count: int, files: Sequence[str], description: str) -> None:
        size = sum((self.folder / file).stat().st_size for file in files)
        info = datasets.DatasetInfo(description=description, features=self.features, dataset_name="hfprep")
        info.version = datasets.Version(hfprep.__version__)
        info.dataset_size = info.size_in_bytes = size
        info.splits = datasets.SplitDict(dataset_name="hfprep")
        info.splits.add(datasets.SplitInfo(name, num_bytes=size, num_examples=count, dataset_name="hfprep"))
        info.write_to_directory(str(self.folder), pretty_print=True)
        state: dict[str, Any] = {
            "_data_files": [{"filename": file} for file in files],
            "_fingerprint": self.hash.hexdigest(),
            "_format_columns": None,
            "_format_kwargs": {},
            "_format_type": None,
            "_output_all_columns": False,
            "_split": name,
        }
        atomic.write_bytes(self.folder / STATE_FILE, json.dumps(state, indent=2, sort_keys=True).encode())

    def _next(self, samples: Iterator[Sample]) -> pa.RecordBatch | None:
        rows = list(islice(samples, BATCH_ROWS))
        if not rows:
            return None
        atomic.observe("before-write", self.folder)
        columns: dict[str, Any] = {}
        for sample in rows:
            self.hash.update(sample.entry.line)
            values = sample.entry.metadata() | self.survey.values(sample.entry)
            values |= {EXACT_LINE: sample.entry.exact_line(), EXACT_EXTRA: self.survey.exact_extra(sample.entry)}
            for key, value in values.items():
                columns.setdefault(key, []).append(value)
        for column in COLUMNS:
            columns[column] = [self._stored(sample, column) for sample in rows]
        if self.options.find_audio is not None:
            columns[AUDIO] = [_audio(sample.entry, self.options.find_audio) for sample in rows]
        arrays = [self._column(item, columns[item.name]) for item in self.schema]
        return pa.record_batch(arrays, schema=self.schema)

    def _stored(self, sample: Sample, column: str) -> np.ndarray:
        values = stored_latents(sample, column, self.dtype) if column in LATENTS else sample.arrays[column]
        self.hash.update(np.ascontiguousarray(values).data)
        return values

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
