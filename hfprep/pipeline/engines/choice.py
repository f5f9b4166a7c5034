"""The engine that a config asks for: workers on this machine, on a Ray cluster, or one in the calling process.

Gives `ENGINES` and `Workers`. An engine takes a config, the models that were found for it, and a plan; each finished
batch goes to the sink.
"""

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Protocol

import torch

from hfprep.pipeline.config import BuildConfig
from hfprep.pipeline.devices import choose_workers
from hfprep.pipeline.engines.inline import run_inline
from hfprep.pipeline.engines.local import choose_num_processes, run_local, threads_per_process, trial_in_worker
from hfprep.pipeline.engines.pool import WorkerPool
from hfprep.pipeline.engines.spec import ExtractorSpec, Models, Sink, Staging
from hfprep.pipeline.inputs import Inputs
from hfprep.pipeline.plan import Plan
from hfprep.pipeline.precision_trial import Trial, TrialResult
from hfprep.recipes.base import via_rate

MANY_TEXTS = 5000  # from here on processes that tokenize, which take two seconds to start, save more than that


@dataclass
class Workers:
    """What stays between the builds of a run: worker processes, and models in this process. A context manager."""

    pool: WorkerPool = field(default_factory=WorkerPool)
    models: Models = field(default_factory=Models)

    def __enter__(self) -> "Workers":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.pool.close()


class Engine(Protocol):
    """Who computes, and where."""

    def prepare(self, config: BuildConfig, workers: Workers) -> None:
        """Begin what takes long and does not depend on the plan."""

    def trial(self, trial: Trial, workers: Workers) -> TrialResult:
        """Compute some clips in one precision."""

    def run(
        self,
        config: BuildConfig,
        inputs: Inputs,
        plan: Plan,
        staging: Staging,
        sink: Sink,
        *,
        work: Path,
        workers: Workers,
        stop: Callable[[], bool],
    ) -> None:
        """Compute the pending rows of a plan, with `work` as a folder for working data.

        Raises StopRequested once `stop()` is true, SystematicFailureError where samples fail one after the other for
        the same cause, and what the sink raises.
        """


class LocalEngine:
    """Worker processes on this machine, supervised."""

    def prepare(self, config: BuildConfig, workers: Workers) -> None:
        workers.pool.prepare(choose_num_processes(config.num_processes, config.device))

    def trial(self, trial: Trial, workers: Workers) -> TrialResult:
        return trial_in_worker(trial, workers.pool)

    def run(
        self,
        config: BuildConfig,
        inputs: Inputs,
        plan: Plan,
        staging: Staging,
        sink: Sink,
        *,
        work: Path,
        workers: Workers,
        stop: Callable[[], bool],
    ) -> None:
        count = choose_num_processes(config.num_processes, config.device)
        spec = spec_of(config, inputs, plan, staging, count)
        run_local(spec, plan, sink, pool=workers.pool, work=work, num_processes=count, stop=stop)


@dataclass(frozen=True)
class InlineEngine:
    """A worker in this process.

    With `own_process` the program can be imported by others without doing anything (`if __name__ == "__main__"`), so
    that processes may load samples for it.
    """

    own_process: bool = False

    def prepare(self, config: BuildConfig, workers: Workers) -> None:
        pass

    def trial(self, trial: Trial, workers: Workers) -> TrialResult:
        del workers
        return trial.run()

    def run(
        self,
        config: BuildConfig,
        inputs: Inputs,
        plan: Plan,
        staging: Staging,
        sink: Sink,
        *,
        work: Path,
        workers: Workers,
        stop: Callable[[], bool],
    ) -> None:
        spec = dataclasses.replace(spec_of(config, inputs, plan, staging, 1), own_process=self.own_process)
        run_inline(spec, plan, sink, models=workers.models, work=work, stop=stop)


class RayEngine:
    """Workers on a cluster; each has --workers CPUs (one if left open)."""

    def prepare(self, config: BuildConfig, workers: Workers) -> None:
        pass

    def trial(self, trial: Trial, workers: Workers) -> TrialResult:
        raise NotImplementedError  # precision_choice asks for none: each machine would choose for itself

    def run(
        self,
        config: BuildConfig,
        inputs: Inputs,
        plan: Plan,
        staging: Staging,
        sink: Sink,
        *,
        work: Path,
        workers: Workers,
        stop: Callable[[], bool],
    ) -> None:
        del workers
        from hfprep.pipeline.engines.ray import RayOptions, run_ray

        cpus = config.workers or 1
        share = config.num_gpus_per_worker
        spec = dataclasses.replace(
            spec_of(config, inputs, plan, staging, 1),
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
        run_ray(spec, plan, sink, work=work / "ray", options=options, stop=stop)


ENGINES: dict[str, Engine] = {"local": LocalEngine(), "inline": InlineEngine(), "ray": RayEngine()}


def spec_of(config: BuildConfig, inputs: Inputs, plan: Plan, staging: Staging, num_processes: int) -> ExtractorSpec:
    """How each of so many workers on this machine opens its extractor."""
    need = frozenset(plan.counts.need)
    threads = max(1, choose_workers(config.workers) // num_processes)
    return ExtractorSpec(
        model_set=inputs.models,
        staging=staging,
        seen=inputs.seen,
        need=need,
        device=config.device,
        precision=config.precision,
        batch_size=config.batch_size,
        workers=threads,
        via_sampling_rate=via_rate(config.resample_via, inputs.models.audio),
        drop_overlong=config.drop_overlong,
        filters=config.filters,
        threads=threads_per_process(num_processes) if num_processes > 1 else None,
        tenants=tenants(config.device, num_processes),
        loaders=not need & inputs.schema.audio_groups and threads > 1 and plan.counts.pending >= MANY_TEXTS,
    )


def tenants(device: str, num_processes: int) -> int:
    """How many of so many workers share each GPU."""
    spread = device in ("auto", "cuda")
    return math.ceil(num_processes / max(1, torch.cuda.device_count())) if spread else num_processes
