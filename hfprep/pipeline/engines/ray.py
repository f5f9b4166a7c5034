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
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from hfprep.errors import ConfigError, HfprepError, Reason
from hfprep.io.object_storage import is_url
from hfprep.io.references import file_of
from hfprep.pipeline.engines.driver import Died
from hfprep.pipeline.engines.messages import Assignment, Failed, WorkerSetup
from hfprep.pipeline.engines.spec import ExtractorSpec
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

if TYPE_CHECKING:
    from hfprep.pipeline.engines.choice import Job

log = logging.getLogger(__name__)

POLL_SECONDS = 0.5
MAX_MESSAGES = 2  # of a worker that the driver has not fetched, which limits how far it computes ahead
LOCAL = "127.0.0.2"  # a loopback address that Ray does not replace with one that other machines can reach


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
        self,
        spec: ExtractorSpec,
        plan: Plan,
        folder: Path,
        control: PlannedRow | None = None,
        *,
        num_cpus: int,
        num_gpus: float,
    ) -> None:
        self._spec = spec
        self._plan = plan
        self._control = control
        self._at_work: dict[Any, _Handle] = {}
        assert spec.staging is not None
        self._stage = spec.staging.open(folder)
        self._new_actor = ray.remote(Actor).options(
            num_cpus=num_cpus,
            num_gpus=num_gpus,
            max_restarts=0,  # the driver starts another one
            max_concurrency=2,  # `tell` is called while `next_message` waits
        )

    def start(self, rank: int, *, prove: bool) -> _Handle:
        del rank  # the cluster gives it a device
        actor: Any = self._new_actor.remote(os.getcwd())
        actor.tell.remote(WorkerSetup(spec=self._spec, plan=None, folder=None, control=self._control, prove=prove))
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
        rows = self._plan.take([position for _, position in unit.left.values()])
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, rows.schema) as stream:
            stream.write_table(rows)
        return Assignment(unit.number, bytes(sink.getvalue()))

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
        position = self._plan.table["line"].to_numpy().searchsorted(line)  # lines are sorted
        return os.fsdecode(self._plan.take([int(position)], ["path"])["path"][0].as_py())

    @staticmethod
    def _explained(failed: Failed, node: str) -> Failed:
        kind = type(failed.error) if isinstance(failed.error, HfprepError) else ConfigError
        hint = "every node needs the models and the tokenizer under the same paths"
        return Failed(kind(f"on node {node}: {failed.error} ({hint})"), failed.fatal)


def run_ray(job: "Job") -> None:
    """Compute the pending rows of a job on a Ray cluster; each worker has --workers CPUs (default: one).

    Raises as `Job.drive`.
    """
    config = job.config
    started = not ray.is_initialized()
    if started:
        _join(config.ray_address)
    try:
        cpus = config.workers or 1
        share, count = workers_for(config.num_gpus_per_worker, config.num_processes, cpus, ray.cluster_resources())
        spec = dataclasses.replace(
            job.spec(1),
            model_set=absolute(job.inputs.models),
            workers=cpus,
            threads=cpus,
            tenants=int(1 / share) if share else 1,
        )
        control = job.plan.control()
        crew = RayCrew(spec, job.plan, job.work / "ray", control, num_cpus=cpus, num_gpus=share)
        with contextlib.ExitStack() as stack:
            stack.callback(crew.end)
            job.drive(crew, count, has_control=control is not None)
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


def workers_for(share: float | None, num_workers: int, num_cpus: int, resources: dict[str, float]) -> tuple[float, int]:
    """GPUs per worker and number of workers; None and 0 are chosen by the cluster's resources.

    Then a worker has a GPU if there are any, and one CPU is kept free.
    """
    gpus, cpus = resources.get("GPU", 0.0), resources.get("CPU", 1.0)
    if share is None:
        share = 1.0 if gpus else 0.0
    room = int(gpus / share) if share else int((cpus - 1) / num_cpus)
    return share, num_workers or max(1, room)
