"""One verification, from a folder to its faults: the recipe behind `python -m hfprep verify`.

Takes `VerifyOptions`, gives a `Verdict`. Knows nothing of how faults are shown.
"""

import contextlib
import dataclasses
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from hfprep.errors import ConfigError, HfprepError
from hfprep.formats.arrow import is_arrow_set
from hfprep.formats.formats import kept_in, open_set
from hfprep.formats.pair_files import renew_pairs
from hfprep.formats.samples import SampleSet, Split
from hfprep.formats.webdataset import is_webdataset
from hfprep.inputs.manifest.rows import AudioFinder
from hfprep.inputs.text.tokenizer import TextTokenizer
from hfprep.io.lock import OutputLock
from hfprep.pipeline.building import find_inputs
from hfprep.pipeline.config import FORMATS, BuildConfig
from hfprep.pipeline.devices import choose_workers
from hfprep.schema import COLUMNS
from hfprep.store.layout import PRIVATE, PROGRESS, NpyOutput
from hfprep.tools.verify.arrays import read_npy
from hfprep.tools.verify.exported import ExportedCheck
from hfprep.tools.verify.faults import Fault, FaultKind, Findings
from hfprep.tools.verify.listing import Listing
from hfprep.tools.verify.npy import verify_npy
from hfprep.tools.verify.pairs import verify_pairs
from hfprep.tools.verify.parity import Parity, Stored, check_models, compare_alone, draw
from hfprep.tools.verify.repair import repair_npy
from hfprep.tools.verify.state_reader import StateReader

MODEL_OPTIONS = ("tokenizer", "config", "gpt_checkpoint", "semantic_model", "semantic_codec", "models")
INNER_EXPORTS = FORMATS[1:]  # `build --format` writes each into a folder of its name


@dataclass(frozen=True, kw_only=True)
class VerifyOptions:
    """What to verify. The model paths and the manifest are those of the last build unless they are given."""

    output_dir: Path
    parity: int = 0
    repair: bool = False
    workers: int = 0
    device: str = "auto"
    seed: int = 0
    manifest: Path | None = None
    tokenizer: Path | None = None
    config: Path | None = None
    gpt_checkpoint: Path | None = None
    semantic_model: str | None = None
    semantic_codec: str | None = None
    models: Path | None = None


@dataclass(frozen=True)
class Verdict:
    """What was found: faults, remarks, how many samples there are, and what a repair or a comparison gave."""

    format: str
    samples: int
    faults: list[Fault]
    notes: list[str] = field(default_factory=list)
    repairs: list[str] = field(default_factory=list)
    parity: Parity | None = None


def verify(options: VerifyOptions) -> Verdict:
    """Check a finished output of any format; with `repair` move what is broken aside.

    Raises ConfigError where there is no output or the models for `parity` are missing or others, StoreError where a
    build is running in it.
    """
    root = options.output_dir
    if not root.is_dir():
        raise ConfigError(f"there is no folder {str(root)!r}; give the output directory of a build, or an export")
    if is_arrow_set(root) or is_webdataset(root):
        return _verify_exported(options)
    output = NpyOutput(root)
    if kept_in(root) is not None:
        with _undisturbed(output, options.repair):
            return _verify_exported(options)
    if not output.occupied() and not output.private.is_dir() and not any(root.glob("*_manifest.jsonl")):
        raise ConfigError(f"{str(root)!r} holds no features: neither manifests, nor arrays, nor an export")
    with _undisturbed(output, options.repair):
        findings, listing = verify_npy(output, workers=choose_workers(options.workers), vocab_size=_vocab_size(options))
        verify_pairs(root, findings)
        parity = None
        if options.parity:
            broken = {fault.id for fault in findings.faults}
            records = (record for _, record in listing.records() if record["id"] not in broken)
            parity = _compare(options, draw(records, options.parity, options.seed), _npy_arrays(output), findings)
        faults, notes = _verify_inner_exports(options, listing)
        repairs = []
        if options.repair and (findings.faults or faults):
            repairs = repair_npy(output, findings, listing, {fault.file.partition("/")[0] for fault in faults})
            repairs += renew_pairs(root)
    samples = len(listing.split_of)
    return Verdict("npy", samples, findings.faults + faults, findings.notes + notes, repairs, parity)


@contextlib.contextmanager
def _undisturbed(output: NpyOutput, must_write: bool) -> Iterator[None]:
    """Hold the output's lock, so that no build changes it meanwhile; a folder that cannot be written needs none."""
    if must_write or (output.private.is_dir() and os.access(output.private, os.W_OK)):
        with OutputLock(output.private / "lock"):
            yield
    else:
        yield


def _verify_exported(options: VerifyOptions) -> Verdict:
    root = options.output_dir
    source = open_set(root)
    check = _check_export(source, options)
    findings = check.findings
    if source.root != root:
        _check_progress(root, check)
    parity = None
    if options.parity:
        broken = {fault.id for fault in findings.faults}
        records, stored = _exported_records(check.readable, broken)
        parity = _compare(options, draw(records, options.parity, options.seed), stored, findings)
    repairs = _repair_exported(root, source, check, findings) if options.repair and findings.faults else []
    return Verdict(source.format, len(check.split_of), findings.faults, findings.notes, repairs, parity)


def _check_export(source: SampleSet, options: VerifyOptions) -> ExportedCheck:
    check = ExportedCheck(source, choose_workers(options.workers), _vocab_size(options))
    check.run()
    return check


def _verify_inner_exports(options: VerifyOptions, listing: Listing) -> tuple[list[Fault], list[str]]:
    """Check the other formats that the build wrote below its own output; gives faults and remarks.

    Such a set is made from the npy layout again by the next build, so all of its faults have the same remedy.
    """
    faults: list[Fault] = []
    notes: list[str] = []
    for name in INNER_EXPORTS:
        folder = options.output_dir / name
        if not folder.is_dir():
            continue
        if not (is_arrow_set(folder) or is_webdataset(folder)):
            faults.append(Fault(FaultKind.FILE_INVALID, None, name, "is no finished export; run the build again"))
            continue
        check = _check_export(open_set(folder), options)
        faults += [dataclasses.replace(fault, file=f"{name}/{fault.file}") for fault in check.findings.faults]
        notes += [f"{name}: {note}" for note in check.findings.notes]
        if not check.findings.faults and check.split_of.keys() != listing.split_of.keys():
            notes.append(f"{name} holds other samples than the manifests: build with --format npy,{name} to renew it")
    return faults, notes


def _check_progress(root: Path, check: ExportedCheck) -> None:
    """Hold the progress file of a build against the set that it keeps its features in."""
    try:
        listed = set((root / PROGRESS).read_text(encoding="utf-8").split("\n")) - {""}
    except (OSError, UnicodeDecodeError) as error:
        check.findings.add(FaultKind.FILE_INVALID, PROGRESS, f"cannot be read: {error}; run the build again")
        return
    for sample_id in sorted(listed ^ check.split_of.keys()):
        where = "the set, but not here" if sample_id in check.split_of else "here, but not in the set"
        message = f"{sample_id!r} is listed {where}; run the build again"
        check.findings.add(FaultKind.PROGRESS_DISAGREES, PROGRESS, message, sample_id=sample_id)


def _exported_records(splits: Sequence[Split], broken: set[str | None]) -> tuple[Iterator[dict[str, Any]], Stored]:
    places: dict[str, tuple[int, int]] = {}

    def records() -> Iterator[dict[str, Any]]:
        for number, split in enumerate(splits):
            for index, entry in enumerate(split.entries()):
                if entry.id not in broken:
                    places[entry.id] = number, index
                    yield entry.record

    def stored(sample_id: str) -> dict[str, np.ndarray]:
        number, index = places[sample_id]
        return splits[number].sample(index).arrays

    return records(), stored


def _repair_exported(root: Path, source: SampleSet, check: ExportedCheck, findings: Findings) -> list[str]:
    """Move broken and unlisted shards aside; what makes them again is said."""
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
        return [*moved, "run the build again: it computes what these shards held, and nothing else"]
    return [*moved, "export the set again from the build's output: it replaces this folder as a whole"]


def _npy_arrays(output: NpyOutput) -> Stored:
    def stored(sample_id: str) -> dict[str, np.ndarray]:
        arrays = {name: read_npy(output.artifact(name, sample_id))[0] for name in COLUMNS}
        return {name: array for name, array in arrays.items() if array is not None}

    return stored


def _last_run(root: Path) -> dict[str, Any]:
    """The paths that the last build was given, where its state holds them."""
    path = root / PRIVATE / "state.sqlite"
    if not path.is_file():
        return {}
    with contextlib.suppress(Exception), contextlib.closing(StateReader(path)) as state:
        return dict(state.get("paths") or {})
    return {}


def _stats(root: Path) -> dict[str, Any]:
    try:
        if is_arrow_set(root) or is_webdataset(root):
            return open_set(root).origin.stats or {}
        return dict(json.loads((root / "stats.json").read_bytes()))
    except (OSError, ValueError, TypeError, HfprepError):
        return {}


def _vocab_size(options: VerifyOptions) -> int | None:
    """Pieces of the tokenizer, where it can be found: text ids must lie below."""
    stats = _stats(options.output_dir)
    candidates = [options.tokenizer, options.models and options.models / "bpe.model", stats.get("tokenizer")]
    for candidate in candidates:
        if isinstance(candidate, str | Path) and Path(candidate).is_file():
            try:
                return TextTokenizer(Path(candidate)).vocab_size
            except ConfigError:
                continue
    return None


def _compare(options: VerifyOptions, records: list[dict[str, Any]], stored: Stored, findings: Findings) -> Parity:
    last, stats = _last_run(options.output_dir), _stats(options.output_dir)
    given = {name: getattr(options, name) for name in MODEL_OPTIONS}
    if not any(value is not None for value in given.values()):
        given = {name: last.get(name) for name in MODEL_OPTIONS}
    if not any(value is not None for value in given.values()):
        raise ConfigError("--parity needs the models that the output was made with; give --models DIR")
    manifest = options.manifest or Path(last.get("manifest") or options.output_dir / "manifest.jsonl")
    config = dataclasses.replace(
        BuildConfig(manifest=manifest, output_dir=options.output_dir, device=options.device), **given
    )
    inputs = find_inputs(config, NpyOutput(options.output_dir))
    check_models(inputs, stats)
    audio_sr = stats.get("settings", {}).get("audio_sr", 16000)
    return compare_alone(
        records,
        stored,
        findings,
        inputs=inputs,
        tokenizer=config.tokenizer_path,
        device=options.device,
        precision=stats.get("precision", "fp32"),
        audio_sr=None if audio_sr == 16000 else audio_sr,
        finder=AudioFinder(manifest, last.get("audio_root")),
        folder=last.get("folder"),
    )
