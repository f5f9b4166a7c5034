"""Computes samples of an output again, alone or with the published library, after finding models and audio."""

import dataclasses
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from hfprep.errors import ConfigError
from hfprep.formats.audio_files import build_audio_finder
from hfprep.inputs.audio.decode import TARGET_SAMPLING_RATE
from hfprep.pipeline.config import PLAIN, BuildConfig
from hfprep.pipeline.inputs import find_inputs
from hfprep.recipes.base import via_rate
from hfprep.recipes.options import ModelOptions
from hfprep.schema import Schema
from hfprep.store.layout import STATE_FILE, OutputFolder
from hfprep.store.state import read_value
from hfprep.store.values import parse_paths
from hfprep.tools.verify.faults import Findings
from hfprep.tools.verify.options import VerifyOptions
from hfprep.tools.verify.parity import (
    Compared,
    Output,
    Stored,
    check_models,
    compare_alone,
    compare_with_reference,
    draw,
    with_segments,
)

MODEL_OPTIONS = {item.name: item.default for item in dataclasses.fields(ModelOptions)}


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
    output = Output(stored, findings, inputs, via, build_audio_finder(options.output_dir, manifest))
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
