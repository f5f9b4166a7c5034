"""Reads the npy layout as a sample set, and writes sample sets in the npy layout.

Reads any output of a build, and of older scripts with the same layout. `export_npy` restores, byte for byte, the output
that a set was made from.
"""

import json
import os
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from hfprep.errors import StoreError
from hfprep.formats.extra_fields import extra_path, read_extra_fields
from hfprep.formats.folders import atomic_folder
from hfprep.formats.positioned import LineFile
from hfprep.formats.samples import (
    NO_EXTRA,
    SPLITS,
    Entry,
    Origin,
    Sample,
    SampleSet,
    Split,
    check_arrays,
    checked,
    parse_entry,
    parse_schema,
    safe_id,
)
from hfprep.io import atomic
from hfprep.io.chunks import chunks_of
from hfprep.io.npy_format import parse_npy
from hfprep.schema import Column, Schema
from hfprep.store.fingerprints import parse_settings
from hfprep.store.first_version import first_schema, width_column
from hfprep.store.layout import IO_THREADS, PROGRESS, STATE_FILE, STATS, TRAIN, VAL, json_line, write_arrays
from hfprep.store.state import read_value
from hfprep.store.statistics import read_stats, write_stats

MANIFESTS = {"train": TRAIN, "validation": VAL}
CHUNK_SAMPLES = 256
MAX_ARRAY_BYTES = 1 << 30

Item = TypeVar("Item")


class NpySplit(Split):
    """A manifest of an npy output, with samples of this schema."""

    def __init__(self, manifest: Path, schema: Schema) -> None:
        self.manifest = manifest
        self.schema = schema
        self.root = manifest.parent
        self._lines = LineFile(manifest)

    def __len__(self) -> int:
        return len(self._lines)

    def entry(self, index: int) -> Entry:
        line = self._lines.line(index)
        try:
            entry = parse_entry(line)
            if not isinstance(entry.record.get("id"), str):
                raise ValueError("the record has no id")
            safe_id(entry.id, "its id")
            for column in self.schema.columns:
                check_inside(self.root, entry.record.get(f"{column.name}_path"))
            return entry
        except ValueError as error:
            advice = unless_stats_are_missing(self.root, "run the build again to repair it")
            raise StoreError(f"{self.manifest}, line {index + 1}: {error}; {advice}") from None

    def sample(self, index: int) -> Sample:
        return self._load(self.entry(index))

    def entries(self) -> Iterator[Entry]:
        plain = (self.entry(index) for index in range(len(self)))
        if not extra_path(self.root).is_file():
            yield from plain
            return
        ids = self.ids()
        for entry, extra in zip(plain, read_extra_fields(self.root, ids), strict=True):
            yield Entry(entry.record, entry.line, extra)

    def samples(self) -> Iterator[Sample]:
        with ThreadPoolExecutor(IO_THREADS) as pool:
            for chunk in chunks_of(self.entries(), CHUNK_SAMPLES):
                yield from pool.map(self._load, chunk)

    def read(self, index: int, columns: Sequence[Column] | None = None) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        record = self.entry(index).record
        arrays = load_arrays(self.root, self.schema.columns if columns is None else columns, record)
        check_arrays(self.schema, record, arrays, str(self.manifest))
        return record, arrays

    def ids(self) -> Iterator[str]:
        return self._values("id", str)

    def lengths(self, name: str) -> np.ndarray:
        return np.fromiter(self._values(name, int), np.int64, len(self))

    def _values(self, name: str, kind: Callable[[Any], Item]) -> Iterator[Item]:
        """A field of every record, without checking others; raises StoreError if a line does not have it."""
        for number, line in enumerate(self._lines.lines(), start=1):
            try:
                yield kind(json.loads(line)[name])
            except (ValueError, LookupError, TypeError, RecursionError):
                message = (
                    f"{self.manifest}, line {number}: it is not a record with {name}; run the build again to repair it"
                )
                raise StoreError(message) from None

    def _load(self, entry: Entry) -> Sample:
        arrays = load_arrays(self.root, self.schema.columns, entry.record)
        return checked(self.schema, Sample(entry, arrays), str(self.manifest))


def load_arrays(root: Path, columns: Iterable[Column], record: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The arrays in a record's `*_path` fields, by column; raises StoreError with the sample and file."""
    arrays = {}
    for column in columns:
        path = record.get(f"{column.name}_path")
        if not isinstance(path, str):
            raise StoreError(f"sample {record.get('id')!r} in {root} has no {column.name}_path; run the build again")
        arrays[column.name] = load_array(root, path, str(record.get("id")))
    return arrays


def unless_stats_are_missing(root: Path, advice: str) -> str:
    """The advice for a record without a field, or, if stats.json is missing, to restore that first."""
    if (root / STATS).is_file():
        return advice
    return f"{root} has no {STATS}, which describes the columns of a sample: copy it from the output"


def load_array(root: Path, path: str, sample_id: str) -> np.ndarray:
    """Load an .npy file, by its path relative to the manifest's folder."""
    try:
        check_inside(root, path)
        return parse_npy(file_content(os.path.join(root, path)))
    except (OSError, ValueError) as error:
        raise StoreError(f"sample {sample_id!r}: {root / path} cannot be read: {error}; run the build again") from error


def file_content(path: str | Path) -> bytes:
    """The bytes of an array's file. Raises OSError, and ValueError if it is not a regular file or too large."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | atomic.NO_LINK)  # O_NONBLOCK: opening a pipe would block
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("it is not a regular file")
        if status.st_size > MAX_ARRAY_BYTES:
            raise ValueError(f"it has {status.st_size} bytes, more than any array of a sample")
        data = os.read(descriptor, status.st_size)
        while len(data) < status.st_size and (more := os.read(descriptor, status.st_size - len(data))):
            data += more
        return data
    finally:
        os.close(descriptor)


def check_inside(root: Path, path: Any, suffix: str = ".npy") -> None:
    """Raise ValueError unless a record's array path is inside the output's folder."""
    if not isinstance(path, str) or not path.endswith(suffix) or "\0" in path:
        raise ValueError(f"the record has the path {path!r}, which is not an array")
    if not path.startswith("/") and ".." not in path:
        return
    folder = os.path.abspath(root)
    if not os.path.abspath(os.path.join(folder, path)).startswith(folder.rstrip("/") + "/"):
        raise ValueError(f"the record has the path {path!r}, which is outside the output")


def artifact_file(root: Path, path: str, sample_id: str) -> Path:
    """The file of an array in a record; raises StoreError if it is outside the output or a symbolic link."""
    try:
        check_inside(root, path)
        if (root / path).is_symlink():
            raise ValueError("it is a symbolic link")
    except ValueError as error:
        raise StoreError(f"sample {sample_id!r}: {root / path} cannot be used: {error}") from None
    return root / path


class NpySet(SampleSet):
    """An output directory in the npy layout."""

    format = "npy"

    @cached_property
    def origin(self) -> Origin:
        return npy_origin(self.root)

    def split(self, name: str) -> NpySplit:
        return NpySplit(self.root / MANIFESTS[name], self.schema)

    def _width(self, column: str) -> int:
        return _width_in([self.root / name for name in MANIFESTS.values()], column)


def npy_origin(root: Path) -> Origin:
    """The origin of an output, from stats.json and the state."""
    stats = read_stats(root)
    fingerprints = read_value(root / STATE_FILE, "settings", parse_settings) or {}
    return Origin(stats, fingerprints, schema=parse_schema((stats or {}).get("schema")))


def open_manifest(path: Path) -> NpySplit:
    """The samples in a manifest."""
    schema = NpySet(path.parent).origin.schema
    return NpySplit(path, schema or first_schema(_width_in([path], width_column())))


def _width_in(manifests: Iterable[Path], column: str) -> int:
    """The length of the first array in a column."""
    for manifest in manifests:
        with open(manifest, "rb") as stream:
            for line in stream:
                record = parse_entry(line).record
                return len(load_array(manifest.parent, record[f"{column}_path"], str(record.get("id"))))
    return 0


def is_npy_output(path: Path) -> bool:
    """Whether a folder has the npy layout."""
    return (path / TRAIN).is_file() and (path / VAL).is_file()


def export_npy(source: SampleSet, target: Path) -> dict[str, int]:
    """Write a sample set in the npy layout to a new folder; returns the number of samples per split.

    Vectors stored as float16 are converted to their column's dtype. The export is atomic; a `target` that already has
    exactly these samples is left unchanged. Raises StoreError if it contains anything else.
    """
    if is_npy_output(target):
        found = _exported_before(source, target)
        if found is not None:
            return found
    counts = {}
    with atomic_folder(target, lambda _: False) as folder, ThreadPoolExecutor(IO_THREADS) as pool:
        for column in source.schema.columns:
            (folder / column.name).mkdir()
        any_extra = False
        with ExitStack() as stack:
            progress = stack.enter_context(atomic.replacing(folder / PROGRESS))
            extras = stack.enter_context(atomic.replacing(extra_path(folder)))
            for name in SPLITS:
                counts[name] = 0
                manifest = stack.enter_context(atomic.replacing(folder / MANIFESTS[name]))
                for chunk in chunks_of(source.split(name).samples(), CHUNK_SAMPLES):
                    _write_chunk(folder, source.schema, chunk, pool)
                    entries = [sample.entry for sample in chunk]
                    manifest.writelines(entry.line for entry in entries)
                    progress.writelines(entry.id.encode() + b"\n" for entry in entries)
                    extras.writelines(json_line({"id": entry.id, "extra": entry.extra}) for entry in entries)
                    any_extra = any_extra or any(entry.extra != NO_EXTRA for entry in entries)
                    counts[name] += len(chunk)
        if not any_extra:
            shutil.rmtree(extra_path(folder).parent)
        stats, schema = source.origin.stats, source.origin.schema
        if schema is not None and (stats or {}).get("schema") is None:
            stats = (stats or {}) | {"schema": schema.record()}
        if stats is not None:
            write_stats(folder / STATS, stats)
    return counts


def _exported_before(source: SampleSet, target: Path) -> dict[str, int] | None:
    """The number of samples per split if a folder lists exactly the samples of a set, else None."""
    counts = {}
    for name in SPLITS:
        there, lines = source.split(name), LineFile(target / MANIFESTS[name])
        if len(there) != len(lines):
            return None
        for index, entry in enumerate(there.entries()):
            if entry.line != lines.line(index):
                return None
        counts[name] = len(lines)
    return counts


def _write_chunk(folder: Path, schema: Schema, chunk: Sequence[Sample], pool: ThreadPoolExecutor) -> None:
    jobs = []
    for sample in chunk:
        safe_id(sample.entry.id, folder)
        files = []
        for name, values in sample.arrays.items():
            path = artifact_file(folder, sample.entry.record[f"{name}_path"], sample.entry.id)
            files.append((path, values.astype(schema.by_name[name].numpy_dtype, copy=False)))
        jobs.append(files)
    for parent in {path.parent for files in jobs for path, _ in files}:
        parent.mkdir(parents=True, exist_ok=True)
    list(pool.map(partial(write_arrays, only_new=True), jobs))
