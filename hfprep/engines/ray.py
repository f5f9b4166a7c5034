"""The engine of a cluster: the same extractor as Ray Data actors, over the same shards. The only module that loads Ray.

The driver plans and publishes; actors read audio and models and stage arrays on a file system that all nodes share
under the same paths. Ray restarts what dies with a node. What is lost all the same (an actor that a sample kills, more
often than Ray retries) is handed out again in smaller shards, until single samples are left that cannot be computed.
"""

import contextlib
import dataclasses
import logging
import os
import socket
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np

from hfprep.engines.local import run_rows
from hfprep.engines.shards import MAX_SHARD_ROWS, Shard, cut
from hfprep.engines.spec import BatchCost, ExtractorSpec, Sink, cost_of
from hfprep.errors import ConfigError, HfprepError, Reason, StopRequested
from hfprep.features import BatchResult, DeviceError
from hfprep.planning import Plan
from hfprep.records import Rejection
from hfprep.store.layout import Stage, Staged

try:
    import ray
    import ray.data
except ImportError as error:
    raise ConfigError("--engine ray needs Ray: pip install 'hfprep[ray]'") from error

log = logging.getLogger(__name__)

SMALLER = 8  # each round over what was lost cuts shards this much shorter
TASK_RETRIES = 2
ROUNDS_ALONE = 2  # in which a sample is handed out by itself before it is rejected
TOO_MANY_LOST = 20  # single samples, with none computed: the fault is not in the samples


@dataclass(frozen=True, kw_only=True)
class RayOptions:
    """Where the cluster is (None: one is started here) and what each actor takes of it.

    `num_workers` bounds the pool, which grows with the work; 0 is as many as the cluster has room for now.
    """

    address: str | None = None
    num_workers: int = 0
    num_gpus_per_worker: float | None = None
    num_cpus_per_worker: int = 1


@dataclass(frozen=True, slots=True)
class Reported:
    """What an actor sends back: the rows of a batch that are done, or the error that kept it from working."""

    positions: list[int]
    staged: list[Staged]
    rejections: list[Rejection]
    cost: BatchCost | None
    error: Exception | None = None


class Actor:
    """A process of the cluster with its models open; called with shards of the plan."""

    def __init__(self, spec: ExtractorSpec, plan: str, folder: str, working_directory: str) -> None:
        self.failure: HfprepError | None = None
        with contextlib.suppress(OSError):  # relative paths of models and audio lead from where the driver is
            os.chdir(working_directory)
        try:
            datasets.disable_progress_bars()
            self.extractor = spec.open()
            self.plan = datasets.Dataset.from_file(plan)
            self.stage = Stage(Path(folder) / f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}")
            self.writer = ThreadPoolExecutor(1)
        except HfprepError as error:
            self.failure = error

    def __call__(self, batch: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Compute a shard; one row for each batch, staged while the next one computes."""
        for rows in batch["rows"]:
            for reported in self.compute([int(row) for row in rows]):
                outcome = np.empty(1, object)
                outcome[0] = reported
                yield {"reported": outcome}

    def compute(self, rows: list[int]) -> Iterator[Reported]:
        """Compute the rows at these positions of the plan."""
        if self.failure is not None:
            yield Reported([], [], [], None, self.failure)
            return
        selected = self.plan.select(rows)
        position_of = dict(zip(selected["line"], rows, strict=True))
        counted = self.extractor.out_of_memory_events
        waiting: tuple[Future[list[Staged]], list[Rejection], BatchResult] | None = None

        def report(staging: Future[list[Staged]], rejections: list[Rejection], result: BatchResult) -> Reported:
            nonlocal counted
            staged = staging.result()
            seconds = sum(item.seconds or 0.0 for item in staged)
            cost = cost_of(result, seconds, self.extractor.out_of_memory_events - counted)
            counted = self.extractor.out_of_memory_events
            lines = [item.row.utterance.line for item in staged] + [item.line for item in rejections]
            return Reported([position_of[line] for line in lines], staged, rejections, cost)

        try:
            for computed, rejections, result in run_rows(
                selected.to_list(), self.extractor, spool=self.stage.folder / "clips"
            ):
                staging = self.writer.submit(self.stage.write, computed)
                if waiting is not None:
                    yield report(*waiting)
                waiting = staging, rejections, result
            if waiting is not None:
                yield report(*waiting)
        except DeviceError:
            os._exit(1)  # only another process can use the device again; Ray starts it
        except HfprepError as error:
            yield Reported([], [], [], None, error)


class _Driver:
    """Hands out shards in rounds and takes in what is reported."""

    def __init__(self, spec: ExtractorSpec, plan: Plan, sink: Sink, folder: Path, options: RayOptions) -> None:
        self.spec = spec
        self.plan = plan
        self.sink = sink
        self.folder = folder
        self.options = options
        self.done = np.zeros(len(plan.dataset), np.bool_)

    def run(self, stop: Callable[[], bool]) -> None:
        """Work in rounds until nothing is left."""
        left = np.asarray(self.plan.pending_positions(), np.int64)
        shards, alone = cut(left), 0
        while shards:
            length = len(shards[0].rows)
            computed = self.round(shards, stop)
            left = left[~self.done[left]]
            alone += length == 1
            if alone == ROUNDS_ALONE:
                self.give_up(left, computed)
                return
            length = min(MAX_SHARD_ROWS, max(1, length // SMALLER))
            if len(left):
                log.warning(
                    "%d samples were lost with their workers; they go out again, %d at a time", len(left), length
                )
            shards = [Shard(n, left[start : start + length]) for n, start in enumerate(range(0, len(left), length))]

    def round(self, shards: list[Shard], stop: Callable[[], bool]) -> int:
        """One pass over these shards; gives how many samples had an outcome."""
        items = [{"rows": [int(row) for row in shard.rows]} for shard in shards]
        options = self.options
        most = max(1, min(options.num_workers, len(items)))
        mapped = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
            Actor,
            fn_constructor_args=(self.spec, str(self.plan.path.absolute()), str(self.folder.absolute()), os.getcwd()),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=most, initial_size=most),
            num_cpus=options.num_cpus_per_worker,
            num_gpus=options.num_gpus_per_worker,
            ray_remote_args_fn=_actor_arguments,
        )
        before = int(self.done.sum())
        for batch in mapped.iter_batches(batch_size=1, prefetch_batches=0, batch_format="numpy"):
            for reported in batch["reported"]:
                self.take(reported)
            if stop():
                raise StopRequested
        return int(self.done.sum()) - before

    def take(self, reported: Reported) -> None:
        """Make a batch final, but for what was reported before a worker died and its shard was done again."""
        if reported.error is not None:
            raise reported.error
        assert reported.cost is not None
        fresh = [position for position in reported.positions if not self.done[position]]
        if len(fresh) < len(reported.positions):
            new = {int(line) for line in self.plan.dataset.select(fresh)["line"]} if fresh else set()
            staged = [item for item in reported.staged if item.row.utterance.line in new]
            rejections = [item for item in reported.rejections if item.line in new]
            reported = dataclasses.replace(reported, staged=staged, rejections=rejections)
        if fresh:
            assert reported.cost is not None
            self.sink(reported.staged, reported.rejections, reported.cost)
            self.done[fresh] = True

    def give_up(self, left: np.ndarray, computed: int) -> None:
        """Reject samples that were lost even alone, unless everything is lost."""
        if not len(left):
            return
        if len(left) > TOO_MANY_LOST and not computed:
            raise HfprepError(
                f"workers of the cluster die whatever they are given ({len(left)} samples are left); see `ray logs`, "
                "then run the same command again: finished work is kept"
            )
        message = "the process that computed it was lost again and again, even with this sample alone"
        rows = self.plan.dataset.select(left.tolist())
        for line, sample_id in zip(rows["line"], rows["id"], strict=True):
            rejection = Rejection(line, sample_id, Reason.COMPUTE_FAILED, message)
            self.sink([], [rejection], BatchCost(1, 0, 0, 0.0))


def run_ray(
    spec: ExtractorSpec,
    plan: Plan,
    sink: Sink,
    *,
    work: Path,
    options: RayOptions,
    stop: Callable[[], bool] = lambda: False,
) -> None:
    """Compute the pending rows of a plan on a Ray cluster.

    Raises StopRequested once `stop()` is true, ConfigError, CheckpointError or StoreError of any actor, HfprepError
    where actors die whatever they are given, and whatever the sink raises.
    """
    started = not ray.is_initialized()
    if started:
        _join(options.address)
    try:
        _quiet_context()
        _Driver(spec, plan, sink, work, fitting(options, ray.cluster_resources())).run(stop)
    finally:
        if started:
            ray.shutdown()


def _join(address: str | None) -> None:
    """Join the cluster at an address, or start one here. Raises ConfigError."""
    try:
        ray.init(address=address or "local", include_dashboard=False, logging_level=logging.WARNING)
    except (ConnectionError, RuntimeError, ValueError) as error:
        what = f"--ray-address is {address!r}, and" if address else "--engine ray:"
        said = f"{what} the cluster cannot be joined or started: {error}"
        raise ConfigError(f"{said}; see that it runs, and that RAY_AUTH_TOKEN is its token if it has one") from error


def fitting(options: RayOptions, resources: dict[str, float]) -> RayOptions:
    """The options with what was left open taken from the cluster: a GPU each where there are any, one CPU left free."""
    gpus, cpus = resources.get("GPU", 0.0), resources.get("CPU", 1.0)
    share = options.num_gpus_per_worker
    if share is None:
        share = 1.0 if gpus else 0.0
    room = int(gpus / share) if share else int((cpus - 1) / options.num_cpus_per_worker)
    return dataclasses.replace(options, num_gpus_per_worker=share, num_workers=options.num_workers or max(1, room))


def _actor_arguments() -> dict[str, Any]:
    """Actors come back wherever there is room; a shard that kills one over and over is given back."""
    return {"max_restarts": -1, "max_task_retries": TASK_RETRIES}


def _quiet_context() -> None:
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.target_max_block_size = 1  # so that every batch comes back by itself, as soon as it is done
    context.max_errored_blocks = -1  # what is lost is seen by what is missing, and handed out again
