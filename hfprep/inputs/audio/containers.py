"""Clips inside tar, Arrow and Parquet files, and in object storage: their bytes, and a path that any decoder can read.

Takes the strings of `references` and URLs. A clip is held in memory while it is read, nothing is copied to a disk.
Knows nothing of what the bytes mean.
"""

import bisect
import contextlib
import itertools
import os
import tempfile
import threading
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from hfprep.errors import Reason, RejectedSample
from hfprep.io.arrow_types import holds_clips
from hfprep.io.object_storage import is_url, open_stream, read, status
from hfprep.io.references import ByteRange, ParquetCell, parse_reference

CLIPS_AT_A_TIME = 16  # of a row group that are decompressed together
READ_BYTES = 1 << 20

_this_thread = threading.local()


def read_clip(audio: str) -> bytes:
    """The bytes of an audio file, or of a clip inside another. Raises OSError, RejectedSample or StoreError."""
    match parse_reference(audio):
        case None:
            return _read(audio)
        case ByteRange(file, _, offset, length):
            clip = _read(file, offset, offset + length)
            if len(clip) < length:
                found = f"{audio}: cut off: the file ends after {len(clip)} of the clip's {length} bytes"
                raise RejectedSample(Reason.AUDIO_UNREADABLE, found)
            return clip
        case ParquetCell() as cell:
            return _column_of_this_thread(cell).read(cell)


def _read(file: str, start: int = 0, end: int | None = None) -> bytes:
    if is_url(file):
        return read(file) if end is None else read(file, start, end)
    with open(file, "rb") as stream:
        stream.seek(start)
        return stream.read(-1 if end is None else end - start)


@contextlib.contextmanager
def readable_path(audio: str) -> Iterator[str]:
    """A path of a file with this audio and nothing else, for as long as the context is open.

    An ordinary path is given back as it is. Raises RejectedSample (AUDIO_MISSING, AUDIO_UNREADABLE) for clips, and
    StoreError where the object storage that holds them cannot be reached.
    """
    if parse_reference(audio) is None and not is_url(audio):
        yield audio
        return
    try:
        clip = read_clip(audio)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise RejectedSample(Reason.AUDIO_MISSING, f"{audio}: no such file") from error
    except (OSError, pa.ArrowException) as error:
        raise RejectedSample(Reason.AUDIO_UNREADABLE, f"{audio}: {error}") from error
    with _in_memory(clip) if hasattr(os, "memfd_create") else _in_a_file(clip) as path:
        yield path


@contextlib.contextmanager
def _in_memory(clip: bytes) -> Iterator[str]:
    descriptor = os.memfd_create("hfprep-clip")
    with open(descriptor, "wb", buffering=0) as file:
        view = memoryview(clip)
        while view:
            view = view[file.write(view) :]
        yield f"/proc/{os.getpid()}/fd/{descriptor}"  # not /proc/self: ffmpeg is a process of its own


@contextlib.contextmanager
def _in_a_file(clip: bytes) -> Iterator[str]:
    with tempfile.NamedTemporaryFile(prefix="hfprep-clip-") as file:
        file.write(clip)
        file.flush()
        yield file.name


class ParquetColumn:
    """Reads clips of one column of a Parquet file. Cheap for rows that rise; a step back reads its row group again."""

    def __init__(self, file: str, column: str) -> None:
        """Raises OSError, pyarrow's ArrowException or RejectedSample where there is no such column of bytes."""
        self._stream = open_stream(file) if is_url(file) else None
        self._file = pq.ParquetFile(self._stream or file, buffer_size=READ_BYTES, pre_buffer=False)
        schema = self._file.schema_arrow
        kind = schema.field(column).type if column in schema.names else None
        if kind is None or not (holds_clips(kind) or pa.types.is_struct(kind)):
            raise RejectedSample(Reason.AUDIO_UNREADABLE, f"{file}: has no column {column!r} of bytes")
        self._leaf = f"{column}.bytes" if pa.types.is_struct(kind) else column
        metadata = self._file.metadata
        groups = [metadata.row_group(index).num_rows for index in range(metadata.num_row_groups)]
        self._starts = [0, *itertools.accumulate(groups)]
        self._batches: Iterator[Any] = iter(())
        self._group, self._first = -1, 0
        self._clips: Any = None  # of the group, from row `_first`

    def close(self) -> None:
        """Close the file."""
        self._file.close()
        if self._stream is not None:
            self._stream.close()

    def read(self, cell: ParquetCell) -> bytes:
        """The bytes of a cell; RejectedSample where there is no such row or nothing in it."""
        group = bisect.bisect_right(self._starts, cell.row) - 1
        if group == len(self._starts) - 1:
            raise RejectedSample(Reason.AUDIO_MISSING, f"{cell}: the file has only {self._starts[-1]} rows")
        if group != self._group or cell.row < self._first:
            self._batches = self._file.iter_batches(CLIPS_AT_A_TIME, row_groups=[group], columns=[self._leaf])
            self._group, self._first, self._clips = group, self._starts[group], None
        while self._clips is None or cell.row >= self._first + len(self._clips):
            self._first += 0 if self._clips is None else len(self._clips)
            column = next(self._batches).column(0)
            self._clips = column.field("bytes") if pa.types.is_struct(column.type) else column
        clip: bytes | None = self._clips[cell.row - self._first].as_py()
        if clip is None:
            raise RejectedSample(Reason.AUDIO_MISSING, f"{cell}: the cell holds no bytes")
        return clip


def _column_of_this_thread(cell: ParquetCell) -> ParquetColumn:
    """The column that this thread read last, or the cell's: neighbours are mostly read one after the other."""
    if is_url(cell.file):
        remote = status(cell.file)
        version = (remote.size, remote.version)
    else:
        local = os.stat(cell.file)
        version = (local.st_size, local.st_mtime_ns)
    key = (cell.file, cell.column, version)
    if getattr(_this_thread, "key", None) != key:
        _this_thread.key = None
        _this_thread.column = ParquetColumn(cell.file, cell.column)
        _this_thread.key = key
    column: ParquetColumn = _this_thread.column
    return column
