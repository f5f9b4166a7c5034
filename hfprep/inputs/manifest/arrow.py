"""A saved Arrow data set, or one of the Hub's, as rows; audio that lies in it is read where it lies.

Rows are numbered from 1 in the order of the data set. `datasets` keeps its Arrow files uncompressed, so that a clip is
a range of a file's bytes. A data set of the Hub is fetched and cached by `datasets`; what is cached works offline.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa

from hfprep.errors import ConfigError
from hfprep.inputs.manifest.columns import BYTES, PATH, Columns, clip_name
from hfprep.inputs.manifest.field_map import FieldMap
from hfprep.inputs.manifest.rows import RawRow
from hfprep.io.references import ByteRange

DEFAULT_SPLIT = "train"


@dataclass(frozen=True)
class ArrowFiles:
    """The Arrow files of one split; `folder` is what the names of clips are relative to (None: absolute)."""

    where: str
    paths: tuple[str, ...]
    fields: FieldMap
    folder: str | None = None

    def lines(self) -> Iterator[tuple[int, RawRow]]:
        """Number and row of each row. Raises ConfigError where the columns do not do or a file is compressed."""
        number = 0
        for path in self.paths:
            with pa.memory_map(path) as file:
                size, start = file.size(), file.read_buffer(1).address
                file.seek(0)
                reader = pa.ipc.open_stream(file)
                columns = Columns.choose(reader.schema, self.fields, self.where)
                for batch in reader:
                    clips = self._clips(batch.column(columns.audio), path, range(start, start + size), columns)
                    for row, clip in zip(columns.rows(batch), clips, strict=True):
                        number += 1
                        yield number, self.fields.apply(number, row | {columns.audio: clip})

    def _clips(self, audio: Any, path: str, mapped: range, columns: Columns) -> list[str | None]:
        """The audio of each row: a range of the file's bytes, else the path in the row."""
        if not columns.in_bytes:
            return [None if value is None else str(value) for value in audio.to_pylist()]
        encoded, paths = audio, [None] * len(audio)
        if pa.types.is_struct(audio.type):
            encoded = audio.field(BYTES)
            paths = audio.field(PATH).to_pylist() if audio.type.get_field_index(PATH) >= 0 else paths
        starts, lengths = self._ranges(encoded, path, mapped)
        name = path if self.folder is None else os.path.relpath(path, self.folder)
        there = encoded.is_valid().to_pylist()
        return [
            str(ByteRange(name, clip_name(clip_path), int(begin), int(length))) if present else clip_path
            for present, clip_path, begin, length in zip(there, paths, starts, lengths, strict=True)
        ]

    def _ranges(self, encoded: Any, path: str, mapped: range) -> tuple[np.ndarray, np.ndarray]:
        """First byte in the file and length of each value."""
        kind = np.int64 if pa.types.is_large_binary(encoded.type) else np.int32
        _, offsets_buffer, values = encoded.buffers()
        edges = np.frombuffer(offsets_buffer, kind)[encoded.offset : encoded.offset + len(encoded) + 1].astype(np.int64)
        if values is None or not values.size:
            return np.zeros(len(encoded), np.int64), np.zeros(len(encoded), np.int64)
        if values.address not in mapped:
            raise ConfigError(f"{self.where}: {path} is compressed; load it and save it with datasets' save_to_disk")
        return values.address - mapped.start + edges[:-1], np.diff(edges)


def open_saved(folder: Path, split: str | None, fields: FieldMap) -> ArrowFiles:
    """The rows of a data set saved with `save_to_disk`. Raises ConfigError."""
    where = f"--manifest {str(folder)!r}"
    try:
        saved = datasets.load_from_disk(str(folder), keep_in_memory=False)
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        raise ConfigError(f"{where} cannot be read as a saved data set: {error}") from error
    chosen = _choose(saved, split, where) if isinstance(saved, datasets.DatasetDict) else saved
    if split is not None and chosen is saved:
        raise ConfigError(f"{where} has no splits; leave :{split} out")
    return ArrowFiles(where, _files(chosen), fields, os.path.abspath(folder))


def open_hub(repository: str, config: str | None, split: str | None, fields: FieldMap) -> ArrowFiles:
    """The rows of a data set of the Hub, fetched unless it is cached. Raises ConfigError."""
    where = f"--manifest {repository!r} (no such file; a data set of the Hub)"
    try:
        if split is None:
            splits = datasets.get_dataset_split_names(repository, config)
            split = _default_split(splits, where)
        data = datasets.load_dataset(repository, config, split=split)
    except ConfigError:
        raise
    except Exception as error:  # whatever the network, the Hub or its files may raise
        message = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ConfigError(
            f"{where} cannot be loaded: {message}. If you meant a file, correct its path. To fetch the data set while "
            f"online: python -c \"import datasets; datasets.load_dataset('{repository}')\""
        ) from error
    return ArrowFiles(where, _files(data), fields)


def _files(data: Any) -> tuple[str, ...]:
    return tuple(file["filename"] for file in data.cache_files)


def _choose(saved: Any, split: str | None, where: str) -> Any:
    split = split or _default_split(list(saved), where)
    if split not in saved:
        raise ConfigError(f"{where} has no split {split!r}; it has: {', '.join(saved)}")
    return saved[split]


def _default_split(splits: list[str], where: str) -> str:
    if len(splits) == 1:
        return splits[0]
    if DEFAULT_SPLIT in splits:
        return DEFAULT_SPLIT
    raise ConfigError(f"{where} has several splits; name one after a colon: {' '.join(':' + name for name in splits)}")
