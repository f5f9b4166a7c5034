"""Several data sets in one run: one build after another, with models that are found and loaded once.

`build_many(configs)` is the Python call behind `python -m hfprep build --dataset ...`.
"""

import contextlib
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass

from hfprep.errors import ConfigError, StoreError
from hfprep.inputs.manifest.opening import open_source
from hfprep.pipeline.building import build
from hfprep.pipeline.config import BuildConfig, flag
from hfprep.pipeline.data_sets import refuse_duplicates
from hfprep.pipeline.engines.choice import Shared
from hfprep.pipeline.logs import log_shown
from hfprep.pipeline.signals import stop_on_signals
from hfprep.pipeline.summary import Summary

log = logging.getLogger(__name__)

SAME_FOR_ALL = ("tokenizer", "config", "gpt_checkpoint", "semantic_model", "semantic_codec", "models", "device")


@dataclass(frozen=True)
class DataSetResult:
    """The result of one data set: a summary, or the error that stopped its build (both None: not started)."""

    config: BuildConfig
    summary: Summary | None = None
    error: Exception | None = None


@dataclass(frozen=True)
class ManySummary:
    """The results of a run over several data sets, in order."""

    data_sets: tuple[DataSetResult, ...]
    elapsed_seconds: float
    interrupted_by: int | None = None

    @property
    def summaries(self) -> tuple[Summary, ...]:
        """The summaries of the data sets whose build ran, complete or not."""
        return tuple(item.summary for item in self.data_sets if item.summary is not None)


def build_many(configs: Sequence[BuildConfig], *, shared: Shared | None = None, progress: bool = True) -> ManySummary:
    """Build every data set, in order; `data_sets.config_of_each` makes the configs.

    Raises before anything is written if two data sets have the same manifest or output, models differ, or a manifest
    cannot be read. Later a StoreError or ConfigError only ends the build of that data set; an interrupt ends all.
    `progress` is as in `build`.
    """
    started = time.monotonic()
    check_together(configs)
    results: list[DataSetResult] = []
    with contextlib.ExitStack() as stack:
        stack.enter_context(log_shown(shown=progress))
        shared = shared or stack.enter_context(Shared())
        between_builds = stack.enter_context(stop_on_signals())
        signal: int | None = None
        for config in configs:
            if signal is None:
                results.append(_build_one(config, shared, progress, number=len(results) + 1, count=len(configs)))
                summary = results[-1].summary
                signal = (summary.interrupted_by if summary else None) or between_builds.signal
            else:
                results.append(DataSetResult(config))
    return ManySummary(tuple(results), time.monotonic() - started, signal)


def check_together(configs: Sequence[BuildConfig]) -> None:
    """Compare the configs with each other and read the first row of each manifest. Raises ConfigError."""
    if not configs:
        raise ConfigError("there is no data set to build; give at least one")
    refuse_duplicates(configs)
    for name in SAME_FOR_ALL:
        values = {str(getattr(config, name)) for config in configs}
        if len(values) > 1:
            raise ConfigError(f"{flag(name)} must be the same for all data sets of a run; it is {sorted(values)}")
    for config in configs:
        if next(open_source(config.manifest, config.field_map), None) is None:
            raise ConfigError(f"--manifest {str(config.manifest)!r} has no rows")


def _build_one(config: BuildConfig, shared: Shared, progress: bool, *, number: int, count: int) -> DataSetResult:
    log.info("data set %d of %d: %s -> %s", number, count, config.manifest, config.output_dir)
    try:
        return DataSetResult(config, build(config, shared=shared, progress=progress))
    except (StoreError, ConfigError) as error:
        if isinstance(error, ConfigError) and shared.inputs is None:
            raise  # the models are wrong: the other data sets would fail in the same way
        log.error("%s was not built: %s", config.output_dir, error)
        return DataSetResult(config, error=error)
