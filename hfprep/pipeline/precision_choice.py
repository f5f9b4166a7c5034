"""Which precision computes: measured on the user's own clips, once for a set of models.

Gives `decide`, which turns `--precision auto` into the fastest precision that keeps enough codes as float32 has them,
and holds any other choice but fp32 against that bound. What was measured is kept in the output's state, and the choice
with it, so that a rerun computes as before. Takes a BuildConfig, its inputs and state; writes no features.
"""

import dataclasses
import gc
import itertools
import logging
import time
from collections.abc import Iterator
from typing import Any

import torch

from hfprep.errors import ConfigError, RejectedSample
from hfprep.inputs.manifest.opening import open_source
from hfprep.inputs.manifest.rows import AudioFinder, parse_line
from hfprep.models.precision import candidates, require
from hfprep.pipeline.batching import BatchLimits, FrameBudget, batches
from hfprep.pipeline.config import AUTO, PLAIN, BuildConfig
from hfprep.pipeline.devices import choose_device
from hfprep.pipeline.inputs import Inputs
from hfprep.pipeline.intake import Clip, read_clip, via_rate
from hfprep.pipeline.transfers import padded_batch
from hfprep.recipes.base import AudioInput, Model, ModelSet
from hfprep.schema import Rejection
from hfprep.store.fingerprints import with_numerics
from hfprep.store.state import State

log = logging.getLogger(__name__)

KEY = "code_agreement"  # in the state
# Frames that are measured: of 4000, an agreement of 0.995 has a standard error of 0.001. A CPU does 100 in a second.
FRAMES = {"cpu": 1000, "cuda": 4000}
SHORTEST_FRAMES, LONGEST_FRAMES = 10, 1500  # other clips are left out
MOST_ROWS = 1000
BATCHES = {"cpu": BatchLimits(1, None), "cuda": BatchLimits(64, 8000)}


def decide(config: BuildConfig, inputs: Inputs, state: State) -> BuildConfig:
    """The config with the precision that computes, never auto.

    Raises ConfigError where the device cannot compute in the precision that was asked for or chosen earlier.
    """
    asked, able = "" if config.precision == AUTO else config.precision, inputs.models.precisions
    if asked and asked not in able:
        raise ConfigError(
            f"--precision is {asked!r}; models of the recipe {inputs.schema.recipe!r} compute in {' or '.join(able)}"
        )
    if config.precision == PLAIN or config.engine != "local":
        return config
    device = choose_device(config.device)
    require(asked or PLAIN, device)
    earlier = _earlier(config, inputs, state)
    if earlier is not None:
        require(earlier, device, "--precision is 'auto', which has chosen {name!r} for this output before")
        return dataclasses.replace(config, precision=earlier)
    modes = [asked] if asked else [name for name in candidates(device) if name in able]
    audio, on_gpu = inputs.models.audio, device.type == "cuda"
    clips = list(_clips(config, audio, FRAMES[device.type], on_gpu=on_gpu)) if modes else []
    if not clips:
        log.info(
            "precision: %s, %s", asked or PLAIN, "without a clip to measure with" if modes else "the only one here"
        )
        return dataclasses.replace(config, precision=asked or PLAIN)
    found = _measure(inputs, device, modes, clips)
    chosen = asked or choose(found, config.min_code_agreement)
    for mode, result in found.items():
        log.info("precision %s: %.2f %% of codes as in fp32, %.0f frames a second%s", mode,
                 100 * result["agreement"], result["frames_per_second"], ", chosen" * (mode == chosen))  # fmt: skip
    if found[chosen]["agreement"] < config.min_code_agreement:
        log.warning("--precision %s keeps less than --min-code-agreement %s of the codes", chosen,
                    config.min_code_agreement)  # fmt: skip
    kept = {"frames": sum(clip.num_frames for clip in clips), "bound": config.min_code_agreement, "modes": found}
    state.put(KEY, {"precision": chosen, "asked": config.precision, "models": _models_of(config, inputs), **kept})
    return dataclasses.replace(config, precision=chosen)


def without_measuring(config: BuildConfig, inputs: Inputs, state: State) -> BuildConfig:
    """The config with the precision that was chosen before, or that was asked for; else as if fp32 were chosen."""
    if config.precision != AUTO:
        return config
    return dataclasses.replace(config, precision=_earlier(config, inputs, state) or PLAIN)


def choose(found: dict[str, dict[str, float]], bound: float) -> str:
    """The fastest of the precisions whose agreement reaches the bound; fp32, which agrees with itself, is one."""
    able = [mode for mode, result in found.items() if result["agreement"] >= bound]
    return max(able, key=lambda mode: found[mode]["frames_per_second"])


def measured(state: State, precision: str) -> dict[str, Any] | None:
    """What was measured when this precision was chosen, for stats.json; None where nothing was."""
    found = state.get(KEY)
    if found is None or found["precision"] != precision:
        return None
    return {name: found[name] for name in ("frames", "bound", "modes")}


def _models_of(config: BuildConfig, inputs: Inputs) -> dict[str, str]:
    """What a measurement holds for: all that codes depend on, but for the precision."""
    settings = with_numerics(inputs.schema, inputs.settings(config))
    return {name: value for name, value in settings[_codes_group(inputs)].items() if name != "precision"}


def _earlier(config: BuildConfig, inputs: Inputs, state: State) -> str | None:
    """The precision that was chosen before for the same models, so that a rerun does not change its mind."""
    models = _models_of(config, inputs)
    found = state.get(KEY)
    if found is not None and found["models"] == models and config.precision in (found["asked"], found["precision"]):
        precision: str = found["precision"]
        return precision
    begun = [state.get("settings") or {}, *(state.get("settings_begun") or [])]
    codes: dict[str, str] = begun[-1].get(_codes_group(inputs), {})
    same = models == {name: value for name, value in codes.items() if name != "precision"}
    return codes["precision"] if same and config.precision == AUTO else None


def _clips(config: BuildConfig, audio: AudioInput, num_frames: int, *, on_gpu: bool) -> Iterator[Clip]:
    """The manifest's first clips that can be used, until there are `num_frames` frames."""
    via = via_rate(config.audio_sr, audio)
    finder = AudioFinder(config.manifest, config.audio_root)
    rows = open_source(config.manifest, config.field_map).lines()
    for number, raw in itertools.islice(rows, MOST_ROWS):
        row = parse_line(number, raw, finder, config.language)
        if isinstance(row, Rejection):
            continue
        try:
            clip = read_clip(row.path, audio, segment=row.segment, via=via, on_gpu=on_gpu)
        except (RejectedSample, OSError):  # the build will say so
            continue
        if SHORTEST_FRAMES <= clip.num_frames <= LONGEST_FRAMES:
            yield clip
            num_frames -= clip.num_frames
        if num_frames <= 0:
            return


def _measure(inputs: Inputs, device: torch.device, modes: list[str], clips: list[Clip]) -> dict[str, dict[str, float]]:
    """For fp32 and each mode: agreement (the share of codes that are as in fp32) and frames_per_second."""
    limits = BATCHES[device.type]
    ordered = sorted(clips, key=lambda clip: clip.num_frames)
    groups = list(batches(ordered, limits, FrameBudget(limits.max_frames)))
    found, plain = {}, torch.empty(0)
    for mode in (PLAIN, *modes):
        codes, seconds = _codes_in(mode, inputs, device, groups)
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
        plain = codes if mode == PLAIN else plain
        agreement = float((codes == plain).double().mean())
        found[mode] = {"agreement": agreement, "frames_per_second": round(len(codes) / seconds, 1)}
    return found


def _codes_in(mode: str, inputs: Inputs, device: torch.device, groups: list[list[Clip]]) -> tuple[torch.Tensor, float]:
    """The codes of all clips in one precision, and the seconds they took."""
    model = inputs.models.load(device, mode)
    wanted = frozenset({_codes_group(inputs)})
    _codes(inputs.models, model, groups[0], wanted)  # the first call of everything takes longer
    started = time.perf_counter()
    codes = torch.cat([_codes(inputs.models, model, group, wanted) for group in groups])
    return codes, time.perf_counter() - started


def _codes_group(inputs: Inputs) -> str:
    """The group whose codes say how exact a precision is."""
    return next(column.group for column in inputs.schema.of_kind("codes"))


def _codes(models: ModelSet, model: Model, group: list[Clip], groups: frozenset[str]) -> torch.Tensor:
    """The codes of all clips of a batch, one after the other: (codes,), on the CPU."""
    audio = [clip.audio for clip in group]
    (codes,) = model(padded_batch(audio, model.device), torch.tensor([len(item) for item in audio]), groups).values()
    rows = zip(codes.cpu(), group, strict=True)
    return torch.cat([row[..., : models.num_codes(clip.num_frames)].flatten() for row, clip in rows])
