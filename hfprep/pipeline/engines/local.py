"""Workers on this machine: supervised processes, each with its own device, even if there is only one."""

import dataclasses
import logging
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from hfprep.pipeline.devices import cpu_count, gpu_count
from hfprep.pipeline.engines.driver import Died
from hfprep.pipeline.engines.messages import Assignment, Closed, Failed, LogLine, WorkerSetup
from hfprep.pipeline.engines.pool import WorkerPool, WorkerProcess
from hfprep.pipeline.engines.spec import ExtractorSpec
from hfprep.pipeline.engines.work_units import WorkUnit
from hfprep.pipeline.observing import in_hand
from hfprep.pipeline.precision_trial import Trial, TrialResult
from hfprep.schema import Features, Rejection
from hfprep.store.layout import PlannedRow

POLL_SECONDS = 0.5
EXIT_SECONDS = 10.0  # that a worker without a connection may take to exit: a thread of it may wait for a disk


def choose_num_processes(num_processes: int, device: str = "auto") -> int:
    """Processes for `--num-processes`: 0 is one per GPU if no specific device is given, else one."""
    return num_processes or (max(1, gpu_count()) if device in ("auto", "cuda") else 1)


def worker_device(device: str, rank: int) -> str:
    """Device of a worker: its rank modulo the number of GPUs, unless a specific device is given."""
    count = gpu_count() if device in ("auto", "cuda") else 0
    return f"cuda:{rank % count}" if count else device


def threads_per_process(num_processes: int) -> int:
    """CPU threads for each of several processes on this machine."""
    return max(1, cpu_count() // num_processes)


@dataclass(eq=False)
class LocalCrew:
    """Workers of a pool that compute one build; `plan` is its file, `folder` is for working data."""

    pool: WorkerPool
    spec: ExtractorSpec
    plan: Path
    folder: Path
    control: PlannedRow | None = None
    _closed: set[WorkerProcess] = field(default_factory=set)
    _at_work: dict[Connection, WorkerProcess] = field(default_factory=dict)

    def start(self, rank: int, *, prove: bool) -> WorkerProcess:
        worker = self.pool.take(rank)
        self._at_work[worker.connection] = worker
        worker.tell(
            WorkerSetup(
                spec=dataclasses.replace(self.spec, device=worker_device(self.spec.device, rank)),
                plan=self.plan,
                folder=self._folder_of(worker),
                control=self.control,
                prove=prove,
            )
        )
        return worker

    def tell(self, worker: WorkerProcess, message: Any) -> None:
        worker.tell(message)

    def wait(self) -> Sequence[tuple[WorkerProcess, Any]]:
        found: list[tuple[WorkerProcess, Any]] = []
        for connection in wait(list(self._at_work), timeout=POLL_SECONDS):
            assert isinstance(connection, Connection)
            worker = self._at_work[connection]
            try:
                message = worker.receive()
            except EOFError:
                message = self._read_death(worker)
            if isinstance(message, Closed):
                self._closed.add(worker)
            found.append((worker, message))
        return found

    def assignment(self, unit: WorkUnit) -> Assignment:
        return Assignment(unit.number, tuple(position for _, position in unit.left.values()))

    def staged(self, computed: Sequence[tuple[PlannedRow, Features]]) -> list[Any]:
        assert not computed  # these workers have staged everything
        return []

    def check(self, worker: WorkerProcess, rejection: Rejection) -> None:
        """Nothing to check: workers see the same files as the driver."""

    def close(self, worker: WorkerProcess) -> None:
        if self._at_work.pop(worker.connection, None) is None:
            return
        if worker in self._closed:
            self.pool.give_back(worker)
        else:
            worker.end()
        shutil.rmtree(self._folder_of(worker), ignore_errors=True)

    def _read_death(self, worker: WorkerProcess) -> Died:
        del self._at_work[worker.connection]
        folder, status = self._folder_of(worker), worker.end(EXIT_SECONDS)
        lines = in_hand(folder)
        shutil.rmtree(folder, ignore_errors=True)
        return Died(f"signal {-status}" if status < 0 else f"status {status}", lines)

    def _folder_of(self, worker: WorkerProcess) -> Path:
        return self.folder / f"worker_{worker.rank:02d}" / str(worker.process.pid)


def trial_in_worker(trial: Trial, pool: WorkerPool) -> TrialResult:
    """Compute some clips in one precision with a worker of the pool. Raises ConfigError and CheckpointError."""
    worker = pool.take(0)
    spec = dataclasses.replace(trial.spec, device=worker_device(trial.spec.device, 0))
    worker.tell(dataclasses.replace(trial, spec=spec))
    try:
        while isinstance(message := worker.receive(), LogLine):
            logging.getLogger(message.name).log(message.level, "%s", message.text)
    except EOFError:
        status = worker.end(EXIT_SECONDS)
        return TrialResult({}, problem=f"the process computing in this precision died (status {status})")
    if isinstance(message, Failed):
        worker.end()
        raise message.error
    pool.give_back(worker)
    assert isinstance(message, TrialResult)
    return message
