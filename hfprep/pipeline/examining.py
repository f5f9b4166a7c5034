"""Examines lines of a manifest: which rows are valid, what of them is finished, and what has to be computed.

Everything here depends on a line, its files and the state before the run, so that chunks of lines can be examined in
any order and in several processes. `Examiner` changes nothing: what has to be changed is in its results, which the
planner merges in the manifest's order. Knows nothing about duplicate ids and the cap on samples.
"""

import dataclasses
import itertools
import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from hfprep.errors import Reason, RejectedSample
from hfprep.inputs.manifest.rows import AudioFinder, NoLookup, RawRow, parse_line
from hfprep.io.chunks import chunks_of
from hfprep.io.references import parse_reference
from hfprep.pipeline.inspection import Adoptable, Inspected, Inspector, Known, identify_audio
from hfprep.pipeline.intake import check_length
from hfprep.pipeline.plan import UTTERANCE_FIELDS, PlanOptions, rows_schema
from hfprep.pipeline.stores import Stores
from hfprep.schema import Rejection, Schema, Utterance
from hfprep.store.fingerprints import AudioIdentity, Fingerprinter, source_of
from hfprep.store.layout import NpyOutput
from hfprep.store.listing import Entry, entry_of
from hfprep.store.names import NameRules
from hfprep.store.state import Finished, SampleReader, SampleState

NOT_FINISHED = RejectedSample(
    Reason.COMPUTE_FAILED, "its audio features are not finished, and none are computed here; run `build` first"
)
SHOWN_CHANGES = 5
INSPECTED_TOGETHER = 256  # rows that one thread looks up at a time
SLOW_LOOKUP = 200e-6  # seconds per row; a local disk takes about 30 microseconds
PATH_FIELD = UTTERANCE_FIELDS.index("path")

Finish = tuple[dict[str, Finished], float | None, str]  # groups, seconds, source
Lines = Sequence[tuple[int, RawRow]]  # number and content


@dataclass(frozen=True, kw_only=True)
class ExaminerSettings:
    """What an `Examiner` needs; picklable if the options are. `state` is the database, `root` the output's folder.

    Without `artifacts`, features of finished samples are not looked up, and their records are not made.
    """

    manifest: Path
    options: PlanOptions
    root: Path
    schema: Schema
    state: Path
    names: NameRules
    fingerprinter: Fingerprinter
    artifacts: bool


@dataclass(frozen=True, slots=True)
class Verdict:
    """What has to be done for a valid row.

    `need` are the groups to compute, `known` says whether the state has the sample. The state has to be told `begin`,
    groups without complete artifacts, and `finish`, the arguments of `State.finish`. `changed` says that finished
    groups are out of date, `change` shows why. `absent` rows are rejected and do not count towards --max-samples.
    """

    need: frozenset[str] = frozenset()
    known: bool = False
    rejected: RejectedSample | None = None
    absent: bool = False
    begin: frozenset[str] = frozenset()
    finish: Finish | None = None
    changed: bool = False
    change: str | None = None
    adopted: bool = False
    repaired: bool = False


ELSEWHERE = Verdict()  # of a row of another part


# A valid row: its line, id and verdict, and its entry in the listing if it is complete. Cheap to send to a process.
Row = tuple[int, str, Verdict, Entry | None]


class Examined(NamedTuple):
    """The results for some lines: a row or rejection for each, and the plan's rows as Arrow.

    `planned` has the rows of this part that are not rejected. The state's rows of the `damaged` ids cannot be read.
    """

    rows: list[Row | Rejection]
    planned: pa.RecordBatch
    damaged: list[str]


class Examiner:
    """Examines chunks of lines, one after another. Close it at the end."""

    def __init__(self, settings: ExaminerSettings) -> None:
        options = settings.options
        self.settings, self.options = settings, options
        self.schema = settings.schema
        self._here = AudioFinder(settings.manifest, options.audio_root, options.working_folder)
        self._elsewhere = NoLookup(settings.manifest)
        self._stores = Stores(options.samples.named_stores)
        self._inspector = Inspector(
            output=NpyOutput(settings.root, settings.schema),
            hash_audio=options.hash_audio,
            adopt=options.skip_existing,
            artifacts=settings.artifacts,
            num_codes=options.num_codes,
            stores=self._stores,
        )
        self._reader = SampleReader(settings.state, settings.schema)
        self._pool = ThreadPoolExecutor(options.workers)
        self._columns = rows_schema(self.schema.group_names)
        self._complete = Verdict(known=True)
        self._new = Verdict(need=self.schema.all_groups)
        self._shown = 0  # changes that were described
        self._slow = False  # whether looking files up takes long here

    def close(self) -> None:
        """End the threads, and close the database."""
        self._pool.shutdown(cancel_futures=True)
        self._reader.close()

    def examine(self, lines: Lines) -> Examined:
        """Examine some lines. Raises StoreError if the state or a named object store cannot be read."""
        rows: list[Row | Rejection] = []
        mine: list[tuple[int, Utterance]] = []  # rows of this part, and where their results belong
        for number, raw in lines:
            row = self._parsed(number, raw)
            if isinstance(row, Utterance):
                absent = self._absence(row) if self.options.capped else None
                if absent is None and self.options.holds(number):
                    mine.append((len(rows), row))
                verdict = ELSEWHERE if absent is None else Verdict(rejected=absent, absent=True)
                rows.append((number, row.id, verdict, None))
            else:
                rows.append(row)
        planned = []
        known, damaged = self._reader.samples([utterance.id for _, utterance in mine])
        inspected = self._inspected(zip((utterance for _, utterance in mine), known, strict=True))
        for (position, utterance), found in zip(mine, inspected, strict=True):
            verdict, entry, fields = self._decide(utterance, found)
            rows[position] = (utterance.line, utterance.id, verdict, entry)
            if fields is not None:
                planned.append(fields)
        return Examined(rows, self._batch(planned), damaged)

    def _inspected(self, rows: Iterable[Known]) -> Iterator[Inspected | RejectedSample]:
        """The inspections of these rows, in order.

        Once looking files up has been slow, as on a network file system, threads do it; until then they would only
        compete for the GIL.
        """
        blocks = chunks_of(rows, INSPECTED_TOGETHER)
        while not self._slow and (block := next(blocks, None)):
            started = time.perf_counter()
            found = self._inspector.inspect(block)
            self._slow = time.perf_counter() - started > SLOW_LOOKUP * len(block)
            yield from found
        yield from itertools.chain.from_iterable(self._pool.map(self._inspector.inspect, blocks))

    def _parsed(self, number: int, raw: RawRow) -> Utterance | Rejection:
        """The row, if it is valid and the output's file system accepts its id as a new name."""
        # Lines of other parts are read too: duplicate ids and --max-samples refer to the whole manifest. With a cap
        # their audio is looked up, too.
        finder = self._here if self.options.capped or self.options.holds(number) else self._elsewhere
        row = parse_line(number, raw, finder, self.options.language)
        if isinstance(row, Utterance):
            try:
                self.settings.names.check(row.id)
            except RejectedSample as error:
                return Rejection(row.line, row.id, error.reason, error.message)
        return row

    def _absence(self, row: Utterance) -> RejectedSample | None:
        """Why a row's audio does not exist: such rows do not count towards --max-samples."""
        try:
            identify_audio(row.path, by_content=False, stores=self._stores)
        except RejectedSample as error:
            return error
        return None

    def _batch(self, planned: Sequence[tuple[Any, ...]]) -> pa.RecordBatch:
        columns = zip(*planned, strict=True) if planned else [[] for _ in self._columns]
        arrays = [pa.array(values, item.type) for values, item in zip(columns, self._columns, strict=True)]
        return pa.record_batch(arrays, schema=self._columns)

    def _decide(
        self, utterance: Utterance, found: Inspected | RejectedSample
    ) -> tuple[Verdict, Entry | None, tuple[Any, ...] | None]:
        """The verdict on a row, its entry if it is complete, and its row of the plan if it is not rejected."""
        if isinstance(found, RejectedSample):
            return Verdict(rejected=found), None, None
        identity, sample = found.identity, found.known
        fingerprints = self.settings.fingerprinter.of(utterance, identity)
        if sample is not None:
            verdict = self._compare(utterance, sample, found, fingerprints)
        elif found.adopted is not None:
            verdict, sample = self._adopt(found.adopted, fingerprints, source_of(utterance, identity))
        else:
            verdict = self._new
        try:
            self._check(utterance, sample, verdict.need)
        except RejectedSample as error:
            return dataclasses.replace(verdict, rejected=error), None, None
        entry = None
        if sample is not None and not verdict.need:
            entry = entry_of(self.schema, utterance, sample, record=self.settings.artifacts)
        fields: list[Any] = list(utterance)
        fields[PATH_FIELD] = os.fsencode(utterance.path)
        file = (identity.size, identity.mtime_ns, identity.sha256)
        return verdict, entry, (*fields, fingerprints, *file, sorted(verdict.need))

    def _check(self, utterance: Utterance, sample: SampleState | None, need: frozenset[str]) -> None:
        """Raise RejectedSample for a row that the options do not accept."""
        options, audio_groups = self.options, self.schema.audio_groups
        if not options.with_audio and need & audio_groups:
            raise NOT_FINISHED
        if sample is None:
            return
        if not need & audio_groups:
            options.samples.filters.check(sample.seconds, utterance.text)
        if options.samples.drop_overlong:
            for group in self.schema.all_groups - need:
                for name, length in sample.groups[group].lengths.items():
                    check_length(self.schema, name, length)

    def _compare(
        self, utterance: Utterance, sample: SampleState, found: Inspected, fingerprints: Mapping[str, str]
    ) -> Verdict:
        """The verdict on a row whose sample is in the state."""
        missing, audio = sample.missing(fingerprints), self.schema.audio_groups
        if not missing and not found.incomplete and not found.identity.sha256:
            return self._complete
        finish: Finish | None = None
        source = source_of(utterance, found.identity)
        if found.identity.sha256 and not missing & audio and sample.source != source:
            finish = ({}, None, source)  # the current mtime of unchanged content, for runs without --hash-audio
        stale = missing & sample.finished
        if stale & audio:
            same = self._seen_otherwise(utterance, sample, found.identity)
            stale, missing = stale - same, missing - same
            if same:
                groups = {name: Finished(fingerprints[name], sample.groups[name].lengths) for name in same}
                finish = (groups, None, source)
        change = None
        if stale and self._shown < SHOWN_CHANGES:
            change = _difference(utterance, sample, source)
            self._shown += change is not None
        return Verdict(
            need=missing | found.incomplete,
            known=True,
            begin=found.incomplete,
            finish=finish,
            changed=bool(stale),
            change=change,
        )

    def _seen_otherwise(self, utterance: Utterance, sample: SampleState, identity: AudioIdentity) -> frozenset[str]:
        """The groups that are up to date, but were fingerprinted before --hash-audio was switched on or off."""
        source = sample.computed_from
        earlier = identity.known_by(source)
        # Two clips inside one file share its mtime and may have the same length, and only differ by their position.
        if earlier is None or (parse_reference(utterance.audio) and source.get("audio") != utterance.audio):
            return frozenset()
        return self.schema.audio_groups - sample.missing(self.settings.fingerprinter.of(utterance, earlier))

    def _adopt(
        self, found: Adoptable, fingerprints: Mapping[str, str], source: str
    ) -> tuple[Verdict, SampleState | None]:
        """The verdict on a row without a sample in the state but with artifacts, and the state it will have."""
        groups = {name: Finished(fingerprints[name], lengths) for name, lengths in found.groups.items()}
        need = self.schema.all_groups - groups.keys()
        finish = (groups, found.seconds, source) if groups else None
        verdict = Verdict(need=need, known=bool(groups), finish=finish, adopted=not need, repaired=found.padded)
        return verdict, SampleState(groups, found.seconds, source) if groups else None


def _difference(utterance: Utterance, known: SampleState, source: str) -> str | None:
    """What has changed in a row or its file since its sample was computed, None if neither has."""
    before, now = known.computed_from, json.loads(source)
    differing = [f"{key} was {before.get(key)!r}, is {now[key]!r}" for key in now if before.get(key) != now[key]]
    return f"line {utterance.line}, id {utterance.id!r}: {'; '.join(differing)}" if differing else None
