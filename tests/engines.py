"""Engines for tests: a build with one worker computes in its own process, where a test can look and interfere."""

from collections.abc import Callable
from typing import Any

from hfprep.pipeline.config import BuildConfig
from hfprep.pipeline.engines import choice
from hfprep.pipeline.precision_trial import Trial, TrialResult

SetItem = Callable[[dict[str, Any], str, Any], None]


class _InlineWhereOne:
    """The local engine for many workers, the inline engine for one."""

    def __init__(self) -> None:
        self._many, self._one = choice.LocalEngine(), choice.InlineEngine()

    def prepare(self, config: BuildConfig, shared: choice.Shared) -> None:
        """Start nothing."""

    def trial(self, trial: Trial, shared: choice.Shared) -> TrialResult:
        return self._one.trial(trial, shared)

    def run(self, job: choice.Job, shared: choice.Shared) -> None:
        (self._many if job.config.num_processes > 1 else self._one).run(job, shared)


def one_worker_inline(set_item: SetItem) -> None:
    """Have the engine `local` compute in this process where a build has one worker."""
    set_item(choice.ENGINES, "local", _InlineWhereOne())
