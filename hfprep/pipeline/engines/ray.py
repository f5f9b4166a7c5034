"""The engine of a cluster: the same extractor as Ray Data actors, over the same shards. The only module that loads Ray.

The driver plans, hands out the rows themselves, and stages and publishes what comes back through Ray's object store:
nodes need no file system in common, only models under the same paths, and audio that each of them can read. Ray
restarts what dies with a node. A shard that was begun too often (one of its samples kills actors) is given up for now;
what is lost so is handed out again in smaller shards, until single samples are left that cannot be computed.
"""

import contextlib
import dataclasses
import itertools
import logging
import os
import socket
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa

from hfprep.errors import ConfigError, HfprepError, Reason, StopRequested
from hfprep.io.object_storage import is_url
from hfprep.io.references import file_of
from hfprep.pipeline.background import BackgroundWriter
from hfprep.pipeline.engines.local import run_rows
from hfprep.pipeline.engines.shards import MAX_SHARD_ROWS, Shard, cut
from hfprep.pipeline.engines.spec import BatchCost, ExtractorSpec, Sink, cost_of
from hfprep.pipeline.failures import DeviceError
from hfprep.pipeline.planning import Plan
from hfprep.recipes.base import absolute
from hfprep.schema import Features, Rejection
from hfprep.store.layout import PlannedRow

try:
    import ray
    import ray.data
except ImportError as error:
    raise ConfigError("--engine ray needs Ray: pip install 'hfprep[ray]'") from error

log = logging.getLogger(__name__)

SMALLER = 8  # each round over what was lost cuts shards this much shorter
TASK_ATTEMPTS = 3
ROUNDS_ALONE = 2  # in which a sample is handed out by itself before it is rejected
TOO_MANY_LOST = 20  # single samples, with none computed: the fault is not in the samples
HELD_BYTES = 1 << 28  # of what was computed and is not yet published: what a killed driver may cost
SHARDS_AT_A_TIME = 64  # whose rows are held in the memory of the cluster


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
    """What an actor sends back: a batch and the node that computed it, or the error that kept it from working."""

    node: str
    computed: list[tuple[PlannedRow, Features]] = field(default_factory=list)
    rejections: list[Rejection] = field(default_factory=list)
    cost: BatchCost | None = None
    error: Exception | None = None


class Attempts:
    """How often each shard was begun; an actor of its own, because Ray may do a shard again anywhere, without end."""

    def __init__(self) -> None:
        self._begun: Counter[int] = Counter()

    def begin(self, shard: int) -> int:
        """Count one more attempt at a shard."""
        self._begun[shard] += 1
        return self._begun[shard]


class Actor:
    """A process of the cluster with its models open; called with shards of the plan."""

    def __init__(self, spec: ExtractorSpec, attempts: Any, working_directory: str) -> None:
        self.node = socket.gethostname()
        self.attempts = attempts
        self.failure: Exception | None = None
        with contextlib.suppress(OSError):  # relative paths of audio lead from where the driver is
            os.chdir(working_directory)
        try:
            datasets.disable_progress_bars()
            self.extractor = spec.open()
        except (HfprepError, OSError) as error:
            kind = type(error) if isinstance(error, HfprepError) else ConfigError
            hint = "every node needs the models and the tokenizer under the same paths"
            self.failure = kind(f"on node {self.node}: {error} ({hint})")

    def __call__(self, batch: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Compute a shard; one row for each batch."""
        for number, rows in zip(batch["number"], batch["rows"], strict=True):
            for reported in self.compute(int(number), bytes(rows)):
                yield {"reported": [ray.cloudpickle.dumps(reported)]}  # bytes are what Arrow takes as they are

    def compute(self, number: int, rows: bytes) -> Iterator[Reported]:
        """Compute these rows of the plan, an Arrow stream; nothing where they were begun too often."""
        if self.failure is not None:
            yield Reported(self.node, error=self.failure)
            return
        if ray.get(self.attempts.begin.remote(number)) > TASK_ATTEMPTS:
            yield Reported(self.node)
            return
        with pa.ipc.open_stream(rows) as stream:
            selected = stream.read_all().to_pylist()
        counted = self.extractor.out_of_memory_events
        try:
            with tempfile.TemporaryDirectory(prefix="hfprep-") as folder:
                for computed, rejections, result in run_rows(selected, self.extractor, spool=Path(folder) / "clips"):
                    features, events = [item for _, item in computed], self.extractor.out_of_memory_events
                    cost = cost_of(result, features, self.extractor.schema, events - counted)
                    counted = self.extractor.out_of_memory_events
                    yield Reported(self.node, computed, rejections, cost)
        except DeviceError:
            os._exit(1)  # only another process can use the device again; Ray starts it
        except HfprepError as error:
            yield Reported(self.node, error=error)


class _Driver:
    """Hands out shards in rounds and takes in what is reported."""

    def __init__(self, spec: ExtractorSpec, plan: Plan, sink: Sink, folder: Path, options: RayOptions) -> None:
        self.spec = spec
        self.plan = plan
        self.sink = sink
        self.options = options
        self.rows = plan.dataset.with_format("arrow")
        self.lines = plan.dataset.data.column("line").to_numpy()  # they rise
        self.done = np.zeros(len(plan.dataset), np.bool_)
        self.stage = spec.staging.open(folder)
        self.writer = BackgroundWriter(overlap=True)

    def close(self) -> None:
        """Wait for what is being written."""
        self.writer.close()
        self.stage.close()

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
        before = int(self.done.sum())
        for start in range(0, len(shards), SHARDS_AT_A_TIME):
            self.hand_out(shards[start : start + SHARDS_AT_A_TIME], stop)
        self.writer.flush()
        return int(self.done.sum()) - before

    def hand_out(self, shards: list[Shard], stop: Callable[[], bool]) -> None:
        """Let the cluster compute shards whose rows fit into memory."""
        items = [{"number": shard.number, "rows": self.rows_of(shard)} for shard in shards]
        options, most = self.options, max(1, min(self.options.num_workers, len(items)))
        attempts = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(Attempts).remote()
        mapped = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
            Actor,
            fn_constructor_args=(self.spec, attempts, os.getcwd()),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=most, initial_size=most),
            num_cpus=options.num_cpus_per_worker,
            num_gpus=options.num_gpus_per_worker,
        )
        for batch in mapped.iter_batches(batch_size=1, prefetch_batches=0, batch_format="numpy"):
            for reported in batch["reported"]:
                self.take(ray.cloudpickle.loads(reported))
            if stop():
                self.writer.flush()
                raise StopRequested

    def rows_of(self, shard: Shard) -> bytes:
        """The rows of a shard as an Arrow stream."""
        table = self.rows[[int(row) for row in shard.rows]]
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.schema) as stream:
            stream.write_table(table)
        return bytes(sink.getvalue())

    def take(self, reported: Reported) -> None:
        """Make a batch final, but for what was reported before a worker died and its shard was done again."""
        if reported.error is not None:
            raise reported.error
        computed = [item for item in reported.computed if self.is_new(item[0].utterance.line)]
        rejections = [item for item in reported.rejections if self.is_new(item.line)]
        if not computed and not rejections:
            return
        for rejection in rejections:
            self.refuse_unseen(rejection, reported.node)
        assert reported.cost is not None
        cost = reported.cost
        self.writer.submit(lambda: self.sink(self.stage.write(computed), rejections, cost))
        for line in itertools.chain((row.utterance.line for row, _ in computed), (item.line for item in rejections)):
            self.done[self.position(line)] = True

    def position(self, line: int) -> int:
        """Where the row of a manifest line is in the plan."""
        return int(np.searchsorted(self.lines, line))

    def is_new(self, line: int) -> bool:
        """Whether a line has had no outcome yet."""
        return not self.done[self.position(line)]

    def refuse_unseen(self, rejection: Rejection, node: str) -> None:
        """Raise ConfigError where a node misses a file that is here: then it would miss all the others too."""
        if rejection.reason is not Reason.AUDIO_MISSING:
            return
        path = file_of(self.plan.dataset[self.position(rejection.line)]["path"])
        if not is_url(path) and os.path.exists(path):
            raise ConfigError(
                f"{path} is here, but not on node {node}; audio must be on a file system that all nodes see under the "
                "same paths, or in object storage"
            )

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
        spec = dataclasses.replace(spec, model_set=absolute(spec.model_set))
        driver = _Driver(spec, plan, sink, work, fitting(options, ray.cluster_resources()))
        with contextlib.closing(driver):
            driver.run(stop)
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


def _quiet_context() -> None:
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.target_max_block_size = 1  # so that every batch comes back by itself, as soon as it is done
    context.execution_options.resource_limits = ray.data.ExecutionResources.for_limits(object_store_memory=HELD_BYTES)
    context.max_errored_blocks = -1  # what is lost is seen by what is missing, and handed out again
