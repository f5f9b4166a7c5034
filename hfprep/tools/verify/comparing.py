"""Computes samples of an output again, alone or with the published library, and compares them with the stored ones.

Alone: checks that batching did not change results, in the build's precision. Codes and text ids must be equal; vectors
may differ by float32 rounding. With the published library: what the recipe says it can compute. Programs that sum in a
different order differ in a few codes, so only a fraction of the codes must be equal.
"""

import dataclasses
import json
import random
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from hfprep.errors import ConfigError, RejectedSample
from hfprep.formats.extra_fields import read_extra_fields
from hfprep.formats.manifest_paths import audio_finder
from hfprep.inputs.audio.decode import TARGET_SAMPLING_RATE, load_waveform
from hfprep.pipeline.config import PLAIN, BuildConfig
from hfprep.pipeline.devices import choose_workers
from hfprep.pipeline.engines.spec import ExtractorSpec
from hfprep.pipeline.filters import SampleOptions
from hfprep.pipeline.inputs import Inputs, find_inputs
from hfprep.pipeline.intake import Task
from hfprep.pipeline.stores import Stores
from hfprep.recipes.base import ModelSet, Referenced, via_rate
from hfprep.recipes.options import ModelOptions
from hfprep.schema import Features, Rejection, Schema, Segment, Utterance, artifact_path
from hfprep.store.layout import STATE_FILE, OutputFolder
from hfprep.store.state import read_value
from hfprep.store.values import parse_paths
from hfprep.tools.verify.faults import FaultKind, Findings
from hfprep.tools.verify.options import VerifyOptions

MODEL_OPTIONS = {item.name: item.default for item in dataclasses.fields(ModelOptions)}
MAX_RELATIVE_L2 = 1e-4
LEAST_AGREEMENT = 0.98  # of a sample's codes, with the published library
SEGMENT = "segment"  # added to the records of rows with an offset
Stored = Callable[[str], dict[str, np.ndarray]]


@dataclass
class Compared:
    """The result: compared samples and codes, differing codes, the largest relative difference of vectors."""

    samples: int = 0
    codes: int = 0
    codes_differing: int = 0
    largest_difference: float = 0.0

    @property
    def agreement(self) -> float:
        """The fraction of equal codes."""
        return 1 - self.codes_differing / self.codes if self.codes else 1.0


@dataclass(frozen=True)
class Output:
    """The output that samples are compared with, and what computes them again.

    `stored` returns a sample's arrays by its id; `via` is the intermediate sampling rate (Hz); `find_audio` finds the
    audio of a record. Faults are added to `findings`.
    """

    stored: Stored
    findings: Findings
    inputs: Inputs
    via: int | None
    find_audio: Callable[[str], str]


def compare(
    options: VerifyOptions,
    schema: Schema,
    records: Callable[[], Iterable[dict[str, Any]]],
    stored: Stored,
    findings: Findings,
    stats: dict[str, Any],
) -> tuple[Compared | None, Compared | None]:
    """Compute a random sample of `records` again and compare; faults are added to `findings`.

    Returns the results of `--parity` and `--reference`; None if not requested. Raises ConfigError if the models are
    missing, or differ from those that the output was made with.
    """
    if not options.parity and not options.reference:
        return None, None
    last = read_value(options.output_dir / STATE_FILE, "paths", parse_paths) or {}
    given = _model_options(options, last)
    if not any(value is not None and MODEL_OPTIONS[name] is None for name, value in given.items()):
        flag = "--parity" if options.parity else "--reference"
        raise ConfigError(f"{flag} needs the models that the output was made with; give --models DIR")
    manifest = options.manifest or Path(last.get("manifest") or options.output_dir / "manifest.jsonl")
    config = BuildConfig(
        manifest=manifest, output_dir=options.output_dir, device=options.device, recipe=schema.recipe, **given
    )
    inputs = find_inputs(config, OutputFolder(options.output_dir))
    check_models(inputs, stats)
    via = via_rate(stats.get("settings", {}).get("audio_sr", TARGET_SAMPLING_RATE), inputs.models.audio)
    output = Output(stored, findings, inputs, via, audio_finder(options.output_dir, manifest=manifest))
    parity = reference = None

    def drawn(count: int) -> list[dict[str, Any]]:
        return with_segments(options.output_dir, draw(records(), count, options.seed))

    if options.parity:
        precision = stats.get("precision", PLAIN)
        parity = compare_alone(drawn(options.parity), output, device=options.device, precision=precision)
    if options.reference:
        reference = compare_with_reference(drawn(options.reference), output)
    return parity, reference


def _model_options(options: VerifyOptions, last: dict[str, Any]) -> dict[str, Any]:
    """The recipe's options: the given files, or else the last build's; other values default to the last build's."""
    given = {name: getattr(options, name) for name in MODEL_OPTIONS}
    any_file = any(given[name] is not None for name, default in MODEL_OPTIONS.items() if default is None)
    for name, default in MODEL_OPTIONS.items():
        if given[name] == default and not (any_file and default is None):
            given[name] = last.get(name, default)
    return given


def draw(records: Iterable[dict[str, Any]], count: int, seed: int) -> list[dict[str, Any]]:
    """Draw `count` records at random in one pass, with equal probability."""
    generator = random.Random(seed)
    drawn: list[dict[str, Any]] = []
    for number, record in enumerate(records):
        if number < count:
            drawn.append(record)
        elif (place := generator.randint(0, number)) < count:
            drawn[place] = record
    return drawn


def check_models(inputs: Inputs, stats: dict[str, Any]) -> None:
    """Raise ConfigError if these are not the models that the output was made with."""
    earlier = stats.get("sha256", {})
    differing = [name for name, value in inputs.sha256.items() if earlier.get(name, value) != value]
    if differing:
        raise ConfigError(
            f"--parity: these are not the models that the output was made with: {', '.join(differing)} differ from "
            "stats.json; give the original models (--models, --tokenizer, ...)"
        )


def compare_alone(records: Sequence[dict[str, Any]], output: Output, *, device: str, precision: str) -> Compared:
    """Compute each record's sample alone and compare it with the stored one."""
    schema = output.inputs.schema
    spec = ExtractorSpec(
        model_set=output.inputs.models,
        staging=None,
        seen=output.inputs.seen,
        need=schema.all_groups,
        device=device,
        precision=precision,
        batch_size=1,
        workers=choose_workers(0),
        samples=SampleOptions(via_sampling_rate=output.via),
    )
    tasks = [Task.of(schema, _utterance(line, record, output)) for line, record in enumerate(records)]
    compared = Compared()
    with closing(spec.open()) as extractor:
        for result in extractor.extract(tasks):
            for task, outcome in result.outcomes:
                compared.samples += 1
                _compare(records[task.utterance.line], outcome, output, compared)
    return compared


def _utterance(line: int, record: dict[str, Any], output: Output) -> Utterance:
    segment = record.get(SEGMENT)
    return Utterance(
        line,
        record["id"],
        record["text"],
        record["audio_path"],
        output.find_audio(record["audio_path"]),
        language=record["language"],
        duration=None if segment is None else segment.seconds,
        offset=None if segment is None else segment.offset,
    )


def with_segments(root: Path, records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Add the segment of the recording to records of rows with an offset."""
    found = []
    for record, extra in zip(records, read_extra_fields(root, [record["id"] for record in records]), strict=True):
        offset = json.loads(extra).get("offset")
        is_segment = isinstance(offset, int | float)
        found.append(record | {SEGMENT: Segment(float(offset), record["duration"])} if is_segment else record)
    return found


def _compare(record: dict[str, Any], outcome: Features | Rejection, output: Output, compared: Compared) -> None:
    """Compare a sample computed alone with the stored one."""
    sample_id, findings = record["id"], output.findings
    if isinstance(outcome, Rejection):
        message = f"could not be computed again: {outcome.reason.value}: {outcome.message}"
        findings.add(FaultKind.PARITY, record["audio_path"], message, sample_id=sample_id)
        return
    before = output.stored(sample_id)
    for name, now in outcome.arrays.items():
        then, kind = before[name], output.inputs.schema.by_name[name].kind
        compared.codes += now.size if kind == "codes" else 0
        problem = None
        if then.shape != now.shape:
            problem = f"has the shape {then.shape}; computed alone, {now.shape}"
        elif kind != "vector":
            unequal = int((then != now).sum())
            compared.codes_differing += unequal if kind == "codes" else 0
            problem = f"{unequal} of {now.size} values differ from those computed alone" if unequal else None
        else:
            difference = float(np.linalg.norm(then - now) / max(float(np.linalg.norm(now)), 1e-30))
            compared.largest_difference = max(compared.largest_difference, difference)
            # What rounding can cause: of float32 sums, or of the stored type if that is coarser.
            if not difference <= max(MAX_RELATIVE_L2, float(np.finfo(then.dtype).eps)):
                problem = f"differs from the one computed alone by {difference:.1e} (relative L2)"
        if problem:
            findings.add(FaultKind.PARITY, artifact_path(name, sample_id), problem, sample_id=sample_id, column=name)


def compare_with_reference(records: Sequence[dict[str, Any]], output: Output) -> Compared:
    """Compute each record's sample with the published library and compare it with the stored one.

    Raises ConfigError if the recipe has no reference, or the library is not installed.
    """
    models: ModelSet = output.inputs.models
    if not isinstance(models, Referenced):
        raise ConfigError(f"--reference: the recipe {models.schema.recipe!r} has no published library to compare with")
    reference, rate = models.reference(), models.audio.sampling_rate
    compared, stores = Compared(), Stores()
    for record in records:
        sample_id = record["id"]
        try:
            path = output.find_audio(record["audio_path"])
            load = partial(load_waveform, path, sampling_rate=rate, via=output.via, segment=record.get(SEGMENT))
            waveform = stores.ask(path, load)
        except RejectedSample as error:
            output.findings.add(FaultKind.REFERENCE, record["audio_path"], error.message, sample_id=sample_id)
            continue
        before = output.stored(sample_id)
        compared.samples += 1
        for name, now in reference(waveform.samples).items():
            then = before[name]
            unequal = now.size if then.shape != now.shape else int((then != now).sum())
            compared.codes += now.size
            compared.codes_differing += unequal
            if unequal > (1 - LEAST_AGREEMENT) * now.size:
                message = f"{unequal} of {now.size} codes differ from those of the published library"
                where = artifact_path(name, sample_id)
                output.findings.add(FaultKind.REFERENCE, where, message, sample_id=sample_id, column=name)
    return compared
