"""Choice of the precision, measured on the user's clips, once per set of models.

Provides `decide`, which resolves `--precision auto` to the fastest precision that reproduces enough of float32's codes,
and compares any other choice with that bound. The measurement and the choice are stored in the output's state, so that
a rerun uses the same precision. Takes a BuildConfig, its inputs and state; writes no features.
"""

import dataclasses
import itertools
import logging
from collections.abc import Callable
from typing import Any

import numpy as np

from hfprep.errors import ConfigError
from hfprep.inputs.manifest.opening import open_source
from hfprep.inputs.manifest.rows import AudioFinder, parse_line
from hfprep.pipeline.config import AUTO, PLAIN, BuildConfig
from hfprep.pipeline.devices import choose_device, choose_workers
from hfprep.pipeline.engines.spec import ExtractorSpec
from hfprep.pipeline.filters import SampleOptions
from hfprep.pipeline.inputs import Inputs
from hfprep.pipeline.intake import expected_seconds
from hfprep.pipeline.precision_trial import Trial, TrialResult
from hfprep.pipeline.provenance import earlier_settings
from hfprep.recipes.base import frames_in, via_rate
from hfprep.schema import Rejection, Utterance
from hfprep.store.fingerprints import with_numerics
from hfprep.store.state import State
from hfprep.store.values import whole_number

log = logging.getLogger(__name__)

KEY = "code_agreement"  # in the state
# Frames to measure: with 4000, an agreement of 0.995 has a standard error of 0.001. A CPU computes 100 per second.
FRAMES = {"cpu": 1000, "cuda": 4000}
MIN_SECONDS, MAX_SECONDS = 0.25, 30.0  # of the clips to measure with
MAX_ROWS = 1000  # of the manifest, to find such clips


def decide(config: BuildConfig, inputs: Inputs, state: State, run: Callable[[Trial], TrialResult]) -> BuildConfig:
    """The config with the precision to use, never auto; `run` computes clips on the build's device.

    Raises ConfigError if the device does not support the requested precision or the one chosen earlier, or if none can
    be chosen because fp32, the reference, does not run there.
    """
    asked, able = "" if config.precision == AUTO else config.precision, inputs.models.precisions
    if asked and asked not in able:
        raise ConfigError(
            f"--precision is {asked!r}; models of the recipe {inputs.schema.recipe!r} compute in {' or '.join(able)}"
        )
    if config.precision == PLAIN or config.engine == "ray":
        return config
    from hfprep.models.precision import candidates, require  # imports torch

    device = choose_device(config.device)
    require(asked or PLAIN, device)
    earlier = _earlier(config, inputs, state)
    if earlier is not None:
        require(earlier, device, "--precision is 'auto', which chose {name!r} for this output earlier")
        return dataclasses.replace(config, precision=earlier)
    modes = [asked] if asked else [name for name in candidates(device) if name in able]
    clips = _clips(config, inputs, FRAMES[device.type]) if modes else ()
    if not clips:
        log.info(
            "precision: %s, %s", asked or PLAIN, "as there is no clip to measure with" if modes else "the only one here"
        )
        return dataclasses.replace(config, precision=asked or PLAIN)
    found = _measure(config, inputs, modes, clips, run)
    if not found and not asked:
        raise ConfigError(
            f"--precision is 'auto', but fp32, the reference for the others, does not run on {device} now; choose a "
            f"precision that needs less memory, such as --precision {modes[-1]}, or stop other programs on the device"
        )
    chosen = asked or choose(found, config.min_code_agreement)
    if chosen in found:
        _say_and_keep(config, inputs, state, found, chosen)
    return dataclasses.replace(config, precision=chosen)


def _say_and_keep(
    config: BuildConfig, inputs: Inputs, state: State, found: dict[str, dict[str, float]], chosen: str
) -> None:
    for mode, result in found.items():
        log.info("precision %s: %.2f %% of codes as in fp32, %.0f frames per second%s", mode,
                 100 * result["agreement"], result["frames_per_second"], ", chosen" * (mode == chosen))  # fmt: skip
    if found[chosen]["agreement"] < config.min_code_agreement:
        log.warning("--precision %s reproduces less than --min-code-agreement %s of the codes", chosen,
                    config.min_code_agreement)  # fmt: skip
    frames = int(found[PLAIN].pop("frames"))
    kept = {"frames": frames, "bound": config.min_code_agreement, "modes": found}
    state.put(KEY, {"precision": chosen, "asked": config.precision, "models": _models_of(config, inputs), **kept})


def without_measuring(config: BuildConfig, inputs: Inputs, state: State) -> BuildConfig:
    """The config with the precision that was requested, or chosen earlier, or else fp32."""
    if config.precision != AUTO:
        return config
    return dataclasses.replace(config, precision=_earlier(config, inputs, state) or PLAIN)


def choose(found: dict[str, dict[str, float]], bound: float) -> str:
    """The fastest precision whose agreement reaches the bound, possibly fp32, whose agreement is 1."""
    able = [mode for mode, result in found.items() if result["agreement"] >= bound]
    return max(able, key=lambda mode: found[mode]["frames_per_second"])


def measured(state: State, precision: str) -> dict[str, Any] | None:
    """The measurement by which this precision was chosen, for stats.json; None if there is none."""
    found = state.get(KEY, _parse)
    if found is None or found["precision"] != precision:
        return None
    return {name: found[name] for name in ("frames", "bound", "modes")}


def _models_of(config: BuildConfig, inputs: Inputs) -> dict[str, str]:
    """What a measurement is valid for: everything that codes depend on, except the precision."""
    settings = with_numerics(inputs.schema, inputs.settings(config))
    return {name: value for name, value in settings[_codes_group(inputs)].items() if name != "precision"}


def _earlier(config: BuildConfig, inputs: Inputs, state: State) -> str | None:
    """The precision that was chosen earlier for the same models, so that a rerun uses the same."""
    models = _models_of(config, inputs)
    found = state.get(KEY, _parse)
    if found is not None and found["models"] == models and config.precision in (found["asked"], found["precision"]):
        precision: str = found["precision"]
        return precision
    codes = [{}, *earlier_settings(state)][-1].get(_codes_group(inputs), {})
    same = models == {name: value for name, value in codes.items() if name != "precision"}
    return codes.get("precision") if same and config.precision == AUTO else None


def _parse(kept: Any) -> dict[str, Any]:
    """A stored measurement. Raises an error for anything else."""
    modes = {
        str(mode): {name: float(result[name]) for name in ("agreement", "frames_per_second")}
        for mode, result in kept["modes"].items()
    }
    words = {name: str(kept[name]) for name in ("precision", "asked")}
    numbers = {"frames": whole_number(kept["frames"]), "bound": float(kept["bound"])}
    return {**words, "models": dict(kept["models"]), **numbers, "modes": modes}


def _codes_group(inputs: Inputs) -> str:
    """The group of the codes that precisions are compared by."""
    return next(column.group for column in inputs.schema.of_kind("codes"))


def _clips(config: BuildConfig, inputs: Inputs, num_frames: int) -> tuple[Utterance, ...]:
    """The manifest's first clips with a suitable length in their headers, up to `num_frames` frames."""
    finder, found = AudioFinder(config.manifest, config.audio_root), []
    rows = open_source(config.manifest, config.field_map)
    for number, raw in itertools.islice(rows, MAX_ROWS):
        row = parse_line(number, raw, finder, config.language)
        if isinstance(row, Rejection):
            continue
        seconds = expected_seconds(row.path, None) if row.segment is None else row.segment.seconds
        if not seconds or not MIN_SECONDS <= seconds <= MAX_SECONDS:
            continue  # the build accepts it or reports why not
        found.append(row)
        num_frames -= frames_in(inputs.models, seconds)
        if num_frames <= 0:
            break
    return tuple(found)


def _measure(
    config: BuildConfig,
    inputs: Inputs,
    modes: list[str],
    clips: tuple[Utterance, ...],
    run: Callable[[Trial], TrialResult],
) -> dict[str, dict[str, float]]:
    """For fp32 and each mode that runs: agreement (share of codes equal to fp32's) and frames_per_second.

    Empty if fp32 does not run; its `frames` is the number of codes that were compared.
    """
    spec = ExtractorSpec(
        model_set=inputs.models,
        need=frozenset({_codes_group(inputs)}),
        seen=inputs.seen,
        device=config.device,
        batch_size=config.batch_size,
        workers=choose_workers(config.workers),
        samples=SampleOptions(
            via_sampling_rate=via_rate(config.resample_via, inputs.models.audio), named_stores=config.named_stores
        ),
    )
    found: dict[str, dict[str, float]] = {}
    plain: dict[int, np.ndarray] = {}
    for mode in (PLAIN, *modes):
        result = run(Trial(spec=dataclasses.replace(spec, precision=mode), clips=clips))
        if not result.codes:
            log.warning("precision %s could not be measured: %s", mode, result.problem or "no clip could be used")
            if mode == PLAIN:
                return {}
            continue
        if mode == PLAIN:
            plain = result.codes
        frames = sum(map(len, plain.values()))
        equal = sum(int((codes == plain[line]).sum()) for line, codes in result.codes.items() if line in plain)
        found[mode] = {"agreement": equal / frames, "frames_per_second": round(frames / max(result.seconds, 1e-9), 1)}
    found[PLAIN]["frames"] = float(sum(map(len, plain.values())))
    return found
