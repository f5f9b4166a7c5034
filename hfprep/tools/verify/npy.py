"""Checks an output in the npy layout, as far as possible without its models.

Returns `Findings`. Reads every listed array once, in threads. Read-only.
"""

import contextlib
import math
import os
import sqlite3
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from hfprep.errors import StoreError
from hfprep.pipeline.prefetch import prefetch
from hfprep.schema import Schema, artifact_path
from hfprep.store.layout import PRIVATE, PROGRESS, REJECTED, STATE_FILE, STATS, TRAIN, VAL, NpyOutput
from hfprep.store.state import SampleState, read_value
from hfprep.store.statistics import perplexity
from hfprep.store.values import ratio
from hfprep.tools.verify.arrays import Problem, check_array, read_npy
from hfprep.tools.verify.described import StateReader
from hfprep.tools.verify.faults import OF_ARTIFACT, FaultKind, Findings
from hfprep.tools.verify.listing import Listing

READ_BYTES = 1 << 28
HOURS_TOLERANCE = 2e-6  # stats.json rounds to 6 decimals
ROOT_FILES = (TRAIN, VAL, PROGRESS, REJECTED, STATS)


def _open_state(output: NpyOutput, findings: Findings) -> StateReader | None:
    """The state of an output; None, with a fault or a note, if it is missing or damaged."""
    path = output.state_file
    if not path.is_file():
        findings.note(
            f"{STATE_FILE} is missing: a build would not know what is finished (--skip-existing adopts the files)"
        )
        return None
    try:
        return StateReader(path, output.schema)
    except (sqlite3.Error, StoreError) as error:
        findings.add(FaultKind.FILE_INVALID, STATE_FILE, f"the database is damaged: {error}")
        return None


def verify_npy(output: NpyOutput, *, workers: int) -> tuple[Findings, Listing]:
    """Check manifests, progress, statistics, state, arrays and other files."""
    findings = Findings()
    listing = Listing(output.root, output.schema, findings)
    with contextlib.ExitStack() as stack:
        state = _open_state(output, findings)
        if state is not None:
            stack.callback(state.close)
        listing.read(None if state is None else read_value(output.state_file, "val_ratio", ratio))
        _check_samples(output, listing, state, workers=workers)
        _check_folders(output, listing, state)
    return findings, listing


def _check_samples(output: NpyOutput, listing: Listing, state: StateReader | None, *, workers: int) -> None:
    """Read every listed array, and compare the totals with stats.json."""
    findings, stats, schema = listing.findings, listing.stats, output.schema
    counted = next(iter(schema.of_kind("codes")), None)
    counts = np.zeros((counted.size if counted is not None else None) or 1, np.int64)
    seconds = 0.0
    with ThreadPoolExecutor(workers) as pool:
        checked = prefetch(
            (record for _, record in listing.records()),
            lambda record: _check_arrays(output, record),
            cost_bytes=lambda record: sum(
                column.numpy_dtype.itemsize * math.prod(schema.shape(column, record)) for column in schema.columns
            ),
            pool=pool,
            max_bytes=READ_BYTES,
        )
        for record, problems, codes in checked:
            sample_id = record["id"]
            for column, (kind, message) in problems:
                findings.add(kind, artifact_path(column, sample_id), message, sample_id=sample_id, column=column)
            if codes is not None:
                counts += np.bincount(codes.reshape(-1), minlength=len(counts))
            if state is not None:
                seconds += _check_state(state.sample(sample_id), record, schema, findings)
    if stats and not any(findings.of(*OF_ARTIFACT, FaultKind.STATS_DISAGREE, FaultKind.RECORD_INVALID)):
        if counted is not None and counted.size is not None:
            _check_codebook(stats["codebook"], counts, findings)
        hours = seconds / 3600
        if state is not None and abs(hours - stats.get("hours", 0)) > HOURS_TOLERANCE:
            message = f"hours is {stats.get('hours')}, but the listed samples have {hours:.6f}"
            findings.add(FaultKind.STATS_DISAGREE, STATS, message)


def _check_arrays(
    output: NpyOutput, record: dict[str, Any]
) -> tuple[dict[str, Any], list[tuple[str, Problem]], np.ndarray | None]:
    """The record, the problems of its arrays by column, and the codes that stats.json counts; runs in a thread."""
    problems: list[tuple[str, Problem]] = []
    codes = None
    for column in output.schema.columns:
        array, found = read_npy(output.artifact(column.name, record["id"]))
        if array is not None:
            found += check_array(array, output.schema, column.name, record)
        problems += [(column.name, problem) for problem in found]
        if codes is None and column.kind == "codes" and column.size is not None and not found:
            codes = array
    return record, problems, codes


def _check_state(sample: SampleState | None, record: dict[str, Any], schema: Schema, findings: Findings) -> float:
    """Compare a record with the state's row; returns the sample's seconds."""
    sample_id = record["id"]
    if sample is None or not schema.all_groups <= sample.finished:
        message = "does not list the sample as finished, but the manifest does"
        findings.add(FaultKind.STATE_DISAGREES, STATE_FILE, message, sample_id=sample_id)
        return 0.0
    differing = [
        f"{name} is {record[name]} there and {value} here"
        for name, value in sample.lengths.items()
        if record.get(name) != value
    ]
    if differing:
        message = f"disagrees with the sample's record: {', '.join(differing)}"
        findings.add(FaultKind.STATE_DISAGREES, STATE_FILE, message, sample_id=sample_id)
    return sample.seconds or 0.0


def _check_codebook(codebook: dict[str, Any], counts: np.ndarray, findings: Findings) -> None:
    found = {"used": int((counts > 0).sum()), "perplexity": perplexity(counts)}
    for name, value in found.items():
        if codebook.get(name) != value:
            message = f"codebook.{name} is {codebook.get(name)}, but the codes give {value}"
            findings.add(FaultKind.STATS_DISAGREE, STATS, message)


def _check_folders(output: NpyOutput, listing: Listing, state: StateReader | None) -> None:
    """Find files that are not listed, and leftovers of killed runs."""
    findings = listing.findings
    kept: set[str] = set()
    for column in output.schema.by_name:
        for name in _files_below(output.root / column):
            sample_id = name.removesuffix(".npy")
            if name.endswith(".npy") and (sample_id in listing.split_of or sample_id in listing.suspect):
                continue
            if name.endswith(".npy") and state is not None and state.sample(sample_id) is not None:
                kept.add(sample_id)
                continue
            message = "the file belongs to no sample in the manifests"
            findings.add(FaultKind.UNLISTED_FILE, f"{column}/{name}", message)
    if kept:
        findings.note(f"{len(kept)} finished samples are kept that are not in the manifests (omitted in the last run)")
    for path in sorted(output.root.iterdir()):
        if path.name.startswith(ROOT_FILES) and path.name not in ROOT_FILES and path.suffix in {".tmp", ".staying"}:
            findings.add(FaultKind.UNLISTED_FILE, path.name, "an unfinished file of a killed run")
    if output.work.exists():
        message = "temporary files of a killed run; run the build again"
        findings.add(FaultKind.UNFINISHED, f"{PRIVATE}/work", message)


def _files_below(folder: Path) -> Iterator[str]:
    """All files below a folder, as relative paths with forward slashes."""
    for path, folders, files in os.walk(folder):
        folders.sort()
        for name in sorted(files):
            yield os.path.relpath(os.path.join(path, name), folder).replace(os.sep, "/")
