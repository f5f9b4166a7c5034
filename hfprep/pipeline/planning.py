"""Planning: compares the manifest with the state, before anything is computed.

Reads every line once, in order, and writes the valid rows with their fingerprints and the groups to compute to one
Arrow file, which all later steps use. Opens no audio, except headers if artifacts are adopted.

The lines are examined in chunks, those of a long manifest in other processes (see `examining`). This module decides
what depends on other lines, duplicate ids and the cap on samples, and changes the state and the listing.
"""

import contextlib
import dataclasses
import functools
import itertools
import json
import logging
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Protocol

import pyarrow as pa

from hfprep.errors import Reason, RejectedSample, StopRequested, StoreError
from hfprep.inputs.manifest.opening import open_source
from hfprep.inputs.manifest.rows import RawRow, duplicate_id
from hfprep.io.atomic import explained
from hfprep.pipeline.collector import no_garbage_collection
from hfprep.pipeline.examining import (
    NOT_FINISHED,
    SHOWN_CHANGES,
    Examined,
    Examiner,
    ExaminerSettings,
    Lines,
    Row,
    Verdict,
)
from hfprep.pipeline.examining_processes import examine_in_processes
from hfprep.pipeline.plan import Plan, PlanCounts, PlanOptions, no_doubt, rows_schema
from hfprep.schema import Rejection
from hfprep.store.fingerprints import Fingerprinter
from hfprep.store.layout import REJECTED, NpyOutput
from hfprep.store.listing import Entry
from hfprep.store.names import NameRules
from hfprep.store.state import State

log = logging.getLogger(__name__)

CHUNK_ROWS = 4096
CHUNK_BYTES = 1 << 24  # of lines; a chunk ends after the line that exceeds it
CHUNKS_HERE = 8  # at the start, which are examined without other processes: starting one takes as long as a few chunks
MAX_PROCESSES = 4  # more would wait for this one


class Lister(Protocol):
    """Receives every complete sample, in the manifest's order."""

    def add(self, entry: Entry) -> None: ...


class Planner:
    """Scans a manifest and decides, row by row, what is finished; without `artifacts`, only by the state."""

    def __init__(
        self,
        output: NpyOutput,
        state: State,
        fingerprinter: Fingerprinter,
        options: PlanOptions,
        listing: Lister,
        *,
        artifacts: bool = True,
    ) -> None:
        self.output = output
        self.state = state
        self.fingerprinter = fingerprinter
        self.options = options
        self.listing = listing
        self.artifacts = artifacts
        self.counts = PlanCounts()
        self._taken = 0  # rows that count towards --max-samples

    def plan(self, manifest: Path, *, stop: Callable[[], bool] = lambda: False) -> Plan:
        """Scan the manifest; rejections go to the state, complete samples to the listing.

        Raises StoreError if there are changes and they are refused, StopRequested once `stop()` is true.
        """
        path = self.output.work / "rows.arrow"
        with ExitStack() as stack:
            stack.enter_context(explained(path))
            stack.enter_context(no_garbage_collection())
            sink = stack.enter_context(pa.OSFile(str(path), "wb"))
            writer = stack.enter_context(pa.ipc.new_stream(sink, rows_schema(self.output.schema.group_names)))
            for examined in stack.enter_context(closing(self._examined(manifest))):
                if stop():
                    raise StopRequested
                planned = self._merge(examined)
                if planned.num_rows:
                    writer.write_batch(planned)
        return Plan(path, self.counts)

    @functools.cached_property
    def _names(self) -> NameRules:
        return NameRules.of(self.output.work, self.output.root) if self.artifacts else NameRules()

    def _settings(self, manifest: Path) -> ExaminerSettings:
        return ExaminerSettings(
            manifest=manifest,
            options=self.options,
            root=self.output.root,
            schema=self.output.schema,
            state=self.state.path,
            names=self._names,
            fingerprinter=self.fingerprinter,
            artifacts=self.artifacts,
        )

    def _examined(self, manifest: Path) -> Generator[Examined, None, None]:
        """The results of all chunks of lines, in order."""
        settings, chunks = self._settings(manifest), self._chunks(manifest)
        with closing(Examiner(settings)) as examiner:
            # The length of a chunk depends on the chunk before with a cap, and `num_codes` is only used to adopt.
            alone = self.options.capped or self.options.skip_existing
            yield from map(examiner.examine, itertools.islice(chunks, None if alone else CHUNKS_HERE))
            picklable = dataclasses.replace(self.options, num_codes=int, doubt=no_doubt)
            settings = dataclasses.replace(settings, options=picklable)
            count = min(self.options.workers, MAX_PROCESSES)
            yield from examine_in_processes(settings, chunks, count, examiner)

    def _chunks(self, manifest: Path) -> Iterator[Lines]:
        """The lines up to the cap in chunks, none of which can exceed the cap; the others are counted."""
        counts, cap = self.counts, self.options.max_samples
        lines = open_source(manifest, self.options.fields)
        while most := CHUNK_ROWS if cap is None else min(CHUNK_ROWS, cap - self._taken):
            chunk = _some(lines, most)
            counts.lines_read += sum(self.options.holds(number) for number, _ in chunk)
            if not chunk:
                return
            yield chunk
        for number, _ in lines:
            mine = self.options.holds(number)
            counts.lines_read += mine
            counts.capped += mine

    def _merge(self, examined: Examined) -> pa.RecordBatch:
        """The rows of the plan in a chunk; changes of the state are made in one transaction."""
        list(self.state.samples(examined.damaged))  # removes them
        duplicates = self._duplicates([row for row in examined.rows if isinstance(row, tuple)])
        kept: list[bool] = []
        with self.state.transaction():
            for row in examined.rows:
                rejection = row if isinstance(row, Rejection) else self._decide(row, duplicates, kept)
                if rejection is not None and self.options.holds(rejection.line):
                    self.state.reject(rejection)
                    self.counts.rejected += 1
            if self.options.refuse_changes and self.counts.changed:
                self._refuse()
        planned = examined.planned if all(kept) else examined.planned.filter(pa.array(kept, pa.bool_()))
        self._count_doubtful(planned)
        return planned

    def _duplicates(self, rows: list[Row]) -> dict[int, Rejection]:
        """The rejections, by line, of rows that repeat an earlier line's id, or its file name in the output."""
        found = {}
        firsts = self.state.first_lines([(sample_id, line) for line, sample_id, _, _ in rows])
        for (line, sample_id, _, _), first in zip(rows, firsts, strict=True):
            if first != line:
                found[line] = duplicate_id(line, sample_id, first)
        if self._names.folds:
            keys = [(f"\0{self._names.key(row[1])}", row[0]) for row in rows]  # ids cannot contain this character
            for (line, sample_id, _, _), first in zip(rows, self.state.first_lines(keys), strict=True):
                if first != line and line not in found:
                    message = f"id {sample_id!r} has the same file name in the output as the id on line {first}"
                    found[line] = Rejection(line, sample_id, Reason.DUPLICATE_ID, f"{message}; rename one")
        return found

    def _decide(self, row: Row, duplicates: Mapping[int, Rejection], kept: list[bool]) -> Rejection | None:
        """Count a row, and list it if it is complete; returns its rejection, if it has one.

        Adds to `kept` whether the row stays in the plan, if the examiner has put it there.
        """
        line, sample_id, verdict, entry = row
        rejection, counts = duplicates.get(line), self.counts
        self._taken += rejection is None and not verdict.absent
        if not self.options.holds(line):
            return None
        if verdict.rejected is None:
            kept.append(rejection is None)
        if rejection is not None:
            return rejection
        if verdict.finish or verdict.begin or verdict.changed:
            self._record(sample_id, verdict)
        if verdict.rejected is not None:
            return self._rejection(line, sample_id, verdict.rejected)
        if entry is not None:
            self.listing.add(entry)
        counts.rows += 1
        counts.adopted += verdict.adopted
        counts.repaired += verdict.repaired
        if verdict.need:
            counts.need |= verdict.need
            counts.pending += 1
            counts.known += verdict.known
        else:
            counts.reused += 1
        return None

    def _record(self, sample_id: str, verdict: Verdict) -> None:
        """Tell the state about adopted artifacts, and about artifacts that are missing; note changes."""
        if verdict.finish is not None:
            groups, seconds, source = verdict.finish
            self.state.finish(sample_id, groups, seconds=seconds, source=source)
        if verdict.begin:
            self.state.begin([(sample_id, verdict.begin)])
        self.counts.changed += verdict.changed
        if verdict.change is not None and len(self.counts.changes) < SHOWN_CHANGES:
            self.counts.changes.append(verdict.change)

    def _rejection(self, line: int, sample_id: str, error: RejectedSample) -> Rejection:
        if error.message == NOT_FINISHED.message:
            error = self._earlier_rejections.get(sample_id, error)
        return Rejection(line, sample_id, error.reason, error.message)

    def _count_doubtful(self, planned: pa.RecordBatch) -> None:
        columns = (planned.column(name).to_pylist() for name in ("line", "text", "language"))
        for line, text, language in zip(*columns, strict=True):
            doubtful = self.options.doubt(text, language)
            if doubtful is not None:
                self.counts.doubtful[doubtful] += 1
                self.counts.doubtful_line = self.counts.doubtful_line or line

    @functools.cached_property
    def _earlier_rejections(self) -> dict[str, RejectedSample]:
        """The rejections of the last run, by id."""
        found = {}
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            for record in map(json.loads, (self.output.root / REJECTED).read_bytes().splitlines()):
                found[record["id"]] = RejectedSample(Reason(record["reason"]), str(record["message"]))
        return found

    def _refuse(self) -> None:
        lines = "\n  ".join([*self.options.settings_changes, *self.counts.changes])
        raise StoreError(
            f"what finished samples depend on has changed, and --on-change is refuse:\n  {lines}\n"
            "run with --on-change recompute to redo them, or with another --output-dir"
        )


def _some(lines: Iterator[tuple[int, RawRow]], most: int) -> Lines:
    """The next lines: up to `most`, and fewer if they are long."""
    chunk, size = [], 0
    for number, raw in itertools.islice(lines, most):
        chunk.append((number, raw))
        if isinstance(raw, bytes):
            size += len(raw)
            if size > CHUNK_BYTES:
                break
    return chunk
