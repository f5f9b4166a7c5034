"""Clips of Parquet files, set out as ranges of one file for as long as a window of rows is computed.

A Parquet file can only be read forwards and is compressed, while rows are computed by length. So clips are read in the
order of the file and kept beside the work, at most `MAX_SPOOL_BYTES` at a time; all other rows are left as they are.
"""

import dataclasses
from collections.abc import Generator, Sequence
from pathlib import Path

import pyarrow as pa

from hfprep.errors import RejectedSample
from hfprep.inputs.audio.containers import ParquetColumn
from hfprep.io.references import ByteRange, ParquetCell, parse_reference
from hfprep.schema import Rejection
from hfprep.store.layout import PlannedRow

MAX_SPOOL_BYTES = 1 << 29


def spooled(
    rows: Sequence[PlannedRow], spool: Path, audio_groups: frozenset[str]
) -> Generator[list[PlannedRow], None, None]:
    """The rows in parts, each with all its audio at hand; the file `spool` holds one part's clips and then goes.

    A cell that cannot be read stays what it is: whoever reads it next finds out why.
    """
    cells = [_cell_of(row) if row.need & audio_groups else None for row in rows]
    if not any(cells):
        yield list(rows)
        return
    columns, waiting = _Columns(), list(zip(rows, cells, strict=True))
    waiting.reverse()
    try:
        while waiting:
            part: list[PlannedRow] = []
            with open(spool, "wb") as file:
                while waiting and (not part or file.tell() < MAX_SPOOL_BYTES):
                    row, cell = waiting.pop()
                    clip = None if cell is None else columns.read(cell)
                    if cell is not None and clip is not None:
                        row = _at(row, ByteRange(str(spool), cell.name, file.tell(), len(clip)))
                        file.write(clip)
                    part.append(row)
            yield part
    finally:
        columns.close()
        spool.unlink(missing_ok=True)


def by_its_own_name(rejection: Rejection, row: PlannedRow, used: PlannedRow) -> Rejection:
    """A rejection of the row `used`, which may lie in the spool, in the words of the row that it stands for."""
    message = rejection.message.replace(used.utterance.path, row.utterance.path)
    return dataclasses.replace(rejection, message=message)


class _Columns:
    """Reads cells, with the file of the last one kept open."""

    def __init__(self) -> None:
        self._key: tuple[str, str] | None = None
        self._column: ParquetColumn | None = None

    def read(self, cell: ParquetCell) -> bytes | None:
        """The bytes of a cell; None where it cannot be read."""
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


def _at(row: PlannedRow, place: ByteRange) -> PlannedRow:
    return dataclasses.replace(row, utterance=dataclasses.replace(row.utterance, path=str(place)))
