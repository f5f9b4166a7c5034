"""Everything that can be checked of an output in the npy layout without its models.

Takes the output directory, gives `Findings`. Reads every listed array once, in threads; changes nothing.
"""

import contextlib
import os
import sqlite3
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from hfprep.pipeline.prefetch import prefetch
from hfprep.schema import COLUMNS, Need, artifact_path
from hfprep.store.layout import PRIVATE, PROGRESS, REJECTED, STATS, TRAIN, VAL, NpyOutput
from hfprep.store.state import SampleState
from hfprep.store.statistics import perplexity
from hfprep.tools.verify.arrays import Bounds, Problem, check_array, read_npy
from hfprep.tools.verify.faults import OF_ARTIFACT, FaultKind, Findings
from hfprep.tools.verify.listing import LENGTHS, Listing
from hfprep.tools.verify.state_reader import StateReader

STATE_FILE = f"{PRIVATE}/state.sqlite"
SHAPES_SAMPLED = 101
READ_BYTES = 1 << 28
HOURS_TOLERANCE = 2e-6  # stats.json rounds to 6 decimals
ROOT_FILES = (TRAIN, VAL, PROGRESS, REJECTED, STATS)


@dataclass(frozen=True, slots=True)
class Checked:
    """What reading the arrays of one sample gave: problems by column, and how often each code occurs."""

    record: dict[str, Any]
    problems: list[tuple[str, Problem]]
    codes: np.ndarray | None


def open_state(output: NpyOutput, findings: Findings) -> StateReader | None:
    """The state of an output, None (with a fault or a note) where there is none that can be used."""
    path = output.private / "state.sqlite"
    if not path.is_file():
        findings.note(f"{STATE_FILE} is absent: a build could not tell what is finished (--skip-existing adopts it)")
        return None
    try:
        return StateReader(path)
    except sqlite3.Error as error:
        findings.add(FaultKind.FILE_INVALID, STATE_FILE, f"the database is damaged: {error}")
        return None


def verify_npy(output: NpyOutput, *, workers: int, vocab_size: int | None) -> tuple[Findings, Listing]:
    """Check manifests, progress, statistics, state, arrays and what else lies there."""
    findings = Findings()
    listing = Listing(output.root, findings)
    with contextlib.ExitStack() as stack:
        state = open_state(output, findings)
        if state is not None:
            stack.callback(state.close)
        listing.read(None if state is None else state.get("val_ratio"))
        _check_samples(output, listing, state, workers=workers, vocab_size=vocab_size)
        _check_folders(output, listing, state)
    return findings, listing


def _check_samples(
    output: NpyOutput, listing: Listing, state: StateReader | None, *, workers: int, vocab_size: int | None
) -> None:
    """Read every listed array, and hold the sums against stats.json."""
    findings, stats = listing.findings, listing.stats
    codebook = stats.get("codebook", {}).get("size")
    bounds = _usual_shapes(output, listing, codebook, vocab_size)
    counts = np.zeros(codebook or 1, np.int64)
    seconds = 0.0
    with ThreadPoolExecutor(workers) as pool:
        checked = prefetch(
            (record for _, record in listing.records()),
            lambda record: _check_arrays(output, record, bounds),
            cost_bytes=lambda record: 4 * (record["text_len"] + record["code_len"]) + (1 << 18),
            pool=pool,
            max_bytes=READ_BYTES,
        )
        for item in checked:
            sample_id = item.record["id"]
            for column, (kind, message) in item.problems:
                findings.add(kind, artifact_path(column, sample_id), message, sample_id=sample_id, column=column)
            if item.codes is not None and codebook:
                counts += np.bincount(item.codes, minlength=codebook)
            if state is not None:
                seconds += _check_state(state.sample(sample_id), item.record, findings)
    if stats and not any(findings.of(*OF_ARTIFACT, FaultKind.STATS_DISAGREE, FaultKind.RECORD_INVALID)):
        _check_codebook(stats["codebook"], counts, findings)
        hours = seconds / 3600
        if state is not None and abs(hours - stats.get("hours", 0)) > HOURS_TOLERANCE:
            message = f"hours is {stats.get('hours')}, but the listed samples have {hours:.6f}"
            findings.add(FaultKind.STATS_DISAGREE, STATS, message)


def _usual_shapes(output: NpyOutput, listing: Listing, codebook: int | None, vocab_size: int | None) -> Bounds:
    """The bounds, with the latents' shape that most of the first samples have."""
    shapes: Counter[tuple[int, ...]] = Counter()
    for _, record in islice(listing.records(), SHAPES_SAMPLED):
        array, _ = read_npy(output.artifact("condition", record["id"]))
        if array is not None and array.ndim == 2:
            shapes[array.shape] += 1
    if not shapes:
        return Bounds(codebook, vocab_size)
    (rows, width), _ = shapes.most_common(1)[0]
    return Bounds(codebook, vocab_size, model_dim=width, condition_len=rows)


def _check_arrays(output: NpyOutput, record: dict[str, Any], bounds: Bounds) -> Checked:
    """Read and check the arrays of one sample; runs in a thread."""
    problems: list[tuple[str, Problem]] = []
    codes = None
    for column in COLUMNS:
        array, found = read_npy(output.artifact(column, record["id"]))
        if array is not None:
            found += check_array(array, column, bounds, record.get(LENGTHS.get(column, "")))
        problems += [(column, problem) for problem in found]
        if column == "codes" and not found:
            codes = array
    return Checked(record, problems, codes)


def _check_state(sample: SampleState | None, record: dict[str, Any], findings: Findings) -> float:
    """Hold a record against the state's row; gives the sample's seconds."""
    sample_id = record["id"]
    if sample is None or sample.finished() != Need.ALL:
        message = "lists the sample as complete, but the state does not"
        findings.add(FaultKind.STATE_DISAGREES, STATE_FILE, message, sample_id=sample_id)
        return 0.0
    lengths = {"text_len": sample.text_len, "code_len": sample.code_len, "condition_len": sample.condition_len}
    differing = [
        f"{name} {record[name]} there, {value} here" for name, value in lengths.items() if record[name] != value
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
    """Find files that nothing lists, and what a killed run left behind."""
    findings = listing.findings
    kept: set[str] = set()
    for column in COLUMNS:
        for name in _files_below(output.root / column):
            sample_id = name.removesuffix(".npy")
            if name.endswith(".npy") and (sample_id in listing.split_of or sample_id in listing.suspect):
                continue
            if name.endswith(".npy") and state is not None and state.sample(sample_id) is not None:
                kept.add(sample_id)
                continue
            message = "no manifest lists a sample that this file belongs to"
            findings.add(FaultKind.UNLISTED_FILE, f"{column}/{name}", message)
    if kept:
        findings.note(
            f"{len(kept)} finished samples are kept that the manifests do not list (left out of the last run)"
        )
    for path in sorted(output.root.iterdir()):
        if path.name.startswith(ROOT_FILES) and path.name not in ROOT_FILES and path.suffix in {".tmp", ".staying"}:
            findings.add(FaultKind.UNLISTED_FILE, path.name, "an unfinished file of a run that was killed")
    if output.work.exists():
        message = "working data of a run that was killed; run the build again"
        findings.add(FaultKind.UNFINISHED, f"{PRIVATE}/work", message)


def _files_below(folder: Path) -> Iterator[str]:
    """Files anywhere below a folder, as paths relative to it with forward slashes."""
    for path, folders, files in os.walk(folder):
        folders.sort()
        for name in sorted(files):
            yield os.path.relpath(os.path.join(path, name), folder).replace(os.sep, "/")
