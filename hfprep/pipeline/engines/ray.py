"""Workers on a cluster: Ray actors that keep their models loaded. The only module that imports Ray.

The driver plans, sends the rows, and stages and publishes the results, which come back through Ray's object store:
nodes need no shared file system, only models under the same paths and audio that each of them can read.
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
MAX_MESSAGES = 2  # of a worker that the driver has not fetched, which limits how far it computes ahead
LOCAL = "127.0.0.2"  # a loopback address that Ray does not replace with one that other machines can reach


@dataclass(frozen=True, kw_only=True)
class RayOptions:
    """Address of the cluster (None: start one here) and resources of each worker.

    `num_workers` 0 is as many as the cluster has resources for.
    """

    address: str | None = None
    num_workers: int = 0
    num_gpus_per_worker: float | None = None
    num_cpus_per_worker: int = 1


class _Queues:
    """The worker's end of its connection to the driver; see `messages.Channel`."""

    def __init__(self) -> None:
        self.incoming: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.outgoing: queue.Queue[Any] = queue.Queue(MAX_MESSAGES)

    def send(self, message: Any, /) -> None:
        self.outgoing.put(message)

    def recv(self) -> Any:
        return self.incoming.get()

    def poll(self) -> bool:
        return not self.incoming.empty()


class Actor:
    """A process of the cluster in which a worker runs; the driver fetches its messages one by one."""

    def __init__(self, working_directory: str) -> None:
        self._queues = _Queues()
        with contextlib.suppress(OSError):  # audio paths may be relative to the driver's directory
            os.chdir(working_directory)
        threading.Thread(target=self._serve, name="hfprep-worker", daemon=True).start()

    def tell(self, message: Any) -> None:
        """Receive a message for the worker."""
        self._queues.incoming.put(message)

    def next_message(self) -> Any:
        """Wait for the worker's next message; returns the name of its node, too."""
        return socket.gethostname(), self._queues.outgoing.get()

    def _serve(self) -> None:
        try:
            serve(self._queues)
        except BaseException:
            logging.getLogger(__name__).exception("the worker has failed")
            os._exit(1)


@dataclass(eq=False)
class _Handle:
    """A worker of the cluster: its actor, the pending request for a message, and the node once it is known."""

    actor: Any
    request: Any
    node: str = "?"


class RayCrew:
    """Actors of a cluster that compute one build."""

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
            max_restarts=0,  # the driver starts another one
            max_concurrency=2,  # `tell` is called while `next_message` waits
        )

    def start(self, rank: int, *, prove: bool) -> _Handle:
        del rank  # the cluster gives it a device
        actor: Any = self._new_actor.remote(os.getcwd())
        actor.tell.remote(
            WorkerSetup(spec=self._spec, device=None, plan=None, folder=None, control=self._control, prove=prove)
        )
        handle = _Handle(actor, actor.next_message.remote())
        self._at_work[handle.request] = handle
        return handle

    def tell(self, worker: _Handle, message: Any) -> None:
        worker.actor.tell.remote(message)

    def wait(self) -> Sequence[tuple[_Handle, Any]]:
        ready, _ = ray.wait(list(self._at_work), num_returns=1, timeout=POLL_SECONDS)
        found = []
        for request in ready:
            handle = self._at_work.pop(request)
            try:
                handle.node, message = ray.get(request)
            except ray.exceptions.RayError as error:  # the actor died, or its message was lost with its node
                self.close(handle)  # it may only be out of reach, and would keep its device
                found.append((handle, Died(f"node {handle.node}: {type(error).__name__}")))
                continue
            if isinstance(message, Failed):
                message = self._explained(message, handle.node)
            handle.request = handle.actor.next_message.remote()
            self._at_work[handle.request] = handle
            found.append((handle, message))
        return found

    def assignment(self, unit: WorkUnit) -> Assignment:
        return Assignment(unit.number, as_stream(self._plan, [position for _, position in unit.left.values()]))

    def staged(self, computed: Sequence[tuple[PlannedRow, Features]]) -> list[Any]:
        return self._stage.write(computed)

    def check(self, worker: _Handle, rejection: Rejection) -> None:
        """Raise ConfigError if a node lacks a file that exists here: it probably lacks all of them."""
        if rejection.reason is not Reason.AUDIO_MISSING:
            return
        path = file_of(self._path_of(rejection.line))
        if not is_url(path) and os.path.exists(path):
            raise ConfigError(
                f"{path} exists here, but not on node {worker.node}; audio must be on a file system that all nodes "
                "share under the same paths, or in object storage"
            )

    def close(self, worker: _Handle) -> None:
        self._at_work.pop(worker.request, None)
        ray.kill(worker.actor)

    def end(self) -> None:
        """Close the stage."""
        self._stage.close()

    def _path_of(self, line: int) -> str:
        rows = self._plan.rows
        position = rows.table.column("line").to_numpy().searchsorted(line)  # lines are sorted
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

    Raises StopRequested once `stop()` is true, ConfigError, CheckpointError or StoreError of any worker, HfprepError if
    workers keep dying, and errors of the sink.
    """
    started = not ray.is_initialized()
    if started:
        _join(options.address)
    try:
        spec = dataclasses.replace(spec, model_set=absolute(spec.model_set))
        options = with_cluster_defaults(options, ray.cluster_resources())
        control = control_of(plan)
        crew = RayCrew(spec, plan, work, options, control)
        with contextlib.ExitStack() as stack:
            stack.callback(crew.end)
            queue = queue_of(plan, options.num_workers)
            Driver(crew, queue, sink, options.num_workers, lambda *_: None, has_control=control is not None).run(stop)
    finally:
        if started:
            ray.shutdown()


def _join(address: str | None) -> None:
    """Connect to the cluster at an address, or start one here that other machines cannot reach. Raises ConfigError."""
    own: dict[str, Any] = {"_node_ip_address": LOCAL} if not address and sys.platform == "linux" else {}
    try:
        ray.init(address=address or "local", include_dashboard=False, logging_level=logging.WARNING, **own)
    except (ConnectionError, RuntimeError, ValueError) as error:
        what = f"--ray-address is {address!r}, but" if address else "--engine ray:"
        problem = f"{what} the cluster cannot be joined or started: {error}"
        raise ConfigError(f"{problem}; check that it runs, and that RAY_AUTH_TOKEN is its token, if any") from error


def with_cluster_defaults(options: RayOptions, resources: dict[str, float]) -> RayOptions:
    """The options with defaults from the cluster's resources: a GPU per worker if there are any, one CPU kept free."""
    gpus, cpus = resources.get("GPU", 0.0), resources.get("CPU", 1.0)
    share = options.num_gpus_per_worker
    if share is None:
        share = 1.0 if gpus else 0.0
    room = int(gpus / share) if share else int((cpus - 1) / options.num_cpus_per_worker)
    return dataclasses.replace(options, num_gpus_per_worker=share, num_workers=options.num_workers or max(1, room))
