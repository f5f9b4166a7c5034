"""Checks the text files of an npy output against each other: manifests, progress, rejected.jsonl, stats.json.

Provides `Listing`: the valid records, and the faults of the others. Opens no arrays.
"""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hfprep.errors import Reason, RejectedSample
from hfprep.inputs.manifest.rows import check_id
from hfprep.schema import METADATA, Schema, manifest_record
from hfprep.store.layout import PROGRESS, REJECTED, STATS, TRAIN, VAL, is_validation
from hfprep.tools.verify.faults import FaultKind, Findings

MANIFESTS = (TRAIN, VAL)
TEXTS = ("id", "audio_path", "text")
LABELS = ("speaker", "language")
COUNTS = ("total", "train", "val", "lines_read", "accepted", "capped", "pending")


@dataclass
class Listing:
    """The text files of an output. `split_of` has the valid ids, `suspect` the ids of invalid records."""

    root: Path
    schema: Schema
    findings: Findings
    stats: dict[str, Any] = field(default_factory=dict)
    split_of: dict[str, str] = field(default_factory=dict)
    suspect: set[str] = field(default_factory=set)

    def read(self, val_ratio: float | None) -> None:
        """Read and check all text files. Records are not kept; `records` reads them again."""
        self.stats = self._read_stats()
        if val_ratio is None:
            val_ratio = self.stats.get("settings", {}).get("val_ratio")
        for name in MANIFESTS:
            for number, record in self._records(name, report=True):
                self._place(name, number, record["id"], val_ratio)
        self._check_progress()
        self._check_counts(self._check_rejected())

    def records(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """The split and record of every valid sample, each once."""
        seen: set[str] = set()
        for name in MANIFESTS:
            for _, record in self._records(name, report=False):
                sample_id = record["id"]
                if self.split_of.get(sample_id) == name and sample_id not in seen:
                    seen.add(sample_id)
                    yield name, record

    def _place(self, name: str, number: int, sample_id: str, val_ratio: float | None) -> None:
        where = f"{name}:{number}"
        earlier = self.split_of.get(sample_id)
        if earlier == name:
            self.findings.add(FaultKind.DUPLICATE_ID, where, "an earlier line has this id", sample_id=sample_id)
        elif earlier is not None:
            self.findings.add(FaultKind.IN_BOTH_SPLITS, where, f"the id is also in {earlier}", sample_id=sample_id)
        else:
            self.split_of[sample_id] = name
            right = name if val_ratio is None else (VAL if is_validation(sample_id, val_ratio) else TRAIN)
            if name != right:
                message = f"with a val ratio of {val_ratio}, the id belongs to {right}"
                self.findings.add(FaultKind.WRONG_SPLIT, where, message, sample_id=sample_id)

    def _records(self, name: str, *, report: bool) -> Iterator[tuple[int, dict[str, Any]]]:
        """Valid records with their line numbers; with `report`, others become faults."""
        if not self._exists(name, report=report):
            return
        with open(self.root / name, "rb") as stream:
            for number, raw in enumerate(stream, start=1):
                record, problem = parse_record(raw, self.schema)
                if problem is None:
                    yield number, record
                elif report:
                    sample_id = record.get("id") if isinstance(record.get("id"), str) else None
                    self.suspect |= {sample_id} if sample_id else set()
                    self.findings.add(FaultKind.RECORD_INVALID, f"{name}:{number}", problem, sample_id=sample_id)

    def _exists(self, name: str, *, report: bool = True) -> bool:
        """Whether there is such a file; with `report`, its absence is a fault."""
        found = (self.root / name).is_file()
        if report and not found:
            self.findings.add(FaultKind.FILE_MISSING, name, "the file does not exist; a build writes it")
        return found

    def _read_stats(self) -> dict[str, Any]:
        try:
            stats = json.loads((self.root / STATS).read_bytes())
        except FileNotFoundError:
            self.findings.add(
                FaultKind.UNFINISHED, STATS, "the file does not exist; run the build again until it finishes"
            )
            return {}
        except (OSError, ValueError) as error:
            self.findings.add(FaultKind.FILE_INVALID, STATS, f"cannot be read as JSON: {error}")
            return {}
        problem = _stats_problem(stats)
        if problem:
            self.findings.add(FaultKind.FILE_INVALID, STATS, problem)
            return {}
        if stats["pending"]:
            message = f"{stats['pending']} lines are not computed yet; run the build again"
            self.findings.add(FaultKind.UNFINISHED, STATS, message)
        return dict(stats)

    def _check_progress(self) -> None:
        """Check that the progress file has each listed id once, in the order of both manifests."""
        if not self._exists(PROGRESS):
            return
        listed = {name: (record["id"] for _, record in self._records(name, report=False)) for name in MANIFESTS}
        heads = {name: next(ids, None) for name, ids in listed.items()}
        seen: set[str] = set()
        ordered = True
        with open(self.root / PROGRESS, "rb") as stream:
            for number, raw in enumerate(stream, start=1):
                sample_id = raw.decode("utf-8", "replace").removesuffix("\n")
                where = f"{PROGRESS}:{number}"
                if sample_id not in self.split_of or sample_id in seen or not raw.endswith(b"\n"):
                    again = "is listed twice" if sample_id in seen else "is in no manifest"
                    self.findings.add(FaultKind.PROGRESS_DISAGREES, where, f"the id {again}", sample_id=sample_id)
                    ordered = False
                    continue
                seen.add(sample_id)
                name = self.split_of[sample_id]
                if ordered and heads[name] != sample_id:
                    message = f"the order is not that of {name}, where {heads[name]!r} comes next"
                    self.findings.add(FaultKind.PROGRESS_DISAGREES, where, message, sample_id=sample_id)
                    ordered = False
                heads[name] = next(listed[name], None)
        for sample_id in self.split_of.keys() - seen:
            message = f"the id is missing, but {self.split_of[sample_id]} lists it"
            self.findings.add(FaultKind.PROGRESS_DISAGREES, PROGRESS, message, sample_id=sample_id)

    def _check_rejected(self) -> dict[str, int] | None:
        """Check rejected.jsonl and count its lines by reason; None if a line is invalid."""
        if not self._exists(REJECTED):
            return None
        counts = Counter[str]()
        last = 0
        sound = True
        with open(self.root / REJECTED, "rb") as stream:
            for number, raw in enumerate(stream, start=1):
                problem, line, reason = _rejection_problem(raw, last)
                if problem:
                    self.findings.add(FaultKind.FILE_INVALID, f"{REJECTED}:{number}", problem)
                    sound = False
                    continue
                last = line
                counts[reason] += 1
        return dict(counts) if sound else None

    def _check_counts(self, rejected: dict[str, int] | None) -> None:
        if not self.stats:
            return
        stats, by_split = self.stats, list(self.split_of.values())
        found = {"train": by_split.count(TRAIN), "val": by_split.count(VAL), "total": len(by_split)}
        for name, count in found.items():
            if stats[name] != count:
                message = f"{name} is {stats[name]}, but the manifests list {count}"
                self.findings.add(FaultKind.STATS_DISAGREE, STATS, message)
        accounted = stats["accepted"] + sum(stats["rejected"].values()) + stats["capped"] + stats["pending"]
        if accounted != stats["lines_read"]:
            message = f"accepted + rejected + capped + pending = {accounted}, but lines_read is {stats['lines_read']}"
            self.findings.add(FaultKind.STATS_DISAGREE, STATS, message)
        if rejected is not None and rejected != {name: count for name, count in stats["rejected"].items() if count}:
            message = f"has {rejected}, but {STATS} has {stats['rejected']}"
            self.findings.add(FaultKind.REJECTED_DISAGREES, REJECTED, message)


def parse_record(raw: bytes, schema: Schema) -> tuple[dict[str, Any], str | None]:
    """A manifest line as a record, and its problem (None: it is valid)."""
    try:
        record = json.loads(raw)
    except ValueError as error:
        return {}, f"the line is not JSON: {error}"
    if not isinstance(record, dict):
        return {}, f"the line is a JSON {type(record).__name__}, not an object"
    if not raw.endswith(b"\n"):
        return record, "the last line has no line break; it may be truncated"
    return record, record_problem(record, schema)


def record_problem(record: dict[str, Any], schema: Schema) -> str | None:
    """The problem with a sample's record (None: it is valid)."""
    for name in TEXTS:
        if not isinstance(record.get(name), str):
            return f"{name} is {record.get(name)!r}; it must be a string"
    try:
        check_id(record["id"])
    except RejectedSample as error:
        return error.message
    for name in LABELS:
        if name not in record or not isinstance(record[name], str | None):
            return f"{name} is {record.get(name)!r}; it must be a string or null"
    for name in schema.lengths:
        if not is_count(record.get(name)) or record[name] < 1:
            return f"{name} is {record.get(name)!r}; it must be a whole number from 1"
    duration = record.get("duration", "absent")
    if duration is not None and (isinstance(duration, bool) or not isinstance(duration, int | float) or duration < 0):
        return f"duration is {duration!r}; it must be seconds or null"
    # The remaining fields follow from these: paths, and fields derived by the schema.
    for name, value in manifest_record(schema, record, record).items():
        if name not in METADATA and record.get(name) != value:
            return f"{name} is {record.get(name)!r}; it must be {value!r}"
    return None


def is_count(value: Any) -> bool:
    """Whether a JSON value is an integer >= 0."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _stats_problem(stats: Any) -> str | None:
    if not isinstance(stats, dict):
        return f"is a JSON {type(stats).__name__}, not an object"
    for name in COUNTS:
        if not is_count(stats.get(name)):
            return f"{name} is {stats.get(name)!r}; it must be a count"
    for name in ("rejected", "settings", "sha256", "codebook"):
        if not isinstance(stats.get(name), dict):
            return f"{name} is {stats.get(name)!r}; it must be an object"
    if not isinstance(stats.get("hours", 0.0), float | int):
        return f"hours is {stats['hours']!r}; it must be a number"
    if not all(is_count(value) for value in stats["rejected"].values()):
        return f"rejected is {stats['rejected']!r}; it must contain counts"
    return None


def _rejection_problem(raw: bytes, last: int) -> tuple[str | None, int, str]:
    """The problem with a line of rejected.jsonl (None: it is valid), its manifest line, its reason."""
    try:
        row = json.loads(raw)
    except ValueError as error:
        return f"the line is not JSON: {error}", last, ""
    if not isinstance(row, dict) or set(row) != {"line", "id", "reason", "message"} or not is_count(row["line"]):
        return "the line must be an object with line, id, reason and message", last, ""
    if row["reason"] not in list(Reason):
        return f"the reason {row['reason']!r} is unknown", last, ""
    if row["line"] <= last:
        return f"manifest line {row['line']} comes after line {last}; line numbers must increase", last, ""
    return None, row["line"], row["reason"]
