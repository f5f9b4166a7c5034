"""The engines: workers on this machine, on a Ray cluster, or one in the calling process.

Provides `ENGINES`, `Workers` and `Job`. An engine takes a job and the workers that are kept between builds.
"""

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Protocol

from hfprep.pipeline.config import BuildConfig
from hfprep.pipeline.devices import choose_workers, gpu_count
from hfprep.pipeline.engines.local import choose_num_processes, run_local, threads_per_process, trial_in_worker
from hfprep.pipeline.engines.pool import WorkerPool
from hfprep.pipeline.engines.spec import ExtractorSpec, Models, Sink, Staging, Watcher
from hfprep.pipeline.filters import SampleOptions
from hfprep.pipeline.inputs import Inputs
from hfprep.pipeline.plan import Plan
from hfprep.pipeline.precision_trial import Trial, TrialResult
from hfprep.recipes.base import via_rate

MANY_TEXTS = 5000  # from here on, processes that tokenize save more time than their start takes (2 s)


@dataclass
class Workers:
    """What is kept between the builds of a run: worker processes, and models in this process. A context manager."""

    pool: WorkerPool = field(default_factory=WorkerPool)
    models: Models = field(default_factory=Models)

    def __enter__(self) -> "Workers":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
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


class Engine(Protocol):
    """Runs the computation on some workers."""

    def prepare(self, config: BuildConfig, workers: Workers) -> None:
        """Start slow preparations that do not depend on the plan."""

    def trial(self, trial: Trial, workers: Workers) -> TrialResult:
        """Compute some clips in one precision."""

    def run(self, job: Job, workers: Workers) -> None:
        """Compute the rows of a job.

        Raises StopRequested once its `stop()` is true, SystematicFailureError if samples fail one after another for the
        same cause, and errors of the sink.
        """


class LocalEngine:
    """Supervised worker processes on this machine."""

    def prepare(self, config: BuildConfig, workers: Workers) -> None:
        workers.pool.prepare(choose_num_processes(config.num_processes, config.device))

    def trial(self, trial: Trial, workers: Workers) -> TrialResult:
        return trial_in_worker(trial, workers.pool)

    def run(self, job: Job, workers: Workers) -> None:
        count = choose_num_processes(job.config.num_processes, job.config.device)
        run_local(
            job.spec(count),
            job.plan,
            job.sink,
            watch=job.watch,
            pool=workers.pool,
            work=job.work,
            num_processes=count,
            stop=job.stop,
        )


@dataclass(frozen=True)
class InlineEngine:
    """A worker in this process.

    `own_process` says that the main module can be imported without side effects (`if __name__ == "__main__"`), so that
    processes may load samples.
    """

    own_process: bool = False

    def prepare(self, config: BuildConfig, workers: Workers) -> None:
        pass

    def trial(self, trial: Trial, workers: Workers) -> TrialResult:
        del workers
        return trial.run()

    def run(self, job: Job, workers: Workers) -> None:
        from hfprep.pipeline.engines.inline import run_inline  # imports torch

        spec = dataclasses.replace(job.spec(1), own_process=self.own_process)
        run_inline(spec, job.plan, job.sink, watch=job.watch, models=workers.models, work=job.work, stop=job.stop)


class RayEngine:
    """Workers on a cluster; each has --workers CPUs (default: one)."""

    def prepare(self, config: BuildConfig, workers: Workers) -> None:
        pass

    def trial(self, trial: Trial, workers: Workers) -> TrialResult:
        raise NotImplementedError  # not used: each machine would choose its own precision

    def run(self, job: Job, workers: Workers) -> None:
        del workers
        from hfprep.pipeline.engines.ray import RayOptions, run_ray

        config = job.config
        cpus = config.workers or 1
        share = config.num_gpus_per_worker
        spec = dataclasses.replace(
            job.spec(1),
            workers=cpus,
            threads=cpus,
            tenants=int(1 / share) if share else 1,
        )
        options = RayOptions(
            address=config.ray_address,
            num_workers=config.num_processes,
            num_gpus_per_worker=share,
            num_cpus_per_worker=cpus,
        )
        run_ray(spec, job.plan, job.sink, work=job.work / "ray", options=options, stop=job.stop)


ENGINES: dict[str, Engine] = {"local": LocalEngine(), "inline": InlineEngine(), "ray": RayEngine()}


def tenants(device: str, num_processes: int) -> int:
    """How many of `num_processes` workers share each GPU."""
    spread = device in ("auto", "cuda")
    return math.ceil(num_processes / max(1, gpu_count())) if spread else num_processes
