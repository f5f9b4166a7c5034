"""Clips of Parquet files, set out as ranges of a file for as long as a window of rows is computed.

A Parquet file can only be read forwards and is compressed, while rows are computed by length. So clips are read in the
order of the file and kept beside the work, at most `MAX_SPOOL_BYTES` in a file; all other rows are left as they are.
"""

import dataclasses
import itertools
from collections.abc import Generator, Sequence
from pathlib import Path

import pyarrow as pa

from hfprep.errors import RejectedSample
from hfprep.inputs.audio.containers import ParquetColumn
from hfprep.io.references import ByteRange, ParquetCell, parse_reference
from hfprep.schema import Rejection
from hfprep.store.layout import PlannedRow

MAX_SPOOL_BYTES = 1 << 29

_numbers = itertools.count()


class Spooled:
    """Rows with all their audio at hand, each as it was planned and as it is read now; the file goes with the last."""

    def __init__(self, pairs: list[tuple[PlannedRow, PlannedRow]], file: Path | None) -> None:
        self.pairs = pairs
        self._file = file
        self._left = len(pairs)

    def one_is_done(self) -> None:
        """Count a row that has its outcome."""
        self._left -= 1
        if not self._left and self._file is not None:
            self._file.unlink(missing_ok=True)


def spooled(rows: Sequence[PlannedRow], folder: Path, audio_groups: frozenset[str]) -> Generator[Spooled, None, None]:
    """The rows in parts; clips of a part are in one file in `folder`.

    A cell that cannot be read stays what it is: whoever reads it next finds out why.
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
                    clip, used = None if cell is None else columns.read(cell), row
                    if cell is not None and clip is not None:
                        used = _at(row, ByteRange(str(spool), cell.name, file.tell(), len(clip)))
                        file.write(clip)
                    pairs.append((row, used))
            yield Spooled(pairs, spool)
    finally:
        columns.close()


def by_its_own_name(rejection: Rejection, path: str, used: str) -> Rejection:
    """A rejection of a clip that was read as `used`, in the words of its own path."""
    return dataclasses.replace(rejection, message=rejection.message.replace(used, path))


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
