"""Verifies an output: the implementation of `python -m hfprep verify`.

Takes `VerifyOptions`, returns a `Verdict`.
"""

import contextlib
import dataclasses
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from hfprep.errors import ConfigError
from hfprep.formats.arrow import is_arrow_set
from hfprep.formats.formats import kept_in, open_set
from hfprep.formats.pair_files import pair_files, pair_problems, renew_pairs
from hfprep.formats.samples import SampleSet, Split
from hfprep.formats.webdataset import is_webdataset
from hfprep.io.lock import OutputLock
from hfprep.io.object_storage import check_local
from hfprep.pipeline.config import FORMATS
from hfprep.pipeline.devices import choose_workers
from hfprep.store.layout import PRIVATE, PROGRESS, NpyOutput, OutputFolder
from hfprep.tools.verify.arrays import read_npy
from hfprep.tools.verify.comparing import Compared, Stored, compare
from hfprep.tools.verify.described import npy_schema, stats_of
from hfprep.tools.verify.exported import ExportedCheck
from hfprep.tools.verify.faults import Fault, FaultKind, Findings
from hfprep.tools.verify.listing import Listing
from hfprep.tools.verify.npy import verify_npy
from hfprep.tools.verify.options import VerifyOptions
from hfprep.tools.verify.repair import repair_npy

INNER_EXPORTS = FORMATS[1:]  # `build --format` writes each to a folder with its name


@dataclass(frozen=True)
class Verdict:
    """The result: faults, notes, the number of samples, and the results of repairs and comparisons."""

    format: str
    samples: int
    faults: list[Fault]
    notes: list[str] = field(default_factory=list)
    repairs: list[str] = field(default_factory=list)
    parity: Compared | None = None
    reference: Compared | None = None


def verify(options: VerifyOptions) -> Verdict:
    """Check a finished output in any format; with `repair`, move broken files aside.

    Raises ConfigError if there is no output, or if the models for `parity` are missing or different; StoreError if a
    build is running in it.
    """
    root = options.output_dir
    check_local(root)
    if not root.is_dir():
        raise ConfigError(f"{str(root)!r} is not a folder; give the output directory of a build, or an export")
    if is_arrow_set(root) or is_webdataset(root):
        return _verify_exported(options)
    folder = OutputFolder(root)
    if kept_in(root) is not None:
        with _undisturbed(folder, options.repair):
            return _verify_exported(options)
    output = NpyOutput(root, npy_schema(root))
    with _undisturbed(output, options.repair):
        findings, listing = verify_npy(output, workers=choose_workers(options.workers))
        verify_pairs(root, findings)
        broken = {fault.id for fault in findings.faults}

        def records() -> Iterator[dict[str, Any]]:
            return (record for _, record in listing.records() if record["id"] not in broken)

        def stored(sample_id: str) -> dict[str, np.ndarray]:
            arrays = {name: read_npy(output.artifact(name, sample_id))[0] for name in output.schema.by_name}
            return {name: array for name, array in arrays.items() if array is not None}

        compared = compare(options, output.schema, records, stored, findings, stats_of(root))
        faults, notes = _verify_inner_exports(options, listing)
        repairs = []
        if options.repair and (findings.faults or faults):
            repairs = repair_npy(output, findings, listing, {fault.file.partition("/")[0] for fault in faults})
            repairs += renew_pairs(root)
    samples = len(listing.split_of)
    return Verdict("npy", samples, findings.faults + faults, findings.notes + notes, repairs, *compared)


def verify_pairs(output: Path, findings: Findings) -> None:
    """Check the pair files of an npy output against the records of their utterances; an invalid file is one fault."""
    for name in pair_files(output):
        problems = pair_problems(output, name)
        first = next(problems, None)
        if first is None:
            continue
        others = sum(1 for _ in problems)
        more = f", and {others} other pairs are wrong" if others else ""
        message = f"{first.message}{more}; make the pairs again: python -m hfprep pairs {output}"
        findings.add(FaultKind.PAIRS_DISAGREE, f"{name}:{first.line}", message, sample_id=first.id)


def _undisturbed(output: OutputFolder, must_write: bool) -> contextlib.AbstractContextManager[Any]:
    """Holds the output's lock, so that no build changes it; a read-only folder needs no lock."""
    if must_write or (output.private.is_dir() and os.access(output.private, os.W_OK)):
        return OutputLock(output.private / "lock")
    return contextlib.nullcontext()


def _verify_exported(options: VerifyOptions) -> Verdict:
    root = options.output_dir
    source = open_set(root)
    check = ExportedCheck(source, choose_workers(options.workers))
    findings = check.run()
    if source.root != root:
        _check_progress(root, check)
    records, stored = _exported_records(check.readable, {fault.id for fault in findings.faults})
    compared = compare(options, source.schema, records, stored, findings, check.stats)
    repairs = _repair_exported(root, source, check, findings) if options.repair and findings.faults else []
    return Verdict(source.format, len(check.split_of), findings.faults, findings.notes, repairs, *compared)


def _verify_inner_exports(options: VerifyOptions, listing: Listing) -> tuple[list[Fault], list[str]]:
    """Check the other formats that the build wrote below its output; returns faults and notes.

    The next build exports such a set again, which fixes all of its faults.
    """
    faults: list[Fault] = []
    notes: list[str] = []
    for name in INNER_EXPORTS:
        folder = options.output_dir / name
        if not folder.is_dir():
            continue
        if not (is_arrow_set(folder) or is_webdataset(folder)):
            faults.append(Fault(FaultKind.FILE_INVALID, None, name, "is not a finished export; run the build again"))
            continue
        check = ExportedCheck(open_set(folder), choose_workers(options.workers))
        found = check.run()
        faults += [dataclasses.replace(fault, file=f"{name}/{fault.file}") for fault in found.faults]
        notes += [f"{name}: {note}" for note in found.notes]
        if not found.faults and check.split_of.keys() != listing.split_of.keys():
            notes.append(f"{name} has other samples than the manifests: build with --format npy,{name} to update it")
    return faults, notes


def _check_progress(root: Path, check: ExportedCheck) -> None:
    """Compare a build's progress file with the set of its features."""
    try:
        listed = set((root / PROGRESS).read_text(encoding="utf-8").split("\n")) - {""}
    except (OSError, UnicodeDecodeError) as error:
        check.findings.add(FaultKind.FILE_INVALID, PROGRESS, f"cannot be read: {error}; run the build again")
        return
    for sample_id in sorted(listed ^ check.split_of.keys()):
        where = "the set, but not here" if sample_id in check.split_of else "here, but not in the set"
        message = f"{sample_id!r} is listed {where}; run the build again"
        check.findings.add(FaultKind.PROGRESS_DISAGREES, PROGRESS, message, sample_id=sample_id)


def _exported_records(
    splits: Sequence[Split], broken: set[str | None]
) -> tuple[Callable[[], Iterator[dict[str, Any]]], Stored]:
    places: dict[str, tuple[Split, int]] = {}

    def records() -> Iterator[dict[str, Any]]:
        for split in splits:
            for index, entry in enumerate(split.entries()):
                if entry.id not in broken:
                    places[entry.id] = split, index
                    yield entry.record

    def stored(sample_id: str) -> dict[str, np.ndarray]:
        split, index = places[sample_id]
        return split.sample(index).arrays

    return records, stored


def _repair_exported(root: Path, source: SampleSet, check: ExportedCheck, findings: Findings) -> list[str]:
    """Move broken and unlisted shards aside; returns what was done and how to restore them."""
    files = check.broken_files | {fault.file for fault in findings.faults if (source.root / fault.file).is_file()}
    moved = []
    for path in sorted(source.root / file for file in files):
        if path.exists():
            name = path.relative_to(root).as_posix()
            target = root / PRIVATE / "broken" / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.move(path, target)
            moved.append(f"moved {name} to {PRIVATE}/broken")
    if source.root != root:
        return [*moved, "run the build again: it recomputes only the samples of these shards"]
    return [*moved, "export the set again from the build's output, which replaces this folder"]
