"""What there is to do: the manifest held against the state, before anything is computed.

Reads every line once, in order; writes the valid rows with their fingerprints and needs to one Arrow file, which
is the `datasets.Dataset` that everything after this maps over. Opens no audio, except headers of artifacts to adopt.
"""

import dataclasses
import json
import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa

from hfprep.audio.decode import TARGET_SAMPLING_RATE, read_header
from hfprep.audio.input_features import num_input_frames
from hfprep.errors import Reason, RejectedSample, StoreError
from hfprep.manifest import AudioFinder, ManifestReader, parse_line
from hfprep.records import COLUMNS, Need, Rejection, Utterance
from hfprep.store.atomic import explained
from hfprep.store.fingerprints import AudioIdentity, Fingerprinter, Fingerprints
from hfprep.store.layout import NpyOutput, PlannedRow
from hfprep.store.state import SampleState, State

log = logging.getLogger(__name__)

CHUNK_ROWS = 4096
SHOWN_CHANGES = 5
ROWS_SCHEMA = pa.schema(
    [
        ("line", pa.int64()),
        ("id", pa.string()),
        ("text", pa.string()),
        ("audio", pa.string()),
        ("path", pa.string()),
        ("speaker", pa.string()),
        ("language", pa.string()),
        ("duration", pa.float64()),
        ("extra", pa.string()),
        ("text_fingerprint", pa.binary(16)),
        ("codes_fingerprint", pa.binary(16)),
        ("latents_fingerprint", pa.binary(16)),
        ("source", pa.string()),
        ("need", pa.uint8()),
    ]
)


@dataclass(frozen=True, kw_only=True)
class PlanOptions:
    """What decides which rows are taken and what of them is reused."""

    language: str | None = None
    max_samples: int | None = None
    skip_existing: bool = False
    hash_audio: bool = False
    refuse_changes: bool = False
    workers: int = 1
    settings_changes: tuple[str, ...] = ()


@dataclass
class PlanCounts:
    """What the scan of a manifest found. lines_read = rows + rejected + capped."""

    lines_read: int = 0
    rows: int = 0
    rejected: int = 0
    capped: int = 0
    pending: int = 0
    reused: int = 0
    adopted: int = 0
    mended: int = 0
    changed: int = 0
    changes: list[str] = field(default_factory=list)


class Plan:
    """The valid rows of a manifest as a Dataset on disk, in source order."""

    def __init__(self, path: Path, counts: PlanCounts) -> None:
        self.path = path
        self.dataset = datasets.Dataset.from_file(str(path))
        self.counts = counts

    def rows(self) -> Iterator[PlannedRow]:
        """Every valid row."""
        for batch in self.dataset.data.table.to_batches(max_chunksize=CHUNK_ROWS):
            yield from map(planned_row, batch.to_pylist())

    def pending_positions(self) -> list[int]:
        """Positions in `dataset` of the rows of which something has yet to be computed."""
        positions: list[int] = self.dataset.data.column("need").to_numpy().nonzero()[0].tolist()
        return positions

    def pending(self) -> datasets.Dataset:
        """The rows of which something has yet to be computed."""
        return self.dataset.select(self.pending_positions())


def planned_row(row: dict[str, Any]) -> PlannedRow:
    """A row of the plan's Dataset as an object."""
    utterance = Utterance(*(row[item.name] for item in dataclasses.fields(Utterance)))
    fingerprints = Fingerprints(row["text_fingerprint"], row["codes_fingerprint"], row["latents_fingerprint"])
    return PlannedRow(utterance, fingerprints, row["source"], Need(row["need"]))


class Planner:
    """Scans a manifest and decides, row by row, what is finished already."""

    def __init__(self, output: NpyOutput, state: State, fingerprinter: Fingerprinter, options: PlanOptions) -> None:
        self.output = output
        self.state = state
        self.fingerprinter = fingerprinter
        self.options = options
        self.counts = PlanCounts()

    def plan(self, manifest: Path) -> Plan:
        """Scan the manifest; rejections go to the state. StoreError where changes are refused and there are some."""
        path = self.output.work / "rows.arrow"
        with ExitStack() as stack:
            stack.enter_context(explained(path))
            pool = stack.enter_context(ThreadPoolExecutor(self.options.workers))
            sink = stack.enter_context(pa.OSFile(str(path), "wb"))
            writer = stack.enter_context(pa.ipc.new_stream(sink, ROWS_SCHEMA))
            for chunk in _chunks(self._valid_rows(manifest)):
                writer.write_batch(self._plan_chunk(chunk, pool))
        return Plan(path, self.counts)

    def _valid_rows(self, manifest: Path) -> Iterator[Utterance]:
        """Rows that can be read and whose id is new, up to the cap; everything else is rejected or counted."""
        reader = ManifestReader(manifest, self.options.language)
        finder = AudioFinder(manifest)
        counts = self.counts
        taken = 0
        for number, raw in reader.lines():
            counts.lines_read += 1
            if taken == self.options.max_samples:
                counts.capped += 1
                continue
            row = parse_line(number, raw, finder, self.options.language)
            if isinstance(row, Utterance) and not self.state.first_sight(row.id):
                message = f"id {row.id!r} stands on an earlier line already; give each row its own"
                row = Rejection(number, row.id, Reason.DUPLICATE_ID, message)
            if isinstance(row, Rejection):
                self._reject(row)
                continue
            taken += 1
            yield row

    def _reject(self, rejection: Rejection) -> None:
        self.state.reject(rejection)
        self.counts.rejected += 1

    def _plan_chunk(self, chunk: Sequence[Utterance], pool: ThreadPoolExecutor) -> pa.RecordBatch:
        """The chunk's rows whose audio is there, as Arrow; changes to the state are kept in one transaction."""
        rows = []
        with self.state.transaction():
            known = [self.state.sample(utterance.id) for utterance in chunk]
            for utterance, found in zip(chunk, pool.map(self._inspect, chunk, known), strict=True):
                if isinstance(found, Rejection):
                    self._reject(found)
                    continue
                rows.append(self._decide(utterance, found))
        if self.options.refuse_changes and self.counts.changed:
            self._refuse()
        columns = zip(*rows, strict=True) if rows else [[] for _ in ROWS_SCHEMA]
        arrays = [pa.array(values, item.type) for values, item in zip(columns, ROWS_SCHEMA, strict=True)]
        return pa.record_batch(arrays, schema=ROWS_SCHEMA)

    def _inspect(self, utterance: Utterance, known: SampleState | None) -> "_Inspected | Rejection":
        """Everything about one row that needs the file system; runs in a thread."""
        try:
            identity = AudioIdentity.of(utterance.path, by_content=self.options.hash_audio)
        except (FileNotFoundError, NotADirectoryError):
            message = f"there is no file {utterance.path}; correct `audio` or restore the file"
            return Rejection(utterance.line, utterance.id, Reason.AUDIO_MISSING, message)
        except OSError as error:
            message = f"{utterance.path}: {error.strerror or error}"
            return Rejection(utterance.line, utterance.id, Reason.AUDIO_UNREADABLE, message)
        if known is not None:
            return _Inspected(identity, known, self.output.incomplete(utterance.id, known), {})
        adopted = self._adoptable(utterance) if self.options.skip_existing else {}
        return _Inspected(identity, None, Need.NOTHING, adopted)

    def _adoptable(self, utterance: Utterance) -> dict[str, Any]:
        """Lengths of the artifacts on disk that count as done; of audio columns only where the codes fit the audio."""
        shapes = {name: self.output.read_shape(name, utterance.id) for name in COLUMNS}
        values: dict[str, Any] = {}
        if shapes["text_ids"]:
            values |= {"text": True, "text_len": shapes["text_ids"][0]}
        codes, condition, emo_vec = shapes["codes"], shapes["condition"], shapes["emo_vec"]
        if codes and condition and emo_vec and condition[1:] == emo_vec:
            try:
                header = read_header(utterance.path)
            except RejectedSample:
                return values
            expected = num_input_frames(round(header.seconds * TARGET_SAMPLING_RATE))
            if abs(codes[0] - expected) <= 1:
                values |= {"codes": True, "latents": True, "code_len": codes[0], "seconds": header.seconds}
                values |= {"condition_len": condition[0], "model_dim": condition[1]}
            else:
                values["mended"] = True
        return values

    def _decide(self, utterance: Utterance, found: "_Inspected") -> tuple[Any, ...]:
        """One line of the plan; notes in the state what was adopted and what is not on disk after all."""
        fingerprints = self.fingerprinter.of(utterance, found.identity)
        source = json.dumps(
            {"text": utterance.text, "language": utterance.language, "audio": utterance.audio}
            | {"size": found.identity.size, "mtime_ns": found.identity.mtime_ns, "sha256": found.identity.sha256},
            ensure_ascii=False,
        )
        need = Need.ALL
        if found.known is not None:
            stale = found.known.missing(fingerprints) & found.known.finished()
            if stale:
                self._note_change(utterance, found.known, source)
            if found.incomplete:
                self.state.begin([(utterance.id, found.incomplete)])
            need = found.known.missing(fingerprints) | found.incomplete
        elif found.adopted:
            need = self._adopt(utterance, found.adopted, fingerprints, source)
        self.counts.rows += 1
        self.counts.pending += bool(need)
        self.counts.reused += not need
        fields = (getattr(utterance, item.name) for item in dataclasses.fields(Utterance))
        return (*fields, fingerprints.text, fingerprints.codes, fingerprints.latents, source, int(need))

    def _adopt(self, utterance: Utterance, values: dict[str, Any], fingerprints: Fingerprints, source: str) -> Need:
        need = Need.ALL
        mended = values.pop("mended", False)
        for group, name in ((Need.TEXT, "text"), (Need.CODES, "codes"), (Need.LATENTS, "latents")):
            if values.get(name):
                values[name] = getattr(fingerprints, name)
                need &= ~group
        if values:
            self.state.adopt(utterance.id, values | {"source": source})
        self.counts.adopted += not need
        self.counts.mended += mended
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


@dataclass(frozen=True, slots=True)
class _Inspected:
    """What the file system says of one row."""

    identity: AudioIdentity
    known: SampleState | None
    incomplete: Need
    adopted: dict[str, Any]


def _chunks(rows: Iterator[Utterance]) -> Iterator[list[Utterance]]:
    chunk: list[Utterance] = []
    for row in rows:
        chunk.append(row)
        if len(chunk) == CHUNK_ROWS:
            yield chunk
            chunk = []
    if chunk:
        yield chunk
