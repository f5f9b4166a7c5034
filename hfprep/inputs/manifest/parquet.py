"""Reads rows of Parquet files; clips inside them are referenced by file, column and row, and not read here.

Rows are numbered from 1 through all files in the order of their names. `steps` runs in a separate process, which a
damaged file may crash (see `guarded`).
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, islice, repeat
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from hfprep.errors import ConfigError, Reason, RejectedSample, StoreError
from hfprep.inputs.manifest.columns import BYTES, PATH, UNREADABLE, Columns, clip_name, clip_paths
from hfprep.inputs.manifest.field_map import FieldMap
from hfprep.inputs.manifest.guarded import MAX_ROWS, GuardedTables, Position, Row, Step
from hfprep.io.object_storage import open_stream, url_of
from hfprep.io.references import ParquetCell
from hfprep.io.words import first_line

ROWS_AT_A_TIME = 1024
CLIPS_AT_A_TIME = 16  # read to check whether there are clips


@dataclass(frozen=True)
class ParquetFiles(GuardedTables):
    """The rows of Parquet files; references to clips are relative to `folder`."""

    where: str
    paths: tuple[Path, ...]
    fields: FieldMap
    folder: Path

    def steps(self, start: Position) -> Iterator[Step]:
        """Rows from a position on, and the position before each part is read.

        Raises ConfigError if the first file lacks needed columns, or the only file cannot be read.
        """
        number = start.number
        for index in range(start.file, len(self.paths)):
            path = self.paths[index]
            at = start if index == start.file else Position(index, number=number)
            yield at
            try:
                for step in self._of_file(index, path, at):
                    number = step.number + step.rows if isinstance(step, Position) else max(number, step[0])
                    yield step
            except ConfigError as error:
                if index == 0:
                    raise
                number += 1
                yield number, RejectedSample(Reason.INVALID_FIELD, f"this file is skipped: {error}")
            except (OSError, *UNREADABLE) as error:
                if len(self.paths) == 1:
                    raise ConfigError(f"{self.where}: {path} cannot be read as Parquet: {error}") from error
                number += 1
                message = f"{path} cannot be read as Parquet: {error}; it is skipped"
                yield number, RejectedSample(Reason.INVALID_FIELD, message)

    def _of_file(self, index: int, path: Path, start: Position) -> Iterator[Step]:
        url = url_of(path)
        with open_stream(url) if url else open(path, "rb") as stream, pq.ParquetFile(stream) as file:
            columns = Columns.choose(file.schema_arrow, self.fields, self.where)
            number, groups = start.number, range(file.metadata.num_row_groups)
            first = sum(_num_rows(file, group) for group in groups[: start.part])
            for group in groups[start.part :]:
                num_rows = _num_rows(file, group)
                narrow = start.narrow and group == start.part
                table = _Group(self, path, file, group, columns, first)
                yield from table.steps(Position(index, group, number, num_rows, narrow))
                number, first = number + num_rows, first + num_rows


@dataclass(frozen=True)
class _Group:
    """One row group, which is read with all columns, then with only those that hfprep needs, and then skipped."""

    source: ParquetFiles
    path: Path
    file: Any
    group: int
    columns: Columns
    first: int  # row of the file

    def steps(self, at: Position) -> Iterator[Step]:
        """The rows of the group, or one rejection from the row where reading fails."""
        done = 0
        for narrow in (True,) if at.narrow else (False, True):
            yield Position(at.file, at.part, at.number, at.rows, narrow)
            try:
                for offset, row in self._rows(narrow):
                    if offset >= done:  # earlier rows were yielded before another column failed
                        done = offset + 1
                        yield at.number + done, self.source.mapped(at.number + done, row)
                return
            except StoreError:
                raise
            except (OSError, *UNREADABLE) as error:
                problem = first_line(error)
        message = (
            f"{self.path}: row group {self.group} cannot be read: {problem}; its rows from row "
            f"{self.first + done} of the file on (counted from 0) are skipped"
        )
        yield at.number + done + 1, RejectedSample(Reason.INVALID_FIELD, message)

    def _rows(self, narrow: bool) -> Iterator[tuple[int, Row]]:
        """Rows of the group with their offsets in it; with `narrow` only the columns that hfprep needs."""
        columns, audio = self.columns, self.columns.audio
        kind = self.file.schema_arrow.field(audio).type
        leaves = [name for name in columns.read if not narrow or name in columns.ours]
        held: Iterator[bool] = repeat(columns.in_bytes)  # whether each row has a clip
        if not columns.in_bytes:
            leaves.append(audio)
        elif pa.types.is_struct(kind) and kind.get_field_index(PATH) >= 0:
            leaves.append(f"{audio}.{PATH}")
            held = chain(self._held(), repeat(True))
        offset = 0
        for batch in self.file.iter_batches(ROWS_AT_A_TIME, row_groups=[self.group], columns=leaves):
            clips = self._clips(batch, list(islice(held, len(batch))), self.first + offset)
            yield from enumerate(columns.rows(batch, clips), start=offset)
            offset += len(batch)

    def _clips(self, batch: Any, held: list[bool], first: int) -> list[Any]:
        """For each row the reference to its clip in the file, or its path if it has no clip."""
        audio, names = self.columns.audio, batch.schema.names
        paths = clip_paths(batch.column(names.index(audio))) if audio in names else [None] * len(batch)
        shown = self.path.name if url_of(self.path) else os.path.relpath(self.path, self.source.folder)
        return [
            str(ParquetCell(shown, clip_name(path), audio, row)) if has_clip else path
            for row, (has_clip, path) in enumerate(zip(held, paths, strict=True), start=first)
        ]

    def _held(self) -> Iterator[bool]:
        """Whether each row has a clip; if the file's statistics do not say, the clips are read to find out."""
        leaf, group = f"{self.columns.audio}.{BYTES}", self.file.metadata.row_group(self.group)
        column = next(
            (item for item in map(group.column, range(group.num_columns)) if item.path_in_schema == leaf), None
        )
        if column is not None and column.statistics is not None and column.statistics.has_null_count:
            if column.statistics.null_count == 0:
                return repeat(True)
            if column.statistics.null_count == _num_rows(self.file, self.group):
                return repeat(False)
        batches = self.file.iter_batches(CLIPS_AT_A_TIME, row_groups=[self.group], columns=[leaf])
        return (held for batch in batches for held in batch.column(0).field(BYTES).is_valid().to_pylist())


def _num_rows(file: Any, group: int) -> int:
    """Number of rows in a row group, according to the file."""
    return min(max(0, int(file.metadata.row_group(group).num_rows)), MAX_ROWS)
