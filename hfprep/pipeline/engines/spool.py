"""Spools clips of Parquet files to a temporary file while a window of rows is computed.

A Parquet file is compressed and can only be read sequentially, but rows are computed by length. So clips are read in
the file's order and written to spool files of about `MAX_SPOOL_BYTES`; all other rows are unchanged.
"""

import dataclasses
import itertools
from collections.abc import Generator, Sequence
from pathlib import Path

import pyarrow as pa

from hfprep.errors import RejectedSample
from hfprep.inputs.audio.containers import ParquetColumn
from hfprep.io.references import ByteRange, ParquetCell, parse_reference
from hfprep.store.layout import PlannedRow

MAX_SPOOL_BYTES = 1 << 29

_numbers = itertools.count()


class Spooled:
    """Rows as they were planned and as they are read now; the spool file is removed with the last row."""

    def __init__(self, pairs: list[tuple[PlannedRow, PlannedRow]], file: Path | None) -> None:
        self.pairs = pairs
        self._file = file
        self._left = len(pairs)

    def release_one(self) -> None:
        """Count a row that has an outcome."""
        self._left -= 1
        if not self._left and self._file is not None:
            self._file.unlink(missing_ok=True)


def spooled(rows: Sequence[PlannedRow], folder: Path, audio_groups: frozenset[str]) -> Generator[Spooled, None, None]:
    """The rows in parts; the clips of a part are in one file in `folder`.

    A cell that cannot be read is left unchanged: reading it again later reports why.
    """
    cells = [_cell_of(row) if row.need & audio_groups else None for row in rows]
    if not any(cells):
        yield Spooled([(row, row) for row in rows], None)
        return
    columns, waiting = _Columns(), list(zip(rows, cells, strict=True))
    waiting.reverse()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        while waiting:
            pairs: list[tuple[PlannedRow, PlannedRow]] = []
            spool = folder / f"clips-{next(_numbers)}"
            with open(spool, "wb") as file:
                while waiting and (not pairs or file.tell() < MAX_SPOOL_BYTES):
                    row, cell = waiting.pop()
                    used = row
                    if cell is not None and (clip := columns.read(cell)) is not None:
                        place = ByteRange(str(spool), cell.name, file.tell(), len(clip))
                        used = dataclasses.replace(row, utterance=row.utterance._replace(path=str(place)))
                        file.write(clip)
                    pairs.append((row, used))
            yield Spooled(pairs, spool)
    finally:
        columns.close()


class _Columns:
    """Reads cells, keeping the file of the last one open."""

    def __init__(self) -> None:
        self._key: tuple[str, str] | None = None
        self._column: ParquetColumn | None = None

    def read(self, cell: ParquetCell) -> bytes | None:
        """The bytes of a cell; None if it cannot be read."""
        try:
            if self._column is None or self._key != (cell.file, cell.column):
                self.close()
                self._column, self._key = ParquetColumn(cell.file, cell.column), (cell.file, cell.column)
            return self._column.read(cell)
        except (OSError, RejectedSample, pa.ArrowException):
            return None

    def close(self) -> None:
        if self._column is not None:
            self._column.close()
            self._column = None


def _cell_of(row: PlannedRow) -> ParquetCell | None:
    reference = parse_reference(row.utterance.path)
    return reference if isinstance(reference, ParquetCell) else None
