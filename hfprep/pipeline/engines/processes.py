"""The engine of many processes on one machine, each with its own device.

The driver cuts the pending rows into shards, hands them out one by one, and makes every reported batch final. A
worker that dies is replaced and its shard given out again; a shard that keeps killing workers is split, down to the
sample that does it, which is rejected. Shards do not depend on the number of processes.
"""

import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, Pipe, wait
from pathlib import Path

import numpy as np
import torch

from hfprep.errors import HfprepError, Reason, StopRequested
from hfprep.pipeline.engines.messages import Assignment, Batch, Failed, Finished, LogLine, Published, WorkerSetup
from hfprep.pipeline.engines.shards import Shard, ShardQueue, cut
from hfprep.pipeline.engines.spec import BatchCost, ExtractorSpec, Sink
from hfprep.pipeline.planning import Plan
from hfprep.schema import Rejection

log = logging.getLogger(__name__)

# Not `-m`: the messages' classes must have the same module name at both ends.
WORKER_CODE = """
import sys
sys.path.insert(0, sys.argv.pop())
from hfprep.pipeline.engines.lifeline import start
start(*sys.argv[1:])
"""
PACKAGE_PARENT = Path(__file__).resolve().parents[3]
FRUITLESS_STARTS = 5
BARREN_DEATHS = 40  # in a row, without one sample computed between them: the fault is not in the samples
POLL_SECONDS = 0.5


def choose_num_processes(num_processes: int, device: str = "auto") -> int:
    """Processes for `--num-processes`: 0 is one for each GPU where the device is left open, else one."""
    return num_processes or (max(1, torch.cuda.device_count()) if device in ("auto", "cuda") else 1)


def worker_device(device: str, rank: int) -> str:
    """Device of a worker: its rank modulo the GPUs, unless one device was named."""
    if device not in ("auto", "cuda") or not torch.cuda.is_available():
        return device
    return f"cuda:{rank % torch.cuda.device_count()}"


def threads_per_process(num_processes: int) -> int:
    """CPU threads for each of several processes on this machine."""
    return max(1, len(os.sched_getaffinity(0)) // num_processes)


@dataclass
class _Worker:
    """A running process, the driver's end of its connection, its folder, and the shard it has."""

    rank: int
    process: "subprocess.Popen[bytes]"
    connection: Connection
    folder: Path
    shard: Shard | None = None
    ready: bool = False

    def tell(self, message: WorkerSetup | Assignment | Published | None) -> None:
        """Send a message. It never blocks: messages are far smaller than the buffer, and at most two are unread."""
        try:
            self.connection.send(message)
        except (BrokenPipeError, ConnectionResetError):
            return  # it is dead: the end of its connection says so next


@dataclass
class _Driver:
    """Hands out shards and takes in batches until nothing is left."""

    spec: ExtractorSpec
    plan: Path
    folder: Path
    sink: Sink
    queue: ShardQueue
    num_processes: int
    workers: dict[Connection, _Worker] = field(default_factory=dict)
    lifeline: tuple[int, int] = (-1, -1)
    fruitless: int = 0
    barren: int = 0

    def run(self, stop: Callable[[], bool]) -> None:
        """Work until every shard is done; raises StopRequested after the batches in flight once asked to stop."""
        self.lifeline = os.pipe()
        stopping = False
        try:
            self.replenish()
            while self.workers:
                if stop() and not stopping:
                    stopping = True
                    self.dismiss()
                for connection in wait(list(self.workers), timeout=POLL_SECONDS):
                    assert isinstance(connection, Connection)
                    self.serve(self.workers[connection], stopping)
            if stopping:
                raise StopRequested
        finally:
            for descriptor in self.lifeline:
                os.close(descriptor)
            for worker in self.workers.values():
                worker.process.kill()
                worker.process.wait()

    def replenish(self) -> None:
        """Start workers while shards wait for which no worker is there or on its way."""
        starting = sum(not worker.ready for worker in self.workers.values())
        taken = {worker.rank for worker in self.workers.values()}
        free = [rank for rank in range(self.num_processes) if rank not in taken]
        for rank in free[: max(0, len(self.queue) - starting)]:
            self.start_worker(rank)

    def start_worker(self, rank: int) -> None:
        here, there = Pipe()
        passed = [self.lifeline[0], there.fileno()]
        arguments = [*map(str, passed), json.dumps(sys.path), str(PACKAGE_PARENT)]
        process = subprocess.Popen(
            [sys.executable, "-c", WORKER_CODE, *arguments], pass_fds=passed, stdin=subprocess.DEVNULL
        )
        there.close()
        folder = self.folder / f"worker_{rank:02d}" / str(process.pid)
        worker = self.workers[here] = _Worker(rank, process, here, folder)
        device = worker_device(self.spec.device, rank)
        worker.tell(WorkerSetup(spec=self.spec, device=device, plan=self.plan, folder=folder))

    def dismiss(self) -> None:
        """Ask workers to stop after the batch in flight; those that have none are ended."""
        for worker in self.workers.values():
            if worker.shard is None:
                worker.process.kill()
            else:
                worker.tell(None)

    def serve(self, worker: _Worker, stopping: bool) -> None:
        """Take one message of a worker, or its death."""
        try:
            message = worker.connection.recv()
        except (EOFError, ConnectionResetError):
            self.bury(worker, stopping)
            return
        match message:
            case Batch():
                self.take(worker, message)
            case Finished():
                worker.ready, worker.shard, self.fruitless = True, None, 0
                if not stopping:
                    self.assign(worker)
            case Failed(error, fatal=True):
                raise error
            case Failed(error):
                log.warning("worker %d: %s", worker.rank, error)
            case LogLine(level, name, text):
                logging.getLogger(name).log(level, "worker %d: %s", worker.rank, text)

    def take(self, worker: _Worker, batch: Batch) -> None:
        assert worker.shard is not None
        self.sink(batch.staged, batch.rejections, batch.cost)
        if batch.awaited:
            worker.tell(Published())
        self.barren = 0
        worker.shard.report(item.row.utterance.line for item in batch.staged)
        worker.shard.report(item.line for item in batch.rejections)

    def assign(self, worker: _Worker) -> None:
        """Give a worker the next shard, or let it go."""
        if not len(self.queue):
            worker.tell(None)
            return
        shard = worker.shard = self.queue.take()
        worker.tell(Assignment(shard.number, tuple(position for _, position in shard.left.values())))

    def bury(self, worker: _Worker, stopping: bool) -> None:
        """Forget an ended worker and what it had not reported; give its work to another."""
        del self.workers[worker.connection]
        worker.connection.close()
        status = worker.process.wait()
        shutil.rmtree(worker.folder, ignore_errors=True)
        if stopping or (worker.ready and worker.shard is None):
            return
        log.warning("worker %d died (%s); another takes over its work", worker.rank, _cause(status))
        self.fruitless += not worker.ready
        self.barren += 1
        if self.fruitless >= FRUITLESS_STARTS or self.barren >= BARREN_DEATHS:
            when = "while starting" if self.fruitless >= FRUITLESS_STARTS else "before they have computed anything"
            raise HfprepError(
                f"worker processes keep dying {when} (the last with {_cause(status)}); their own messages are on "
                "stderr. See to memory and devices, then run the same command again: finished work is kept"
            )
        if worker.shard is not None:
            self.requeue(worker.shard, status)
        self.replenish()

    def requeue(self, shard: Shard, status: int) -> None:
        culprit = self.queue.give_back(shard)
        if culprit is not None:
            message = f"the process that computed it died {culprit.deaths} times ({_cause(status)})"
            rejection = Rejection(culprit.line, culprit.id, Reason.COMPUTE_FAILED, message)
            log.warning("sample %r is rejected: %s", culprit.id, message)
            self.sink([], [rejection], BatchCost(1, 0, 0, 0.0))


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

    Raises StopRequested once `stop()` is true, a worker's ConfigError, CheckpointError or StoreError, HfprepError
    where workers keep dying whatever they are given, and whatever the sink raises.
    """
    shards = cut(np.asarray(plan.pending_positions(), np.int64))
    driver = _Driver(spec, plan.path, work, sink, ShardQueue(shards, row_reader(plan)), num_processes)
    driver.run(stop)


def row_reader(plan: Plan) -> Callable[[Sequence[int] | np.ndarray], Iterable[tuple[int, str, int]]]:
    """A function that gives line, id and position of the plan's rows at these positions."""

    def read(positions: Sequence[int] | np.ndarray) -> Iterable[tuple[int, str, int]]:
        rows = plan.dataset.select_columns(["line", "id"])[[int(position) for position in positions]]
        return zip(rows["line"], rows["id"], (int(position) for position in positions), strict=True)

    return read
