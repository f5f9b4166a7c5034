"""Engines for tests: a build with one worker computes in its own process, where a test can look and interfere.

Models and workers stay from build to build: loading them costs more than most tests compute with them.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

from hfprep.pipeline.config import BuildConfig
from hfprep.pipeline.engines import choice, pool
from hfprep.pipeline.engines.spec import Models
from hfprep.pipeline.precision_trial import Trial, TrialResult

SetItem = Callable[[dict[str, Any], str, Any], None]


class _InlineWhereOne:
    """The local engine for many workers, the inline engine for one."""

    def __init__(self) -> None:
        self._many, self._one = choice.LocalEngine(), choice.InlineEngine()
        self._kept = choice.Shared(pool=pool.WorkerPool(), models=Models())

    def prepare(self, config: BuildConfig, shared: choice.Shared) -> None:
        """Start nothing."""

    def trial(self, trial: Trial, shared: choice.Shared) -> TrialResult:
        return self._one.trial(trial, shared)

    def run(self, job: choice.Job, shared: choice.Shared) -> None:
        kept = dataclasses.replace(self._kept, inputs=shared.inputs)
        (self._many if job.config.num_processes > 1 else self._one).run(job, kept)


class _UnpreparedPool(pool.WorkerPool):
    """Starts the workers that a build takes, and none before that."""

    def prepare(self, count: int) -> None:
        """Start nothing."""


def one_worker_inline(set_item: SetItem) -> None:
    """Have the engine `local` compute in this process where a build has one worker."""
    set_item(choice.ENGINES, "local", _InlineWhereOne())
    set_item(vars(pool), "WorkerPool", _UnpreparedPool)
