"""The plan: the valid rows of a manifest, stored in an Arrow file; and the options that it depends on."""

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from hfprep.inputs.manifest.field_map import FieldMap
from hfprep.inputs.text.scripts import DoubtfulGrammar
from hfprep.io.words import count
from hfprep.pipeline.config import Part
from hfprep.pipeline.filters import SampleOptions
from hfprep.schema import Utterance
from hfprep.store.fingerprints import AudioIdentity
from hfprep.store.layout import PlannedRow

UTTERANCE_FIELDS = Utterance._fields


def rows_schema(groups: Sequence[str]) -> pa.Schema:
    """The columns of a plan: row, fingerprint of each group, identity of the audio, groups still to be computed."""
    return pa.schema(
        [
            ("line", pa.int64()),
            ("id", pa.string()),
            ("text", pa.string()),
            ("audio", pa.string()),
            ("path", pa.binary()),  # paths can be any bytes
            ("speaker", pa.string()),
            ("language", pa.string()),
            ("duration", pa.float64()),
            ("extra", pa.string()),
            ("offset", pa.float64()),
            ("fingerprints", pa.struct([(name, pa.string()) for name in groups])),
            ("audio_bytes", pa.int64()),
            ("audio_mtime_ns", pa.int64()),
            ("audio_sha256", pa.string()),
            ("need", pa.list_(pa.string())),
        ]
    )


def no_doubt(text: str, language: str | None) -> DoubtfulGrammar | None:
    """The `doubt` of `PlanOptions` without a tokenizer."""
    del text, language
    return None


@dataclass(frozen=True, kw_only=True)
class PlanOptions:
    """Options that decide which rows are used and what is reused.

    `doubt` returns why the grammar of a text without a language is doubtful. Without `with_audio` no audio is read, and
    samples whose audio features are not finished are rejected. `samples` also rejects finished samples.
    `working_folder` is for relative audio paths, if it is not the current one. `num_codes(seconds)` is used to detect
    artifacts with padding, which are not adopted.
    """

    language: str | None = None
    max_samples: int | None = None
    part: Part | None = None
    fields: FieldMap = field(default_factory=FieldMap)
    audio_root: Path | None = None
    working_folder: str | None = None
    samples: SampleOptions = field(default_factory=SampleOptions)
    skip_existing: bool = False
    with_audio: bool = True
    hash_audio: bool = False
    refuse_changes: bool = False
    workers: int = 1
    settings_changes: tuple[str, ...] = ()
    num_codes: Callable[[float], int] = int
    doubt: Callable[[str, str | None], DoubtfulGrammar | None] = no_doubt

    @property
    def capped(self) -> bool:
        """Whether there is a cap on samples."""
        return self.max_samples is not None

    def holds(self, line: int) -> bool:
        """Whether a line is in the part that is built."""
        return self.part is None or self.part.holds(line)


@dataclass
class PlanCounts:
    """Counts of a manifest's scan. lines_read = rows + rejected + capped, of this part if there are parts.

    `known` are pending rows that are in the state.
    """

    lines_read: int = 0
    rows: int = 0
    rejected: int = 0
    capped: int = 0
    pending: int = 0
    known: int = 0
    reused: int = 0
    adopted: int = 0
    repaired: int = 0
    changed: int = 0
    need: set[str] = field(default_factory=set)
    changes: list[str] = field(default_factory=list)
    doubtful: Counter[DoubtfulGrammar] = field(default_factory=Counter)
    doubtful_line: int = 0

    def line(self) -> str:
        """A summary of the counts in one line."""
        counts = {"finished already": self.reused, "rejected": self.rejected, "capped": self.capped}
        others = [f"{number:,} {what}" for what, number in counts.items() if number]
        return f"{count(self.lines_read, 'line')}: {', '.join([f'{self.pending:,} to compute', *others])}"


class Plan:
    """The valid rows of a manifest in a file, in source order; memory-mapped: only what is requested is read.

    `counts` are those of the manifest's scan.
    """

    def __init__(self, path: Path, counts: PlanCounts | None = None) -> None:
        self.path = path
        self.counts = counts or PlanCounts()
        with pa.ipc.open_stream(pa.memory_map(str(path))) as stream:
            self.table = pa.Table.from_batches(list(stream), stream.schema)

    def take(self, positions: Sequence[int] | np.ndarray, columns: Sequence[str] | None = None) -> pa.Table:
        """The rows at these positions, in their order, with these columns (None: all)."""
        table = self.table if columns is None else self.table.select(columns)
        batches = table.to_batches()
        ends = np.cumsum([len(batch) for batch in batches], dtype=np.int64)
        wanted = np.asarray(positions, np.int64)
        numbers = np.searchsorted(ends, wanted, side="right")
        breaks = np.flatnonzero((np.diff(wanted) != 1) | (np.diff(numbers) != 0)) + 1
        runs = np.split(np.arange(len(wanted)), breaks) if len(wanted) else []
        found = []
        for run in runs:  # slices: selecting rows would import packages that a worker does not need
            batch, end = batches[numbers[run[0]]], ends[numbers[run[0]]]
            found.append(batch.slice(int(wanted[run[0]] - (end - len(batch))), len(run)))
        return pa.Table.from_batches(found, table.schema)

    def chunks(self) -> Iterator[list[PlannedRow]]:
        """All valid rows in order, in chunks."""
        for batch in self._batches():
            yield [planned_row(row) for row in batch.to_pylist()]

    def pending_chunks(self) -> Iterator[tuple[list[str], dict[int, PlannedRow]]]:
        """The ids of all valid rows in order, in chunks, and the pending rows of each chunk by position in it."""
        for batch in self._batches():
            positions = np.flatnonzero(np.diff(batch.column("need").offsets.to_numpy()))
            rows = map(planned_row, batch.take(pa.array(positions)).to_pylist())
            yield batch.column("id").to_pylist(), dict(zip(positions.tolist(), rows, strict=True))

    def _batches(self) -> Iterator[pa.RecordBatch]:
        """The file's batches; read, not mapped, so that memory does not accumulate."""
        with pa.OSFile(str(self.path)) as source, pa.ipc.open_stream(source) as batches:
            yield from batches

    def pending_positions(self) -> np.ndarray:
        """Positions of rows with groups still to be computed, int64 (rows,)."""
        return np.flatnonzero(self._needed())

    def ids(self, positions: Sequence[int] | np.ndarray) -> Iterator[tuple[int, str, int]]:
        """Line, id and position of the rows at these positions."""
        rows = self.take(positions, ["line", "id"])
        return zip(rows["line"].to_pylist(), rows["id"].to_pylist(), map(int, positions), strict=True)

    def control(self) -> PlannedRow | None:
        """The finished row with the smallest audio file; None if no row is finished."""
        finished = np.flatnonzero(self._needed() == 0)
        if not len(finished):
            return None
        sizes = self.table["audio_bytes"].to_numpy(zero_copy_only=False)[finished].astype(np.float64)
        smallest = finished[np.argmin(np.nan_to_num(sizes, nan=np.inf))]
        return planned_row(self.take([smallest]).to_pylist()[0])

    def _needed(self) -> np.ndarray:
        """The number of groups still to be computed of each row."""
        import pyarrow.compute as pc  # slow to import, and workers need only the rows

        needed: np.ndarray = pc.list_value_length(self.table["need"]).to_numpy()
        return needed


def planned_row(row: dict[str, Any]) -> PlannedRow:
    """A row of the plan's Arrow file as an object."""
    fields = row | {"path": os.fsdecode(row["path"])}
    utterance = Utterance(*(fields[name] for name in UTTERANCE_FIELDS))
    audio = AudioIdentity(row["audio_bytes"], row["audio_mtime_ns"], row["audio_sha256"])
    return PlannedRow(utterance, row["fingerprints"], audio, frozenset(row["need"]))
