"""Parquet files as rows; clips inside them are named by file, column and row, and not read here.

Rows are numbered from 1 through all files in the order of their names.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from hfprep.errors import ConfigError
from hfprep.inputs.manifest.columns import BYTES, PATH, Columns, clip_name
from hfprep.inputs.manifest.field_map import FieldMap
from hfprep.inputs.manifest.rows import RawRow
from hfprep.io.object_storage import open_stream, url_of
from hfprep.io.references import ParquetCell

ROWS_AT_A_TIME = 1024


@dataclass(frozen=True)
class ParquetFiles:
    """The rows of some Parquet files."""

    where: str
    paths: tuple[Path, ...]
    fields: FieldMap

    def lines(self) -> Iterator[tuple[int, RawRow]]:
        """Number and row of each row. Raises ConfigError where a file cannot be read or its columns do not do."""
        number = 0
        for path in self.paths:
            try:
                for row in self._rows(path):
                    number += 1
                    yield number, self.fields.apply(number, row)
            except (OSError, pa.ArrowException) as error:
                raise ConfigError(f"{self.where}: {path} cannot be read as Parquet: {error}") from error

    def _rows(self, path: Path) -> Iterator[dict[str, Any]]:
        url = url_of(path)
        with open_stream(url) if url else open(path, "rb") as stream, pq.ParquetFile(stream) as file:
            columns = Columns.choose(file.schema_arrow, self.fields, self.where)
            name_column = _path_column(file.schema_arrow.field(columns.audio).type, columns)
            leaves = [*columns.read, *([name_column] if name_column else [])]
            first = 0
            for group in range(file.metadata.num_row_groups):
                as_paths = _is_empty(file.metadata.row_group(group), f"{columns.audio}.{BYTES}")
                for batch in file.iter_batches(ROWS_AT_A_TIME, row_groups=[group], columns=leaves):
                    clips = self._clips(batch, path, first, columns, as_paths=as_paths)
                    yield from _joined(columns, batch, clips)
                    first += len(batch)

    @staticmethod
    def _clips(batch: Any, path: Path, first: int, columns: Columns, *, as_paths: bool) -> list[str | None]:
        audio = batch.column(columns.audio) if columns.audio in batch.schema.names else None
        paths: list[str | None] = [None] * len(batch)
        if audio is not None:
            paths = (audio.field(PATH) if pa.types.is_struct(audio.type) else audio).to_pylist()
        if as_paths or not columns.in_bytes:
            return paths
        return [
            str(ParquetCell(path.name, clip_name(clip_path), columns.audio, row))
            for row, clip_path in enumerate(paths, start=first)
        ]


def _joined(columns: Columns, batch: Any, clips: list[str | None]) -> Iterator[dict[str, Any]]:
    for row, clip in zip(columns.rows(batch), clips, strict=True):
        yield row | {columns.audio: clip}


def _path_column(kind: Any, columns: Columns) -> str | None:
    """The part of the audio column that is worth reading here: paths, never the clips."""
    if not columns.in_bytes:
        return columns.audio
    if pa.types.is_struct(kind) and kind.get_field_index(PATH) >= 0:
        return f"{columns.audio}.{PATH}"
    return None


def _is_empty(group: Any, leaf: str) -> bool:
    """Whether a row group has a column that is known to hold nothing: then its Audio column holds paths alone."""
    for index in range(group.num_columns):
        column = group.column(index)
        if column.path_in_schema == leaf and column.statistics is not None and column.statistics.has_null_count:
            return bool(column.statistics.null_count == group.num_rows)
    return False
