"""Checks that batching did not change results: computes random samples again, one at a time, and compares.

It uses the build's precision. Codes and text ids must be equal; vectors may differ by float32 rounding.
"""

import json
import os
import random
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hfprep.errors import ConfigError
from hfprep.formats.extra_fields import read_extra_fields
from hfprep.inputs.manifest.rows import AudioFinder
from hfprep.pipeline.devices import choose_workers
from hfprep.pipeline.engines.spec import ExtractorSpec
from hfprep.pipeline.filters import SampleOptions
from hfprep.pipeline.inputs import Inputs
from hfprep.pipeline.intake import Task
from hfprep.schema import Features, Rejection, Segment, Utterance, artifact_path
from hfprep.tools.verify.faults import FaultKind, Findings

MAX_RELATIVE_L2 = 1e-4
SEGMENT = "segment"  # added to the records of rows with an offset
Stored = Callable[[str], dict[str, np.ndarray]]


@dataclass(frozen=True, slots=True)
class Compared:
    """The result: compared samples and codes, differing codes, the largest relative difference of vectors."""

    samples: int
    codes: int
    codes_differing: int
    largest_difference: float = 0.0

    @property
    def agreement(self) -> float:
        """The fraction of equal codes."""
        return 1 - self.codes_differing / self.codes if self.codes else 1.0


@dataclass(frozen=True)
class Output:
    """The output that samples are compared with, and what computes them again.

    `stored` returns a sample's arrays by its id; `via` is the intermediate sampling rate (Hz). Relative audio paths are
    looked up in `folder`, the working directory of the build, first. Faults are added to `findings`.
    """

    stored: Stored
    findings: Findings
    inputs: Inputs
    via: int | None
    finder: AudioFinder
    folder: str | None

    def audio_of(self, record: dict[str, Any]) -> str:
        """The path of a record's audio."""
        audio: str = record["audio_path"]
        beside = os.path.join(self.folder, audio) if self.folder else audio
        return beside if os.path.exists(beside) else self.finder.find(audio)


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
    by_line = dict(enumerate(records))
    tasks = [Task.of(schema, _utterance(line, record, output)) for line, record in by_line.items()]
    codes = differing = samples = 0
    largest = 0.0
    with closing(spec.open()) as extractor:
        for result in extractor.extract(tasks):
            for task, outcome in result.outcomes:
                samples += 1
                found = _compare(by_line[task.utterance.line], outcome, output)
                codes, differing = codes + found[0], differing + found[1]
                largest = max(largest, found[2])
    return Compared(samples, codes, differing, largest)


def _utterance(line: int, record: dict[str, Any], output: Output) -> Utterance:
    segment = record.get(SEGMENT)
    return Utterance(
        line,
        record["id"],
        record["text"],
        record["audio_path"],
        output.audio_of(record),
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


def _compare(record: dict[str, Any], outcome: Features | Rejection, output: Output) -> tuple[int, int, float]:
    """The numbers of compared and differing codes, and the largest relative difference of the vectors."""
    sample_id, findings = record["id"], output.findings
    if isinstance(outcome, Rejection):
        message = f"could not be computed again: {outcome.reason.value}: {outcome.message}"
        findings.add(FaultKind.PARITY, record["audio_path"], message, sample_id=sample_id)
        return 0, 0, 0.0
    codes, flips, largest = 0, 0, 0.0
    before = output.stored(sample_id)
    for name, now in outcome.arrays.items():
        then, kind = before[name], output.inputs.schema.by_name[name].kind
        codes += now.size if kind == "codes" else 0
        problem = None
        if then.shape != now.shape:
            problem = f"has the shape {then.shape}; computed alone, {now.shape}"
        elif kind != "vector":
            unequal = int((then != now).sum())
            flips += unequal if kind == "codes" else 0
            problem = f"{unequal} of {now.size} values differ from those computed alone" if unequal else None
        else:
            difference = float(np.linalg.norm(then - now) / max(float(np.linalg.norm(now)), 1e-30))
            largest = max(largest, difference)
            if not difference <= allowed_difference(then):
                problem = f"differs from the one computed alone by {difference:.1e} (relative L2)"
        if problem:
            findings.add(FaultKind.PARITY, artifact_path(name, sample_id), problem, sample_id=sample_id, column=name)
    return codes, flips, largest


def allowed_difference(stored: np.ndarray) -> float:
    """The relative difference that rounding can cause: of float32 sums, or of the stored type if that is coarser."""
    return max(MAX_RELATIVE_L2, float(np.finfo(stored.dtype).eps))
