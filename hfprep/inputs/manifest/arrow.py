"""Reads rows of a saved Arrow data set, or one on the Hub; clips inside it are referenced, not copied.

Rows are numbered from 1 in the order of the data set. `datasets` writes uncompressed Arrow files, so a clip is a byte
range of a file. For a data set on the Hub, `datasets` first downloads it, converts it to Arrow files and caches them.
As it processes untrusted files as a whole, it does that in a separate process.
"""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from hfprep.errors import ConfigError, Reason, RejectedSample
from hfprep.inputs.manifest.columns import BYTES, UNREADABLE, Columns, Unreadable, cell_values, clip_name, clip_paths
from hfprep.inputs.manifest.field_map import FieldMap
from hfprep.inputs.manifest.guarded import Died, GuardedTables, Position, Step, run
from hfprep.inputs.manifest.rows import chosen_split
from hfprep.io.references import ByteRange
from hfprep.io.words import first_line

SPLITS_FILE, STATE_FILE = "dataset_dict.json", "state.json"  # of a set of splits, and of one saved data set
MAX_NOTES_BYTES = 1 << 24
DOWNLOAD = "download its files with `hf download {} --repo-type dataset --local-dir DIR`: Parquet is read row by row"
VIEW_BYTES, INLINE_BYTES = 16, 12  # Arrow's binary view: its size, and the longest value stored inside it


class Compressed(Exception):
    """The clips of a file are not stored in it uncompressed."""


@dataclass(frozen=True)
class ArrowFiles(GuardedTables):
    """The Arrow files of one split; references to clips are relative to `folder` (None: absolute)."""

    where: str
    paths: tuple[str, ...]
    fields: FieldMap
    folder: str | None = None

    def steps(self, start: Position) -> Iterator[Step]:
        """Rows from `start` on, and the position before each file.

        Raises ConfigError if the first file lacks needed columns or cannot be read, or if a file is compressed.
        """
        number = start.number
        for index in range(start.file, len(self.paths)):
            path = self.paths[index]
            yield Position(index, number=number)
            begun = number
            try:
                for row in self._rows(path):
                    number += 1
                    yield number, self.mapped(number, row)
            except Compressed:
                message = f"{self.where}: {path} is compressed; load it and save it with datasets' save_to_disk"
                raise ConfigError(message) from None
            except (ConfigError, OSError, *UNREADABLE) as error:
                problem = first_line(error)
                if index == 0 and number == begun:
                    if isinstance(error, ConfigError):
                        raise
                    raise ConfigError(f"{self.where}: {path} cannot be read as Arrow: {problem}") from error
                number += 1
                message = f"{path} cannot be read from its row {number - begun} on (counted from 1): {problem}"
                yield number, RejectedSample(Reason.INVALID_FIELD, message)

    def _rows(self, path: str) -> Iterator[dict[str, Any] | RejectedSample]:
        with pa.memory_map(path) as file:
            size, start = file.size(), file.read_buffer(1).address
            file.seek(0)
            reader = pa.ipc.open_stream(file)
            columns = Columns.choose(reader.schema, self.fields, self.where)
            for batch in reader:
                audio = batch.column(batch.schema.names.index(columns.audio))
                clips = self._clips(audio, path, range(start, start + size), columns)
                yield from columns.rows(batch, clips)

    def _clips(self, audio: Any, path: str, mapped: range, columns: Columns) -> list[Any]:
        """The audio of each row: a byte range of the file, else the path in the row."""
        if not columns.in_bytes:
            return cell_values(audio)
        audio.validate()  # lengths of buffers; the ranges in them are compared with the file below
        encoded, paths = audio, [None] * len(audio)
        if pa.types.is_struct(audio.type):
            encoded, paths = audio.field(BYTES), clip_paths(audio)
        starts, lengths = _ranges(encoded, mapped)
        name = path if self.folder is None else os.path.relpath(path, self.folder)
        there = encoded.is_valid().to_pylist()
        return [
            _clip(name, clip_path, int(begin), int(length), len(mapped)) if present else clip_path
            for present, clip_path, begin, length in zip(there, paths, starts, lengths, strict=True)
        ]


def _clip(name: str, clip_path: Any, begin: int, length: int, size: int) -> Any:
    if not 0 <= begin <= begin + length <= size:
        return Unreadable(f"its byte range, {begin} to {begin + length}, is not within the file of {size} bytes")
    return str(ByteRange(name, clip_name(clip_path), begin, length))


def _ranges(encoded: Any, mapped: range) -> tuple[np.ndarray, np.ndarray]:
    """Position in the file and length of each value in bytes: int64 (values,) both. Raises Compressed."""
    if pa.types.is_dictionary(encoded.type):
        encoded.validate(full=True)
        if not len(encoded.dictionary):
            return np.zeros(len(encoded), np.int64), np.zeros(len(encoded), np.int64)
        starts, lengths = _ranges(encoded.dictionary, mapped)
        indices = encoded.indices.fill_null(0).to_numpy()
        return starts[indices], lengths[indices]
    if pa.types.is_binary_view(encoded.type):
        return _ranges_of_views(encoded, mapped)
    kind = np.int64 if pa.types.is_large_binary(encoded.type) else np.int32
    _, offsets_buffer, values = encoded.buffers()
    edges = np.frombuffer(offsets_buffer, kind)[encoded.offset : encoded.offset + len(encoded) + 1].astype(np.int64)
    if values is None or not values.size:
        return np.zeros(len(encoded), np.int64), np.zeros(len(encoded), np.int64)
    return _place(values, mapped) + edges[:-1], np.diff(edges)


def _ranges_of_views(encoded: Any, mapped: range) -> tuple[np.ndarray, np.ndarray]:
    """The same for views: a short value is inside its view, a longer one in one of several buffers."""
    _, views, *buffers = encoded.buffers()
    words = np.frombuffer(views, np.int32).reshape(-1, VIEW_BYTES // 4)[encoded.offset : encoded.offset + len(encoded)]
    lengths = words[:, 0].astype(np.int64)
    inline = _place(views, mapped) + VIEW_BYTES * (encoded.offset + np.arange(len(encoded))) + 4
    places = np.array([_place(buffer, mapped) for buffer in buffers] or [0], np.int64)
    beyond = (words[:, 2] < 0) | (words[:, 2] >= len(places))
    outside = places[np.where(beyond, 0, words[:, 2])] + words[:, 3]
    starts = np.where(lengths <= INLINE_BYTES, inline, np.where(beyond, -1, outside))
    return starts, lengths


def _place(buffer: Any, mapped: range) -> int:
    if buffer.address not in mapped:
        raise Compressed
    return int(buffer.address - mapped.start)


def open_saved(folder: Path, split: str | None, fields: FieldMap) -> ArrowFiles:
    """The rows of a data set saved with `save_to_disk`. Raises ConfigError."""
    where = f"--manifest {str(folder)!r}"
    if (folder / SPLITS_FILE).is_file():
        splits = _names(_notes(folder / SPLITS_FILE, where).get("splits"), f"{where}: {SPLITS_FILE}")
        inner = folder / chosen_split(splits, split, where)
    elif split is not None:
        raise ConfigError(f"{where} has no splits; omit :{split}")
    else:
        inner = folder
    notes = _notes(inner / STATE_FILE, where)
    if notes.get("_indices_files") or notes.get("_indices_data_files"):
        raise ConfigError(f"{where} is a selection of rows; load it and save it with datasets' save_to_disk")
    listed = notes.get("_data_files")
    files = [item.get("filename") if isinstance(item, dict) else None for item in listed or ()]
    paths = tuple(str(inner / name) for name in _names(files, f"{where}: {STATE_FILE}"))
    missing = [path for path in paths if not os.path.isfile(path)]
    if missing:
        raise ConfigError(f"{where} cannot be read as a saved data set: there is no file {missing[0]}")
    return ArrowFiles(where, paths, fields, os.path.abspath(folder))


def _notes(path: Path, where: str) -> dict[str, Any]:
    """A JSON object that `datasets` writes beside the data."""
    try:
        with open(path, "rb") as stream:
            found = json.loads(stream.read(MAX_NOTES_BYTES))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{where} cannot be read as a saved data set: {path.name}: {error}") from error
    if not isinstance(found, dict):
        raise ConfigError(f"{where} cannot be read as a saved data set: {path.name} is not a JSON object")
    return found


def _names(values: Any, where: str) -> list[str]:
    """Names of files or folders directly below; a name that leads elsewhere raises ConfigError."""
    names = list(values) if isinstance(values, list) else []
    for name in names or [None]:
        if not isinstance(name, str) or name in ("", ".", "..") or "/" in name or "\0" in name:
            raise ConfigError(f"{where} names {name!r}, which is not a file of a saved data set; save it again")
    return names


def open_hub(repository: str, config: str | None, split: str | None, fields: FieldMap) -> ArrowFiles:
    """The rows of a data set on the Hub, downloaded unless it is cached. Raises ConfigError."""
    where = f"--manifest {repository!r} (no such file; taken as a data set on the Hub)"
    try:
        for step in run(partial(_fetched, where, repository, config, split)):
            if isinstance(step, tuple) and isinstance(step[1], dict):
                return ArrowFiles(where, tuple(step[1]["files"]), fields)
    except Died as error:
        raise ConfigError(
            f"{where} cannot be converted: the process that converts it {error}; {DOWNLOAD.format(repository)}"
        ) from error
    raise ConfigError(f"{where} cannot be loaded: it has no files")


def _fetched(where: str, repository: str, config: str | None, split: str | None) -> Iterator[Step]:
    """One step with the names of the Arrow files of one split, in `datasets`' cache."""
    import datasets
    from huggingface_hub.utils import disable_progress_bars

    datasets.disable_progress_bars()
    disable_progress_bars()
    try:
        if split is None:
            split = chosen_split(datasets.get_dataset_split_names(repository, config), None, where)
        data = datasets.load_dataset(repository, config, split=split)
    except ConfigError:
        raise
    except datasets.exceptions.DatasetGenerationError as error:
        cause = "it is damaged" if error.__cause__ is None else first_line(error.__cause__)
        raise ConfigError(f"{where} cannot be converted: {cause}; {DOWNLOAD.format(repository)}") from error
    except Exception as error:  # any error of the network, the Hub or its files
        raise ConfigError(
            f"{where} cannot be loaded: {first_line(error)}. If you meant a file, correct its path. To download the "
            f"data set while online: python -c \"import datasets; datasets.load_dataset('{repository}')\""
        ) from error
    yield 1, {"files": [file["filename"] for file in data.cache_files]}
