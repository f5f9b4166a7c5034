"""Opens audio from a path, a clip inside a tar, Arrow or Parquet file, or an object in object storage.

Takes paths, the strings of `references` and URLs. Only regular files are opened, and only byte ranges within them. A
clip inside another file is read into memory, or, if it is large, read in place.
"""

import bisect
import contextlib
import itertools
import os
import stat
import threading
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from hfprep.errors import Reason, RejectedSample
from hfprep.inputs.audio.native_stderr import nameless_file
from hfprep.inputs.audio.sound import Clip
from hfprep.io.arrow_types import holds_audio
from hfprep.io.atomic import write_all
from hfprep.io.object_storage import is_url, open_stream, read, status
from hfprep.io.references import ByteRange, ParquetCell, parse_reference, suffix_of

CLIPS_AT_A_TIME = 16  # of a row group, decompressed together
READ_BYTES = 1 << 20
MAX_CLIP_BYTES = 1 << 28  # of a clip in memory: 25 minutes in CD quality
FETCHED_WHOLE_BYTES = 1 << 22  # up to this size, fetching all is as fast as several requests for a segment

_this_thread = threading.local()


@contextlib.contextmanager
def opened(audio: str, *, in_part: bool = False) -> Iterator[Clip]:
    """A recording, open during the context; with `in_part` only a segment of it is needed.

    A clip inside another file is read into memory, unless it is too large or only a part is needed; then it is read in
    place. Raises RejectedSample (AUDIO_MISSING, AUDIO_UNREADABLE, AUDIO_EMPTY), and StoreError if its object storage
    cannot be reached.
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
    descriptor, local = _opened_here(audio, stack)
    return Clip(audio, local.st_size, suffix_of(audio), descriptor, version=_version(local))


def _opened_here(file: str, stack: contextlib.ExitStack) -> tuple[int, os.stat_result]:
    descriptor = open_regular(file)
    stack.callback(os.close, descriptor)
    return descriptor, os.fstat(descriptor)


def _version(local: os.stat_result) -> tuple[int, ...]:
    return local.st_dev, local.st_ino, local.st_size, local.st_mtime_ns


def _within(audio: str, file: str, start: int, length: int | None, in_part: bool, stack: contextlib.ExitStack) -> Clip:
    """A clip inside a file (`length` None: to its end) or in object storage, read into memory or in place."""
    descriptor = -1
    version: tuple[Any, ...]
    if is_url(file):
        found = status(file)
        size, version = found.size, (file, found.size, found.version)
    else:
        descriptor, local = _opened_here(file, stack)
        size, version = local.st_size, _version(local)
    wanted = size if length is None else length
    check_range(audio, size, start, wanted)
    if wanted <= (FETCHED_WHOLE_BYTES if in_part else MAX_CLIP_BYTES):
        content = os.pread(descriptor, wanted, start) if descriptor >= 0 else read(file, start, start + wanted)
        if len(content) != wanted:
            message = f"{audio}: {len(content)} bytes were read instead of {wanted}; has the file changed?"
            raise RejectedSample(Reason.AUDIO_UNREADABLE, message)
        return _in_memory(audio, content, stack)
    stream = stack.enter_context(open_stream(file)) if descriptor < 0 else None
    version = (*version, start, wanted)
    return Clip(audio, wanted, suffix_of(audio), descriptor, start, is_file=False, stream=stream, version=version)


def read_clip(audio: str) -> bytes:
    """The bytes of an audio file, or of a clip inside another. Raises RejectedSample or StoreError."""
    with opened(audio) as clip:
        if clip.size > MAX_CLIP_BYTES:
            raise _too_large(audio, clip.size)
        return clip.read_at(0, clip.size)


def open_regular(path: str) -> int:
    """A descriptor of a regular file; anything else is rejected without opening it. Raises OSError, RejectedSample."""
    # Opening a FIFO or a device can block or have side effects, so check first; then check what was opened.
    check_regular(path, os.stat(path))
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    try:
        check_regular(path, os.fstat(descriptor))
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def check_regular(path: str, found: os.stat_result) -> None:
    """Raise RejectedSample unless it is a regular file."""
    if not stat.S_ISREG(found.st_mode):
        what = "is a directory" if stat.S_ISDIR(found.st_mode) else "is not a regular file"
        raise RejectedSample(Reason.AUDIO_UNREADABLE, f"{path}: {what}")


@contextlib.contextmanager
def _mapped(audio: str) -> Iterator[None]:
    """Turn errors while a recording is opened into its rejection."""
    try:
        yield
    except (FileNotFoundError, NotADirectoryError) as error:
        raise RejectedSample(Reason.AUDIO_MISSING, f"{audio}: no such file") from error
    except (OSError, ValueError, pa.ArrowException) as error:  # ValueError: a NUL in the path
        said = getattr(error, "strerror", None) or str(error)
        raise RejectedSample(Reason.AUDIO_UNREADABLE, f"{audio}: {said}") from error


def check_range(audio: str, size: int, offset: int, length: int) -> None:
    """Raise RejectedSample for a byte range that is not within a file of `size` bytes."""
    present = max(0, min(length, size - offset))
    if present < length or offset > size:
        what = f"cut off: the file ends after {present} of the clip's {length} bytes"
        raise RejectedSample(Reason.AUDIO_UNREADABLE, f"{audio}: {what}")


def _too_large(audio: str, length: int) -> RejectedSample:
    bound = f"a clip that is read into memory can have up to {MAX_CLIP_BYTES >> 20} MiB"
    message = f"{audio}: has {length} bytes; {bound}; save it as a file on a local disk"
    return RejectedSample(Reason.AUDIO_TOO_LONG, message)


def _in_memory(audio: str, content: bytes, stack: contextlib.ExitStack) -> Clip:
    """A clip of these bytes, in a nameless file."""
    descriptor = nameless_file("hfprep-clip")
    stack.callback(os.close, descriptor)
    write_all(descriptor, content)
    return Clip(audio, len(content), suffix_of(audio), descriptor)


class ParquetColumn:
    """Reads clips from one column of a Parquet file. Fast for ascending rows; going back rereads the row group."""

    def __init__(self, file: str, column: str) -> None:
        """Raises OSError, pyarrow's ArrowException, or RejectedSample if there is no such binary column."""
        self._stream = open_stream(file) if is_url(file) else None
        self._file = pq.ParquetFile(self._stream or file, buffer_size=READ_BYTES, pre_buffer=False)
        schema = self._file.schema_arrow
        kind = schema.field(column).type if schema.names.count(column) == 1 else None
        if kind is None or not holds_audio(kind):
            raise RejectedSample(Reason.AUDIO_UNREADABLE, f"{file}: has no binary column {column!r}")
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
        """The bytes of a cell; raises RejectedSample if there is no such row or the cell is empty."""
        group = bisect.bisect_right(self._starts, cell.row) - 1
        if group == len(self._starts) - 1:
            raise RejectedSample(Reason.AUDIO_MISSING, f"{cell}: the file has only {self._starts[-1]} rows")
        try:
            self._go_to(cell, group)
        except BaseException:
            self._group = -1  # the batches are unusable after an error; the next clip starts over
            raise
        clip: bytes | None = self._clips[cell.row - self._first].as_py()
        if clip is None:
            raise RejectedSample(Reason.AUDIO_MISSING, f"{cell}: the cell is empty")
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


def _column_of_this_thread(cell: ParquetCell) -> ParquetColumn:
    """The cell's column, cached per thread: neighbouring cells are mostly read one after another."""
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
