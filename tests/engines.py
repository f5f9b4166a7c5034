"""Engines for tests: a build with one worker computes in its own process, where a test can look and interfere.

Models stay from build to build, because loading them costs more than most tests compute with them. Worker processes are
forks, which have imported torch.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

from hfprep.models import semantic_encoder
from hfprep.pipeline import examining_processes
from hfprep.pipeline.config import BuildConfig
from hfprep.pipeline.engines import choice, pool
from hfprep.pipeline.engines.spec import Models
from hfprep.pipeline.precision_trial import Trial, TrialResult
from hfprep.recipes import networks
from tests.forked import forked

SetItem = Callable[[dict[str, Any], str, Any], None]


class _ForkedPool(pool.WorkerPool):
    """Starts the workers that a build takes, and none before that, as forks of this process."""

    def __init__(self, code: str = pool.WORKER_CODE) -> None:
        super().__init__(code, popen=forked)

    def prepare(self, count: int) -> None:
        """Start nothing."""


class ForkedWorkers(choice.LocalEngine):
    """The local engine with forks of this process, with its patches; they end with the build."""

    def prepare(self, config: BuildConfig, shared: choice.Shared) -> None:
        """Start nothing."""

    def trial(self, trial: Trial, shared: choice.Shared) -> TrialResult:
        with _ForkedPool() as workers:
            return super().trial(trial, dataclasses.replace(shared, pool=workers))

    def run(self, job: choice.Job, shared: choice.Shared) -> None:
        with _ForkedPool() as workers:
            super().run(job, dataclasses.replace(shared, pool=workers))


class _InlineWhereOne:
    """Forked workers where there are many, the inline engine for one."""

    def __init__(self) -> None:
        self._many, self._one, self._models = ForkedWorkers(), choice.InlineEngine(), Models()

    def prepare(self, config: BuildConfig, shared: choice.Shared) -> None:
        """Start nothing."""

    def trial(self, trial: Trial, shared: choice.Shared) -> TrialResult:
        return self._one.trial(trial, shared)

    def run(self, job: choice.Job, shared: choice.Shared) -> None:
        if job.config.num_processes > 1:
            self._many.run(job, shared)
        else:
            self._one.run(job, dataclasses.replace(shared, models=self._models))


def limit_layers(count: int, set_attribute: Callable[[Any, str, Any], None]) -> None:
    """Have models that are loaded from now on compute `count` of the semantic encoder's 17 layers."""
    set_attribute(semantic_encoder, "NUM_LAYERS", count)
    set_attribute(networks, "SEMANTIC_PREFIXES", networks.SEMANTIC_PREFIXES[: 1 + count])


def one_worker_inline(set_item: SetItem) -> None:
    """Have the engine `local` compute in this process where a build has one worker."""
    set_item(choice.ENGINES, "local", _InlineWhereOne())
    for module in (pool, examining_processes):
        set_item(vars(module), "WorkerPool", _ForkedPool)
