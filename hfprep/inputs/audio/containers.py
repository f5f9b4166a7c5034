"""Audio as an open file, whatever holds it: a path, a clip inside a tar, Arrow or Parquet file, an object in a store.

Takes paths, the strings of `references` and URLs. What is opened is a regular file, and a range of bytes lies inside
it; a clip inside another file is held in memory while it is read, or, if it is large, read in place.
"""

import bisect
import contextlib
import itertools
import os
import stat
import tempfile
import threading
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from hfprep.errors import Reason, RejectedSample
from hfprep.inputs.audio.sound import Clip
from hfprep.io.arrow_types import holds_clips
from hfprep.io.object_storage import is_url, open_stream, read, status
from hfprep.io.references import ByteRange, ParquetCell, parse_reference, suffix_of

CLIPS_AT_A_TIME = 16  # of a row group that are decompressed together
READ_BYTES = 1 << 20
MAX_CLIP_BYTES = 1 << 28  # of a clip that is held in memory: 25 minutes of a CD
FETCHED_WHOLE_BYTES = 1 << 22  # of one of which a stretch is wanted: what takes no longer than a few requests

_this_thread = threading.local()


@contextlib.contextmanager
def opened(audio: str, *, in_part: bool = False) -> Iterator[Clip]:
    """A recording, for as long as the context is open; `in_part`: some stretch of it is wanted.

    A clip inside another file is held in memory. Part of it, or one that is too large for that, is read in place.
    Raises RejectedSample (AUDIO_MISSING, AUDIO_UNREADABLE, AUDIO_EMPTY), and StoreError where the object storage that
    holds it cannot be reached.
    """
    with contextlib.ExitStack() as stack:
        with _mapped(audio):
            clip = _opened(audio, in_part, stack)
        if clip.size == 0:
            raise RejectedSample(Reason.AUDIO_EMPTY, f"{audio}: the file is empty (0 bytes)")
        yield clip


def _opened(audio: str, in_part: bool, stack: contextlib.ExitStack) -> Clip:
    match parse_reference(audio):
        case None if is_url(audio):
            return _within(audio, audio, 0, None, in_part, stack)
        case ByteRange(file, _, offset, length):
            return _within(audio, file, offset, length, in_part, stack)
        case ParquetCell() as cell:
            return _in_memory(audio, _column_of_this_thread(cell).read(cell), stack)
    descriptor = open_regular(audio)
    stack.callback(os.close, descriptor)
    status = os.fstat(descriptor)
    return Clip(audio, status.st_size, suffix_of(audio), descriptor, version=_version(status))


def _within(audio: str, file: str, start: int, length: int | None, in_part: bool, stack: contextlib.ExitStack) -> Clip:
    """A clip inside a file (None: from `start` to its end), or in object storage: in memory, or read where it is."""
    descriptor = -1
    version: tuple[Any, ...]
    if is_url(file):
        found = status(file)
        size, version = found.size, (file, found.size, found.version)
    else:
        descriptor = open_regular(file)
        stack.callback(os.close, descriptor)
        local = os.fstat(descriptor)
        size, version = local.st_size, _version(local)
    wanted = size if length is None else length
    check_range(audio, size, start, wanted)
    in_place = wanted > (FETCHED_WHOLE_BYTES if in_part else MAX_CLIP_BYTES)
    if not in_place:
        content = os.pread(descriptor, wanted, start) if descriptor >= 0 else read(file, start, start + wanted)
        if len(content) != wanted:
            message = f"{audio}: {len(content)} bytes came where {wanted} were asked for; has the file changed?"
            raise RejectedSample(Reason.AUDIO_UNREADABLE, message)
        return _in_memory(audio, content, stack)
    stream = stack.enter_context(open_stream(file)) if descriptor < 0 else None
    version = (*version, start, wanted)
    return Clip(audio, wanted, suffix_of(audio), descriptor, start, is_file=False, stream=stream, version=version)


def _version(status: os.stat_result) -> tuple[Any, ...]:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def read_clip(audio: str) -> bytes:
    """The bytes of an audio file, or of a clip inside another. Raises RejectedSample or StoreError."""
    with opened(audio) as clip:
        if clip.size > MAX_CLIP_BYTES:
            raise _too_large(audio, clip.size)
        return clip.read_at(0, clip.size)


def open_regular(path: str) -> int:
    """A descriptor of a regular file; anything else is refused without opening it. Raises OSError, RejectedSample."""
    # Opening a FIFO or a device can block for ever or do something, so look first; and look again at what was opened.
    check_regular(path, os.stat(path))
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    try:
        check_regular(path, os.fstat(descriptor))
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def check_regular(path: str, found: os.stat_result) -> None:
    """Refuse what is no regular file. Raises RejectedSample."""
    if not stat.S_ISREG(found.st_mode):
        what = "is a directory" if stat.S_ISDIR(found.st_mode) else "is not a regular file"
        raise RejectedSample(Reason.AUDIO_UNREADABLE, f"{path}: {what}")


@contextlib.contextmanager
def _mapped(audio: str) -> Iterator[None]:
    """Whatever goes wrong while a recording is looked up is its rejection."""
    try:
        yield
    except (FileNotFoundError, NotADirectoryError) as error:
        raise RejectedSample(Reason.AUDIO_MISSING, f"{audio}: no such file") from error
    except (OSError, ValueError, pa.ArrowException) as error:  # ValueError: a NUL in the path
        said = getattr(error, "strerror", None) or str(error)
        raise RejectedSample(Reason.AUDIO_UNREADABLE, f"{audio}: {said}") from error


def check_range(audio: str, size: int, offset: int, length: int) -> None:
    """Refuse a range of bytes that is not all inside a file of `size` bytes. Raises RejectedSample."""
    present = max(0, min(length, size - offset))
    if present < length or offset > size:
        what = f"cut off: the file ends after {present} of the clip's {length} bytes"
        raise RejectedSample(Reason.AUDIO_UNREADABLE, f"{audio}: {what}")


def _too_large(audio: str, length: int) -> RejectedSample:
    bound = f"a clip that has to be held in memory may have {MAX_CLIP_BYTES >> 20} MiB"
    message = f"{audio}: has {length} bytes; {bound}; make it a file on a local disk"
    return RejectedSample(Reason.AUDIO_TOO_LONG, message)


def _in_memory(audio: str, content: bytes, stack: contextlib.ExitStack) -> Clip:
    """A clip of these bytes, in a nameless file."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("hfprep-clip")
    else:
        descriptor, path = tempfile.mkstemp(prefix="hfprep-clip-")
        os.unlink(path)
    stack.callback(os.close, descriptor)
    with open(descriptor, "wb", buffering=0, closefd=False) as file:
        view = memoryview(content)
        while view:
            view = view[file.write(view) :]
    return Clip(audio, len(content), suffix_of(audio), descriptor)


class ParquetColumn:
    """Reads clips of one column of a Parquet file. Cheap for rows that rise; a step back reads its row group again."""

    def __init__(self, file: str, column: str) -> None:
        """Raises OSError, pyarrow's ArrowException or RejectedSample where there is no such column of bytes."""
        self._stream = open_stream(file) if is_url(file) else None
        self._file = pq.ParquetFile(self._stream or file, buffer_size=READ_BYTES, pre_buffer=False)
        schema = self._file.schema_arrow
        kind = schema.field(column).type if schema.names.count(column) == 1 else None
        if kind is None or not _holds_bytes(kind):
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
        try:
            self._go_to(cell, group)
        except BaseException:
            self._group = -1  # the batches are of no use after an error: the next clip begins anew
            raise
        clip: bytes | None = self._clips[cell.row - self._first].as_py()
        if clip is None:
            raise RejectedSample(Reason.AUDIO_MISSING, f"{cell}: the cell holds no bytes")
        if len(clip) > MAX_CLIP_BYTES:
            raise _too_large(str(cell), len(clip))
        return clip

    def _go_to(self, cell: ParquetCell, group: int) -> None:
        if group != self._group or cell.row < self._first:
            self._batches = self._file.iter_batches(CLIPS_AT_A_TIME, row_groups=[group], columns=[self._leaf])
            self._group, self._first, self._clips = group, self._starts[group], None
        while self._clips is None or cell.row >= self._first + len(self._clips):
            self._first += 0 if self._clips is None else len(self._clips)
            batch = next(self._batches, None)
            if batch is None:
                raise RejectedSample(Reason.AUDIO_UNREADABLE, f"{cell}: the file has fewer rows than its footer says")
            column = batch.column(0)
            self._clips = column.field("bytes") if pa.types.is_struct(column.type) else column


def _holds_bytes(kind: Any) -> bool:
    """Whether values of an Arrow type are bytes, or have some under that name."""
    if pa.types.is_struct(kind):
        return any(field.name == "bytes" and holds_clips(field.type) for field in kind)
    return holds_clips(kind)


def _column_of_this_thread(cell: ParquetCell) -> ParquetColumn:
    """The column that this thread read last, or the cell's: neighbours are mostly read one after the other."""
    if is_url(cell.file):
        remote = status(cell.file)
        version = (remote.size, remote.version)
    else:
        local = os.stat(cell.file)
        check_regular(cell.file, local)
        version = (local.st_size, local.st_mtime_ns)
    key = (cell.file, cell.column, version)
    if getattr(_this_thread, "key", None) != key:
        _this_thread.key = None
        _this_thread.column = ParquetColumn(cell.file, cell.column)
        _this_thread.key = key
    column: ParquetColumn = _this_thread.column
    return column
