"""The engine of many processes on one machine, each with its own device.

The driver cuts the pending rows into shards, hands them out one by one, and makes every reported batch final. A
worker that dies is replaced and its shard given out again; a shard that killed three workers is split, down to the
sample that does it, which is rejected. Shards do not depend on the number of processes.
"""

import logging
import os
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, Pipe, wait
from pathlib import Path
from typing import TypeVar

import torch

from hfprep.engines.spec import BatchCost, ExtractorSpec, Sink, StopRequested
from hfprep.engines.worker import Assignment, Batch, Failed, Finished, WorkerSetup
from hfprep.errors import HfprepError, Reason
from hfprep.planning import Plan
from hfprep.records import Rejection

Row = TypeVar("Row")
log = logging.getLogger(__name__)

# Not `-m`: the messages' classes must have the same module name at both ends.
WORKER_CODE = "import sys; from hfprep.engines.worker import main; main(int(sys.argv[1]))"
SHARDS_WANTED = 64
MIN_SHARD_ROWS, MAX_SHARD_ROWS = 4, 2048
DEATHS_PER_SHARD = 3
FRUITLESS_STARTS = 3
POLL_SECONDS = 0.5


def choose_num_processes(num_processes: int) -> int:
    """Processes for `--num-processes`: 0 is one for each GPU, else one."""
    return num_processes or max(1, torch.cuda.device_count())


def worker_device(device: str, rank: int) -> str:
    """Device of a worker: its rank modulo the GPUs, unless one device was named."""
    if device != "auto" or not torch.cuda.is_available():
        return device
    return f"cuda:{rank % torch.cuda.device_count()}"


def cut_shards(rows: Sequence[Row]) -> list[Sequence[Row]]:
    """The pending rows cut into runs whose length depends on their number alone."""
    length = min(MAX_SHARD_ROWS, max(MIN_SHARD_ROWS, -(-len(rows) // SHARDS_WANTED)))
    return [rows[start : start + length] for start in range(0, len(rows), length)]


@dataclass
class _Shard:
    """Rows that are handed out together; `left` holds id and position of those not yet reported, by manifest line."""

    number: int
    left: dict[int, tuple[str, int]]
    deaths: int = 0


@dataclass
class _Worker:
    """A running process, the driver's end of its connection, and the shard it has."""

    rank: int
    process: "subprocess.Popen[bytes]"
    connection: Connection
    shard: _Shard | None = None
    ready: bool = False


@dataclass
class _Driver:
    """Hands out shards and takes in batches until nothing is left."""

    spec: ExtractorSpec
    plan: Path
    folder: Path
    sink: Sink
    queue: deque[_Shard]
    workers: dict[Connection, _Worker] = field(default_factory=dict)
    next_number: int = 0
    fruitless: int = 0

    def start_worker(self, rank: int) -> None:
        here, there = Pipe()
        process = subprocess.Popen(
            [sys.executable, "-c", WORKER_CODE, str(there.fileno())],
            pass_fds=[there.fileno()],
            stdin=subprocess.DEVNULL,
        )
        there.close()
        self.workers[here] = _Worker(rank, process, here)
        folder = self.folder / f"worker_{rank:02d}" / str(process.pid)
        here.send(
            WorkerSetup(spec=self.spec, device=worker_device(self.spec.device, rank), plan=self.plan, folder=folder)
        )

    def run(self, num_processes: int, stop: Callable[[], bool]) -> None:
        """Work until every shard is done; raises StopRequested after the batches in flight once asked to stop."""
        stopping = False
        for rank in range(min(num_processes, len(self.queue))):
            self.start_worker(rank)
        try:
            while self.workers:
                if stop() and not stopping:
                    stopping = True
                    for worker in self.workers.values():
                        self.tell(worker, None)
                for connection in wait(list(self.workers), timeout=POLL_SECONDS):
                    assert isinstance(connection, Connection)
                    self.serve(self.workers[connection], stopping)
            if stopping:
                raise StopRequested
        finally:
            for worker in self.workers.values():
                worker.process.kill()
                worker.process.wait()

    def serve(self, worker: _Worker, stopping: bool) -> None:
        """Take one message of a worker, or its death."""
        try:
            message = worker.connection.recv()
        except (EOFError, ConnectionResetError):
            self.bury(worker, stopping)
            return
        if isinstance(message, Batch):
            self.take(worker, message)
        elif isinstance(message, Finished):
            worker.ready, worker.shard, self.fruitless = True, None, 0
            if not stopping:
                self.assign(worker)
        elif isinstance(message, Failed):
            if message.fatal:
                raise message.error
            log.warning("worker %d: %s", worker.rank, message.error)
        else:
            level, name, text = message
            logging.getLogger(name).log(level, "worker %d: %s", worker.rank, text)

    def take(self, worker: _Worker, batch: Batch) -> None:
        self.sink(batch.staged, batch.rejections, batch.cost)
        assert worker.shard is not None
        lines = [item.row.utterance.line for item in batch.staged] + [item.line for item in batch.rejections]
        for line in lines:
            del worker.shard.left[line]

    def assign(self, worker: _Worker) -> None:
        """Give a worker the next shard, or let it go."""
        if not self.queue:
            self.tell(worker, None)
            return
        worker.shard = self.queue.popleft()
        self.tell(
            worker, Assignment(worker.shard.number, tuple(position for _, position in worker.shard.left.values()))
        )

    def tell(self, worker: _Worker, message: Assignment | None) -> None:
        try:
            worker.connection.send(message)
        except (BrokenPipeError, ConnectionResetError):
            return  # it is dead: the end of its connection says so next

    def bury(self, worker: _Worker, stopping: bool) -> None:
        """Forget an ended worker; give its work to another where it left any."""
        del self.workers[worker.connection]
        worker.connection.close()
        status = worker.process.wait()
        if worker.shard is None and worker.ready:
            return
        if stopping:
            return
        if not worker.ready:
            self.fruitless += 1
            if self.fruitless >= FRUITLESS_STARTS:
                raise HfprepError(f"worker processes end while starting (status {status}); see the lines above")
        log.warning("worker %d died (%s); another takes over its work", worker.rank, _cause(status))
        if worker.shard is not None and worker.shard.left:
            self.requeue(worker.shard, status)
        if self.queue:
            self.start_worker(worker.rank)

    def requeue(self, shard: _Shard, status: int) -> None:
        """Queue a shard again after a death, whole, in halves, or its last sample as a rejection."""
        shard.deaths += 1
        if shard.deaths < DEATHS_PER_SHARD:
            self.queue.appendleft(shard)
            return
        items = list(shard.left.items())
        if len(items) == 1:
            line, (sample_id, _) = items[0]
            message = f"the process that computed it died {shard.deaths} times ({_cause(status)})"
            rejection = Rejection(line, sample_id, Reason.COMPUTE_FAILED, message)
            self.sink([], [rejection], BatchCost(1, 0, 0, 0.0))
            return
        log.warning("a shard of %d samples killed %d workers; splitting it", len(items), shard.deaths)
        for half in (items[len(items) // 2 :], items[: len(items) // 2]):
            self.queue.appendleft(_Shard(self.next_number, dict(half), deaths=shard.deaths - 1))
            self.next_number += 1


def _cause(status: int) -> str:
    return f"signal {-status}" if status < 0 else f"status {status}"


def run_processes(
    spec: ExtractorSpec,
    plan: Plan,
    sink: Sink,
    *,
    work: Path,
    num_processes: int,
    stop: Callable[[], bool] = lambda: False,
) -> None:
    """Compute the pending rows of a plan with `num_processes` workers.

    Raises StopRequested once `stop()` is true, a worker's ConfigError, CheckpointError or StoreError, and whatever
    the sink raises.
    """
    positions = plan.pending_positions()
    pending = plan.dataset.select(positions).select_columns(["line", "id"])
    rows = [(row["line"], row["id"], position) for row, position in zip(pending, positions, strict=True)]
    shards = [
        _Shard(number, {line: (sample_id, position) for line, sample_id, position in part})
        for number, part in enumerate(cut_shards(rows))
    ]
    driver = _Driver(spec, plan.path, work, sink, deque(shards), next_number=len(shards))
    driver.run(num_processes, stop)


def threads_per_process(num_processes: int) -> int:
    """CPU threads for each of several processes on this machine."""
    return max(1, len(os.sched_getaffinity(0)) // num_processes)
