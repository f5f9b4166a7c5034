"""The engines: workers on this machine, on a Ray cluster, or one in the calling process.

Provides `ENGINES`, `Shared` and `Job`. An engine takes a job and what is kept between builds.
"""

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from hfprep.pipeline.config import BuildConfig
from hfprep.pipeline.devices import choose_workers, gpu_count
from hfprep.pipeline.engines.driver import Crew, Driver
from hfprep.pipeline.engines.local import LocalCrew, choose_num_processes, threads_per_process, trial_in_worker
from hfprep.pipeline.engines.pool import WorkerPool
from hfprep.pipeline.engines.spec import ExtractorSpec, Models, Sink, Staging, Watcher
from hfprep.pipeline.engines.work_units import WorkQueue, cut
from hfprep.pipeline.filters import SampleOptions
from hfprep.pipeline.inputs import Inputs
from hfprep.pipeline.plan import Plan
from hfprep.pipeline.precision_trial import Trial, TrialResult
from hfprep.recipes.base import via_rate

MANY_TEXTS = 5000  # from here on, processes that tokenize save more time than their start takes (2 s)


@dataclass
class Shared:
    """What the builds of one run share. A context manager that ends the worker processes.

    `inputs` are the models, found by the first build; `models` are those loaded in this process.
    """

    inputs: Inputs | None = None
    pool: WorkerPool = field(default_factory=WorkerPool)
    models: Models = field(default_factory=Models)

    def __enter__(self) -> "Shared":
        return self

    def __exit__(self, *_: object) -> None:
        self.pool.close()


@dataclass(frozen=True, kw_only=True)
class Job:
    """What to compute: the pending rows of a plan; `work` is a folder for working data.

    Finished batches go to `sink`, progress within batches to `watch`; `stop()` is true once the run should end.
    """

    config: BuildConfig
    inputs: Inputs
    plan: Plan
    staging: Staging
    sink: Sink
    watch: Watcher
    work: Path
    stop: Callable[[], bool]

    def spec(self, num_processes: int) -> ExtractorSpec:
        """How each of `num_processes` workers on this machine opens its extractor."""
        config, models = self.config, self.inputs.models
        need = frozenset(self.plan.counts.need)
        threads = max(1, choose_workers(config.workers) // num_processes)
        return ExtractorSpec(
            model_set=models,
            staging=self.staging,
            seen=self.inputs.seen,
            need=need,
            device=config.device,
            precision=config.precision,
            batch_size=config.batch_size,
            workers=threads,
            samples=SampleOptions.of(config, via_rate(config.resample_via, models.audio)),
            threads=threads_per_process(num_processes) if num_processes > 1 else None,
            tenants=tenants(config.device, num_processes),
            loaders=not need & self.inputs.schema.audio_groups
            and threads > 1
            and self.plan.counts.pending >= MANY_TEXTS,
        )

    def drive(self, crew: Crew, num_workers: int, *, has_control: bool) -> None:
        """Compute the rows with the workers of a crew; `has_control`: they know a sample that was computed before.

        Raises StopRequested once `stop()` is true, a worker's ConfigError, CheckpointError or StoreError,
        SystematicFailureError if samples fail one after another for the same cause, HfprepError if workers keep dying,
        and errors of the sink.
        """
        queue = WorkQueue(cut(self.plan.pending_positions(), num_workers), self.plan.ids)
        Driver(crew, queue, self.sink, num_workers, self.watch, has_control=has_control).run(self.stop)


class Engine:
    """Runs the computation on some workers."""

    def prepare(self, config: BuildConfig, shared: Shared) -> None:
        """Start slow preparations that do not depend on the plan."""

    def trial(self, trial: Trial, shared: Shared) -> TrialResult:
        """Compute some clips in one precision."""
        raise NotImplementedError

    def run(self, job: Job, shared: Shared) -> None:
        """Compute the rows of a job. Raises as `Job.drive`."""
        raise NotImplementedError


class LocalEngine(Engine):
    """Supervised worker processes on this machine."""

    def prepare(self, config: BuildConfig, shared: Shared) -> None:
        shared.pool.prepare(choose_num_processes(config.num_processes, config.device))

    def trial(self, trial: Trial, shared: Shared) -> TrialResult:
        return trial_in_worker(trial, shared.pool)

    def run(self, job: Job, shared: Shared) -> None:
        count = choose_num_processes(job.config.num_processes, job.config.device)
        control = job.plan.control()
        crew = LocalCrew(shared.pool, job.spec(count), job.plan.path, job.work, control)
        job.drive(crew, count, has_control=control is not None)


@dataclass(frozen=True)
class InlineEngine(Engine):
    """A worker in this process.

    `own_process` says that the main module can be imported without side effects (`if __name__ == "__main__"`), so that
    processes may load samples.
    """

    own_process: bool = False

    def trial(self, trial: Trial, shared: Shared) -> TrialResult:
        del shared
        return trial.run()

    def run(self, job: Job, shared: Shared) -> None:
        from hfprep.pipeline.engines.inline import run_inline  # imports torch

        run_inline(job, dataclasses.replace(job.spec(1), own_process=self.own_process), shared.models)


class RayEngine(Engine):
    """Workers on a cluster. No trials: each machine would choose its own precision."""

    def run(self, job: Job, shared: Shared) -> None:
        del shared
        from hfprep.pipeline.engines.ray import run_ray

        run_ray(job)


ENGINES: dict[str, Engine] = {"local": LocalEngine(), "inline": InlineEngine(), "ray": RayEngine()}


def tenants(device: str, num_processes: int) -> int:
    """How many of `num_processes` workers share each GPU."""
    spread = device in ("auto", "cuda")
    return math.ceil(num_processes / max(1, gpu_count())) if spread else num_processes
