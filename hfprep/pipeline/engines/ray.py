"""Workers on a cluster: Ray actors, each with its models for its whole life. The only module that loads Ray.

The driver plans, hands out the rows themselves, and stages and publishes what comes back through Ray's object store:
nodes need no file system in common, only models under the same paths, and audio that each of them can read.
"""

import contextlib
import dataclasses
import logging
import os
import queue
import socket
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hfprep.errors import ConfigError, HfprepError, Reason
from hfprep.io.object_storage import is_url
from hfprep.io.references import file_of
from hfprep.pipeline.engines.driver import Died, Driver
from hfprep.pipeline.engines.messages import Assignment, Failed, WorkerSetup
from hfprep.pipeline.engines.rows import as_stream, control_of, queue_of
from hfprep.pipeline.engines.spec import ExtractorSpec, Sink
from hfprep.pipeline.engines.work_units import WorkUnit
from hfprep.pipeline.engines.worker import serve
from hfprep.pipeline.plan import Plan
from hfprep.recipes.base import absolute
from hfprep.schema import Features, Rejection
from hfprep.store.layout import PlannedRow

try:
    import ray
    import ray.exceptions
except ImportError as error:
    raise ConfigError("--engine ray needs Ray: pip install 'hfprep[ray]'") from error

log = logging.getLogger(__name__)

POLL_SECONDS = 0.5
HELD_MESSAGES = 2  # of a worker that the driver has not asked for: what is computed ahead of it stays bounded
LOCAL = "127.0.0.2"  # a loopback address that Ray does not replace by one that can be reached from elsewhere


@dataclass(frozen=True, kw_only=True)
class RayOptions:
    """Where the cluster is (None: one is started here) and what each worker takes of it.

    `num_workers` 0 is as many as the cluster has room for now.
    """

    address: str | None = None
    num_workers: int = 0
    num_gpus_per_worker: float | None = None
    num_cpus_per_worker: int = 1


class _Queues:
    """The worker's end of its connection to the driver; see `messages.Channel`."""

    def __init__(self) -> None:
        self.incoming: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.outgoing: queue.Queue[Any] = queue.Queue(HELD_MESSAGES)

    def send(self, message: Any, /) -> None:
        self.outgoing.put(message)

    def recv(self) -> Any:
        return self.incoming.get()

    def poll(self) -> bool:
        return not self.incoming.empty()


class Actor:
    """A process of the cluster in which a worker runs; the driver asks for its messages one by one."""

    def __init__(self, working_directory: str) -> None:
        self._queues = _Queues()
        with contextlib.suppress(OSError):  # relative paths of audio lead from where the driver is
            os.chdir(working_directory)
        threading.Thread(target=self._serve, name="hfprep-worker", daemon=True).start()

    def tell(self, message: Any) -> None:
        """Take a message for the worker."""
        self._queues.incoming.put(message)

    def next_message(self) -> Any:
        """The worker's next message, waited for, and the node that it is on."""
        return socket.gethostname(), self._queues.outgoing.get()

    def _serve(self) -> None:
        try:
            serve(self._queues)
        except BaseException:
            logging.getLogger(__name__).exception("the worker has failed")
            os._exit(1)


@dataclass(eq=False)
class _Handle:
    """A worker of the cluster: its actor, the message that was asked for, and the node once it is known."""

    actor: Any
    asked: Any
    node: str = "?"


class RayCrew:
    """Actors of a cluster that are at work on one build."""

    def __init__(
        self, spec: ExtractorSpec, plan: Plan, folder: Path, options: RayOptions, control: PlannedRow | None = None
    ) -> None:
        self._spec = spec
        self._plan = plan
        self._control = control
        self._at_work: dict[Any, _Handle] = {}
        assert spec.staging is not None
        self._stage = spec.staging.open(folder)
        self._new_actor = ray.remote(Actor).options(
            num_cpus=options.num_cpus_per_worker,
            num_gpus=options.num_gpus_per_worker,
            max_restarts=0,  # the driver replaces it
            max_concurrency=2,  # it is told things while it waits for its next message
        )

    def start(self, rank: int, *, prove: bool) -> _Handle:
        del rank  # the cluster gives it a device
        actor: Any = self._new_actor.remote(os.getcwd())
        actor.tell.remote(
            WorkerSetup(spec=self._spec, device=None, plan=None, folder=None, control=self._control, prove=prove)
        )
        handle = _Handle(actor, actor.next_message.remote())
        self._at_work[handle.asked] = handle
        return handle

    def tell(self, worker: _Handle, message: Any) -> None:
        worker.actor.tell.remote(message)

    def wait(self) -> Sequence[tuple[_Handle, Any]]:
        ready, _ = ray.wait(list(self._at_work), num_returns=1, timeout=POLL_SECONDS)
        found = []
        for asked in ready:
            handle = self._at_work.pop(asked)
            try:
                handle.node, message = ray.get(asked)
            except ray.exceptions.RayActorError as error:
                found.append((handle, Died(f"node {handle.node}: {type(error).__name__}")))
                continue
            if isinstance(message, Failed):
                message = self._explained(message, handle.node)
            handle.asked = handle.actor.next_message.remote()
            self._at_work[handle.asked] = handle
            found.append((handle, message))
        return found

    def assignment(self, unit: WorkUnit) -> Assignment:
        return Assignment(unit.number, as_stream(self._plan, [position for _, position in unit.left.values()]))

    def staged(self, computed: Sequence[tuple[PlannedRow, Features]]) -> list[Any]:
        return self._stage.write(computed)

    def check(self, worker: _Handle, rejection: Rejection) -> None:
        """A node that misses a file that is here would miss all the others, too."""
        if rejection.reason is not Reason.AUDIO_MISSING:
            return
        path = file_of(self._path_of(rejection.line))
        if not is_url(path) and os.path.exists(path):
            raise ConfigError(
                f"{path} is here, but not on node {worker.node}; audio must be on a file system that all nodes see "
                "under the same paths, or in object storage"
            )

    def close(self, worker: _Handle) -> None:
        self._at_work.pop(worker.asked, None)
        ray.kill(worker.actor)

    def end(self) -> None:
        """Stop writing."""
        self._stage.close()

    def _path_of(self, line: int) -> str:
        rows = self._plan.rows
        position = rows.table.column("line").to_numpy().searchsorted(line)  # they rise
        return os.fsdecode(rows.take([int(position)], ["path"]).column("path")[0].as_py())

    @staticmethod
    def _explained(failed: Failed, node: str) -> Failed:
        kind = type(failed.error) if isinstance(failed.error, HfprepError) else ConfigError
        hint = "every node needs the models and the tokenizer under the same paths"
        return Failed(kind(f"on node {node}: {failed.error} ({hint})"), failed.fatal)


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

    Raises StopRequested once `stop()` is true, ConfigError, CheckpointError or StoreError of any worker, HfprepError
    where workers die whatever they are given, and whatever the sink raises.
    """
    started = not ray.is_initialized()
    if started:
        _join(options.address)
    try:
        spec = dataclasses.replace(spec, model_set=absolute(spec.model_set))
        options = fitting(options, ray.cluster_resources())
        control = control_of(plan)
        crew = RayCrew(spec, plan, work, options, control)
        with contextlib.ExitStack() as stack:
            stack.callback(crew.end)
            queue = queue_of(plan, options.num_workers)
            Driver(crew, queue, sink, options.num_workers, has_control=control is not None).run(stop)
    finally:
        if started:
            ray.shutdown()


def _join(address: str | None) -> None:
    """Join the cluster at an address, or start one here that no other machine can reach. Raises ConfigError."""
    own: dict[str, Any] = {"_node_ip_address": LOCAL} if not address and sys.platform == "linux" else {}
    try:
        ray.init(address=address or "local", include_dashboard=False, logging_level=logging.WARNING, **own)
    except (ConnectionError, RuntimeError, ValueError) as error:
        what = f"--ray-address is {address!r}, and" if address else "--engine ray:"
        said = f"{what} the cluster cannot be joined or started: {error}"
        raise ConfigError(f"{said}; check that it runs, and that RAY_AUTH_TOKEN is its token if it has one") from error


def fitting(options: RayOptions, resources: dict[str, float]) -> RayOptions:
    """The options with what was left open taken from the cluster: a GPU each where there are any, one CPU left free."""
    gpus, cpus = resources.get("GPU", 0.0), resources.get("CPU", 1.0)
    share = options.num_gpus_per_worker
    if share is None:
        share = 1.0 if gpus else 0.0
    room = int(gpus / share) if share else int((cpus - 1) / options.num_cpus_per_worker)
    return dataclasses.replace(options, num_gpus_per_worker=share, num_workers=options.num_workers or max(1, room))
