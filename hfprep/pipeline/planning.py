"""Planning: compares the manifest with the state, before anything is computed.

Reads every line once, in order, and writes the valid rows with their fingerprints and the groups to compute to one
Arrow file, which all later steps use. Opens no audio, except headers if artifacts are adopted.
"""

import contextlib
import functools
import itertools
import json
import logging
import operator
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

import pyarrow as pa

from hfprep.errors import Reason, RejectedSample, StopRequested, StoreError
from hfprep.inputs.manifest.field_map import FieldMap
from hfprep.inputs.manifest.opening import open_source
from hfprep.inputs.manifest.rows import AudioFinder, NoLookup, duplicate_id, parse_line
from hfprep.inputs.text.scripts import DoubtfulGrammar
from hfprep.io.atomic import explained
from hfprep.io.chunks import chunks_of
from hfprep.io.references import parse_reference
from hfprep.pipeline.collector import no_garbage_collection
from hfprep.pipeline.config import Part
from hfprep.pipeline.filters import RowFilters
from hfprep.pipeline.inspection import Adoptable, Inspected, Inspector, identify_audio
from hfprep.pipeline.intake import check_length
from hfprep.pipeline.plan import UTTERANCE_FIELDS, Plan, PlanCounts, rows_schema
from hfprep.pipeline.stores import Stores
from hfprep.schema import Rejection, Utterance
from hfprep.store.fingerprints import AudioIdentity, Fingerprinter, source_of
from hfprep.store.layout import REJECTED, NpyOutput
from hfprep.store.names import NameRules
from hfprep.store.state import Finished, SampleState, State

log = logging.getLogger(__name__)

Item = TypeVar("Item")

CHUNK_ROWS = 4096
NOT_FINISHED = RejectedSample(
    Reason.COMPUTE_FAILED, "its audio features are not finished, and none are computed here; run `build` first"
)
SHOWN_CHANGES = 5
INSPECTED_TOGETHER = 256  # rows that one thread looks up at a time
PATH_FIELD = UTTERANCE_FIELDS.index("path")
_fields_of = operator.attrgetter(*UTTERANCE_FIELDS)


def no_doubt(text: str, language: str | None) -> DoubtfulGrammar | None:
    """The `doubt` of `PlanOptions` without a tokenizer."""
    del text, language
    return None


@dataclass(frozen=True, kw_only=True)
class PlanOptions:
    """Options that decide which rows are used and what is reused.

    `doubt` returns why the grammar of a text without a language is doubtful. Without `with_audio` no audio is read, and
    samples whose audio features are not finished are rejected. `drop_overlong` and `filters` also reject finished
    samples. `num_codes(seconds)` is used to detect artifacts with padding, which are not adopted.
    """

    language: str | None = None
    max_samples: int | None = None
    part: Part | None = None
    fields: FieldMap = field(default_factory=FieldMap)
    audio_root: Path | None = None
    named_stores: frozenset[str] = frozenset()
    skip_existing: bool = False
    with_audio: bool = True
    hash_audio: bool = False
    refuse_changes: bool = False
    workers: int = 1
    settings_changes: tuple[str, ...] = ()
    drop_overlong: bool = False
    filters: RowFilters = field(default_factory=RowFilters)
    num_codes: Callable[[float], int] = int
    doubt: Callable[[str, str | None], DoubtfulGrammar | None] = no_doubt


class Lister(Protocol):
    """Receives every complete sample, in the manifest's order."""

    def add(self, utterance: Utterance, sample: SampleState) -> None: ...


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
        self.inspector = Inspector(
            output=output,
            hash_audio=options.hash_audio,
            adopt=options.skip_existing,
            artifacts=artifacts,
            num_codes=options.num_codes,
            stores=Stores(options.named_stores),
        )
        self.counts = PlanCounts()
        self.schema = output.schema
        self._rows = rows_schema(self.schema.group_names)

    def plan(self, manifest: Path, *, stop: Callable[[], bool] = lambda: False) -> Plan:
        """Scan the manifest; rejections go to the state, complete samples to the listing.

        Raises StoreError if there are changes and they are refused, StopRequested once `stop()` is true.
        """
        path = self.output.work / "rows.arrow"
        with ExitStack() as stack:
            stack.enter_context(explained(path))
            stack.enter_context(no_garbage_collection())
            pool = stack.enter_context(ThreadPoolExecutor(self.options.workers))
            sink = stack.enter_context(pa.OSFile(str(path), "wb"))
            writer = stack.enter_context(pa.ipc.new_stream(sink, self._rows))
            for chunk, inspected in self._inspected(manifest, pool):
                if stop():
                    raise StopRequested
                writer.write_batch(self._plan_chunk(chunk, inspected))
        return Plan(path, self.counts)

    def _valid_rows(self, manifest: Path) -> Iterator[Utterance]:
        """Valid rows with a new id, up to the cap; all others are rejected or counted."""
        source = open_source(manifest, self.options.fields)
        here, elsewhere = AudioFinder(manifest, self.options.audio_root), NoLookup(manifest)
        counts, part = self.counts, self.options.part
        names = NameRules.of(self.output.work, self.output.root) if self.inspector.artifacts else NameRules()
        taken = 0
        for number, raw in source.lines():
            mine = part is None or part.holds(number)
            counts.lines_read += mine
            if taken == self.options.max_samples:
                counts.capped += mine
                continue
            # Lines of other parts are read too: duplicate ids and --max-samples refer to the whole manifest.
            finder = here if mine or self.options.max_samples is not None else elsewhere
            row = parse_line(number, raw, finder, self.options.language)
            if isinstance(row, Utterance):
                row = self._with_new_id(row, names)
            if isinstance(row, Utterance) and self.options.max_samples is not None:
                row = self._with_audio(row)
            if isinstance(row, Rejection):
                if mine:
                    self._reject(row)
                continue
            taken += 1
            if mine:
                yield row

    def _with_audio(self, row: Utterance) -> Utterance | Rejection:
        """The row, if its audio exists: others do not count towards --max-samples."""
        try:
            identify_audio(row.path, by_content=False, stores=self.inspector.stores)
        except RejectedSample as error:
            return Rejection(row.line, row.id, error.reason, error.message)
        return row

    def _with_new_id(self, row: Utterance, names: NameRules) -> Utterance | Rejection:
        """The row, if its id is new and the output's file system accepts it as a new name."""
        try:
            names.check(row.id)
        except RejectedSample as error:
            return Rejection(row.line, row.id, error.reason, error.message)
        first = self.state.first_line(row.id, row.line)
        if first != row.line:
            return duplicate_id(row, first)
        if names.folds:
            first = self.state.first_line(f"\0{names.key(row.id)}", row.line)  # ids cannot contain this character
            if first != row.line:
                message = f"id {row.id!r} has the same file name in the output as the id on line {first}; rename one"
                return Rejection(row.line, row.id, Reason.DUPLICATE_ID, message)
        return row

    def _reject(self, rejection: Rejection) -> None:
        self.state.reject(rejection)
        self.counts.rejected += 1

    def _inspected(
        self, manifest: Path, pool: ThreadPoolExecutor
    ) -> Iterator[tuple[list[Utterance], Iterator[list[Inspected | RejectedSample]]]]:
        """Chunks of valid rows with their inspection, which runs while the chunk before is processed."""
        waiting = None
        for chunk in chunks_of(self._valid_rows(manifest), CHUNK_ROWS):
            ids = [utterance.id for utterance in chunk]
            known = zip(chunk, self.state.samples(ids), strict=True)
            looking = (chunk, pool.map(self.inspector.inspect, chunks_of(known, INSPECTED_TOGETHER)))
            if waiting is not None:
                yield waiting
            waiting = looking
        if waiting is not None:
            yield waiting

    def _plan_chunk(
        self, chunk: Sequence[Utterance], inspected: Iterator[list[Inspected | RejectedSample]]
    ) -> pa.RecordBatch:
        """The chunk's rows whose audio exists, as Arrow; changes of the state are made in one transaction."""
        rows = []
        with self.state.transaction():
            for utterance, found in zip(chunk, itertools.chain.from_iterable(inspected), strict=True):
                try:
                    rows.append(self._decide(utterance, found))
                except RejectedSample as error:
                    self._reject(Rejection(utterance.line, utterance.id, error.reason, error.message))
            if self.options.refuse_changes and self.counts.changed:
                self._refuse()
        columns = zip(*rows, strict=True) if rows else [[] for _ in self._rows]
        arrays = [pa.array(values, item.type) for values, item in zip(columns, self._rows, strict=True)]
        return pa.record_batch(arrays, schema=self._rows)

    def _decide(self, utterance: Utterance, found: Inspected | RejectedSample) -> tuple[Any, ...]:
        """One row of the plan; lists complete samples, records adopted and missing artifacts in the state."""
        if isinstance(found, RejectedSample):
            raise found
        identity, sample = found.identity, found.known
        fingerprints = self.fingerprinter.of(utterance, identity)
        need = self.schema.all_groups
        if sample is not None:
            need = self._missing(utterance, sample, found, fingerprints)
        elif found.adopted is not None:
            need = self._adopt(utterance, found.adopted, fingerprints, source_of(utterance, identity))
            sample = self.state.sample(utterance.id)
        if need & self.schema.audio_groups and not self.options.with_audio:
            raise self._earlier_rejections.get(utterance.id) or NOT_FINISHED
        counts = self.counts
        if sample is not None:
            if not need & self.schema.audio_groups:
                self.options.filters.check(sample.seconds, utterance.text)
            if self.options.drop_overlong:
                self._check_lengths(sample, self.schema.all_groups - need)
            if not need:
                self.listing.add(utterance, sample)
        counts.rows += 1
        doubtful = self.options.doubt(utterance.text, utterance.language)
        if doubtful is not None:
            counts.doubtful[doubtful] += 1
            counts.doubtful_line = counts.doubtful_line or utterance.line
        if need:
            counts.need |= need
            counts.pending += 1
            counts.known += sample is not None
        else:
            counts.reused += 1
        fields = list(_fields_of(utterance))
        fields[PATH_FIELD] = os.fsencode(utterance.path)
        return (*fields, fingerprints, identity.size, identity.mtime_ns, identity.sha256, sorted(need))

    @functools.cached_property
    def _earlier_rejections(self) -> dict[str, RejectedSample]:
        """The rejections of the last run, by id."""
        found = {}
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            for record in map(json.loads, (self.output.root / REJECTED).read_bytes().splitlines()):
                found[record["id"]] = RejectedSample(Reason(record["reason"]), str(record["message"]))
        return found

    def _missing(
        self, utterance: Utterance, sample: SampleState, found: Inspected, fingerprints: Mapping[str, str]
    ) -> frozenset[str]:
        """The groups of a known sample that have to be computed."""
        missing, audio = sample.missing(fingerprints), self.schema.audio_groups
        if found.identity.sha256 and not missing & audio:
            self._keep_source(utterance, sample, found.identity)
        if not missing and not found.incomplete:
            return missing
        stale = missing & sample.finished
        if stale & audio:
            same = self._seen_otherwise(utterance, sample, found.identity, fingerprints) & stale
            stale, missing = stale - same, missing - same
        if stale:
            self._note_change(utterance, sample, source_of(utterance, found.identity))
        if found.incomplete:
            self.state.begin([(utterance.id, found.incomplete)])
        return missing | found.incomplete

    def _keep_source(self, utterance: Utterance, sample: SampleState, identity: AudioIdentity) -> None:
        """Record the current mtime of unchanged content, for runs without --hash-audio."""
        source = source_of(utterance, identity)
        if sample.source != source:
            self.state.finish(utterance.id, {}, source=source)

    def _seen_otherwise(
        self, utterance: Utterance, sample: SampleState, identity: AudioIdentity, fingerprints: Mapping[str, str]
    ) -> frozenset[str]:
        """The groups that are up to date, but were fingerprinted before --hash-audio was switched on or off."""
        source = json.loads(sample.source or "{}")
        earlier = identity.known_by(source)
        # Two clips inside one file share its mtime and may have the same length, and only differ by their position.
        if earlier is None or (parse_reference(utterance.audio) and source.get("audio") != utterance.audio):
            return frozenset()
        same = self.schema.audio_groups - sample.missing(self.fingerprinter.of(utterance, earlier))
        if same:
            groups = {name: Finished(fingerprints[name], sample.groups[name].lengths) for name in same}
            self.state.finish(utterance.id, groups, source=source_of(utterance, identity))
        return same

    def _check_lengths(self, sample: SampleState, fresh: Iterable[str]) -> None:
        """Raise RejectedSample for a finished sample that --drop-overlong would have rejected."""
        for group in fresh:
            for name, length in sample.groups[group].lengths.items():
                check_length(self.schema, name, length)

    def _adopt(
        self, utterance: Utterance, found: Adoptable, fingerprints: Mapping[str, str], source: str
    ) -> frozenset[str]:
        groups = {name: Finished(fingerprints[name], lengths) for name, lengths in found.groups.items()}
        if groups:
            self.state.finish(utterance.id, groups, seconds=found.seconds, source=source)
        need = self.schema.all_groups - groups.keys()
        self.counts.adopted += not need
        self.counts.repaired += found.padded
        return need

    def _note_change(self, utterance: Utterance, known: SampleState, source: str) -> None:
        self.counts.changed += 1
        if len(self.counts.changes) < SHOWN_CHANGES:
            before, now = json.loads(known.source or "{}"), json.loads(source)
            differing = [
                f"{key} was {before.get(key)!r}, is {now[key]!r}" for key in now if before.get(key) != now[key]
            ]
            if differing:
                self.counts.changes.append(f"line {utterance.line}, id {utterance.id!r}: {'; '.join(differing)}")

    def _refuse(self) -> None:
        lines = "\n  ".join([*self.options.settings_changes, *self.counts.changes])
        raise StoreError(
            f"what finished samples depend on has changed, and --on-change is refuse:\n  {lines}\n"
            "run with --on-change recompute to redo them, or with another --output-dir"
        )
