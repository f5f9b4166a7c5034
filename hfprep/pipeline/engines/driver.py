"""The driver of all engines: assigns work units, publishes every reported batch, and survives its workers.

A worker that dies is replaced and its units are assigned again; the samples it had in hand are tried separately, until
the one that kills workers is found and rejected. A `Crew` decides where workers run.
"""

import logging
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from hfprep.errors import HfprepError, Reason, StopRequested
from hfprep.pipeline.breaker import Breaker, Unproven
from hfprep.pipeline.engines.messages import (
    Assignment,
    Batch,
    Closed,
    Failed,
    LogLine,
    Opened,
    Stop,
    Taken,
    Underway,
)
from hfprep.pipeline.engines.spec import NO_COST, Sink, Watcher
from hfprep.pipeline.engines.work_units import WorkQueue, WorkUnit
from hfprep.schema import Features, Rejection
from hfprep.store.layout import PlannedRow

log = logging.getLogger(__name__)

FAILED_STARTS = 5
DEATHS_WITHOUT_PROGRESS = 40  # in a row, without a computed sample in between: the samples are not at fault
UNITS_AT_A_TIME = 2  # per worker: the second is loaded while the first is computed
DIED = "died"  # the kind of failure


@dataclass(frozen=True, slots=True)
class Died:
    """The last message of a worker: how it ended, and which manifest lines it had in hand, if known."""

    cause: str
    in_hand: Collection[int] | None = None


class Crew(Protocol):
    """Runs workers somewhere and passes messages."""

    def start(self, rank: int, *, prove: bool) -> Any:
        """Start a worker, which loads its models; returns a key for it. With `prove` it computes a control first."""

    def tell(self, worker: Any, message: Any) -> None:
        """Send a message; ignored if the worker is dead."""

    def wait(self) -> Sequence[tuple[Any, Any]]:
        """Messages and their workers; `Died` is the last one of a worker. Waits only for a short time."""

    def assignment(self, unit: WorkUnit) -> Assignment:
        """The message that assigns a unit to a worker."""

    def staged(self, computed: Sequence[tuple[PlannedRow, Features]]) -> list[Any]:
        """Stage arrays that a batch contains."""

    def check(self, worker: Any, rejection: Rejection) -> None:
        """Raise ConfigError if a rejection shows that the worker's machine is not set up correctly."""

    def close(self, worker: Any) -> None:
        """Release a live worker: kept for another build if it has left this one, else ended."""


@dataclass(eq=False)
class _Worker:
    """A worker's key and its units; it computes the first one."""

    rank: int
    key: Any
    ready: bool = False
    units: list[WorkUnit] = field(default_factory=list)


@dataclass
class Driver:
    """Assigns units and receives batches until everything is computed."""

    crew: Crew
    queue: WorkQueue
    sink: Sink
    num_workers: int
    watch: Watcher
    has_control: bool = False
    breaker: Breaker = field(default_factory=Breaker)
    workers: dict[Any, _Worker] = field(default_factory=dict)
    failed_starts: int = 0
    deaths: int = 0
    last_error: str = ""

    def run(self, stop: Callable[[], bool]) -> None:
        """Run until every unit is done; raises StopRequested after the batches in flight if `stop()` becomes true."""
        stopping = False
        try:
            self.replenish()
            while self.busy(stopping):
                if stop() and not stopping:
                    stopping = True
                    for worker in self.workers.values():
                        self.crew.tell(worker.key, Stop())
                for key, message in self.crew.wait():
                    self.serve(self.workers[key], message, stopping)
            if stopping:
                raise StopRequested
            self.leave()
            if self.breaker.in_doubt and self.has_control:
                self.prove()
            self.accept(self.breaker.finish())
        finally:
            for key in list(self.workers):
                self.forget(key)

    def busy(self, stopping: bool) -> bool:
        """Whether there is work left to wait for."""
        return any(worker.units for worker in self.workers.values()) or (not stopping and bool(len(self.queue)))

    def leave(self) -> None:
        """Make every worker leave this build; those that do are kept for the next one."""
        for key, worker in list(self.workers.items()):
            if worker.ready:
                self.crew.tell(key, Stop(done=True))
            else:
                self.forget(key)
        while self.workers:
            for key, message in self.crew.wait():
                if isinstance(message, (Died, Closed)):
                    self.forget(key)
                elif isinstance(message, LogLine):
                    self.log(self.workers[key], message)

    def forget(self, key: Any) -> None:
        """Remove a worker."""
        del self.workers[key]
        self.crew.close(key)

    def prove(self) -> None:
        """Make a worker compute the control, once all others have left."""
        key = self.crew.start(0, prove=True)
        self.workers[key] = _Worker(0, key)
        while self.workers:
            for _, message in self.crew.wait():
                if isinstance(message, Opened) and message.works:
                    self.accept(self.breaker.take(computed=1, rejections=[]))
                if isinstance(message, (Opened, Died)):
                    self.forget(key)

    def replenish(self) -> None:
        """Start workers while there are more waiting units than idle workers."""
        idle = sum(not worker.units for worker in self.workers.values())
        taken = {worker.rank for worker in self.workers.values()}
        free = [rank for rank in range(self.num_workers) if rank not in taken]
        for rank in free[: max(0, len(self.queue) - idle)]:
            key = self.crew.start(rank, prove=self.has_control and self.breaker.in_doubt)
            self.workers[key] = _Worker(rank, key)
        for worker in self.workers.values():
            if worker.ready:
                self.assign(worker)

    def serve(self, worker: _Worker, message: Any, stopping: bool) -> None:
        """Handle a message of a worker, or its death."""
        match message:
            case Batch():
                self.take(worker, message, stopping)
            case Opened(works):
                worker.ready, self.failed_starts = True, 0
                if works:
                    self.accept(self.breaker.take(computed=1, rejections=[]))
                self.assign(worker, stopping)
            case Closed():
                worker.units = []  # asked to stop: the rest is left for the next run
            case Failed(error, fatal=True):
                raise error
            case Failed(error):
                self.last_error = str(error)
                log.warning("worker %d: %s", worker.rank, error)
            case LogLine():
                self.log(worker, message)
            case Underway():
                self.watch(worker.rank, message)
            case Died():
                self.handle_death(worker, message, stopping)

    def log(self, worker: _Worker, line: LogLine) -> None:
        """Log a message of a worker."""
        prefix = f"worker {worker.rank}: " if self.num_workers > 1 else ""
        logging.getLogger(line.name).log(line.level, "%s%s", prefix, line.text)

    def take(self, worker: _Worker, batch: Batch, stopping: bool) -> None:
        """Publish a batch, except samples that another worker has reported before; goes on after a unit's last one."""
        unit = next(unit for unit in worker.units if unit.number == batch.unit)
        lines = [row.utterance.line for row, _ in batch.computed] + [item.row.utterance.line for item in batch.staged]
        new = set(unit.report([*lines, *(item.line for item in batch.rejections)]))
        staged = [item for item in batch.staged if item.row.utterance.line in new]
        staged += self.crew.staged([item for item in batch.computed if item[0].utterance.line in new])
        rejections = [item for item in batch.rejections if item.line in new]
        for rejection in rejections:
            self.crew.check(worker.key, rejection)
        self.watch(worker.rank, None)
        self.sink(staged, self.breaker.take(computed=len(staged), rejections=rejections), batch.cost)
        if batch.awaited:
            self.crew.tell(worker.key, Taken())
        if staged:
            self.deaths, self.last_error = 0, ""
        if not unit.left:
            worker.units.remove(unit)
            self.assign(worker, stopping)

    def accept(self, rejections: Sequence[Rejection]) -> None:
        """Publish final rejections."""
        for rejection in rejections:
            self.sink([], [rejection], NO_COST)

    def assign(self, worker: _Worker, stopping: bool = False) -> None:
        """Assign a worker as many units as it may have."""
        while not stopping and len(self.queue) and len(worker.units) < UNITS_AT_A_TIME:
            if worker.units and (worker.units[-1].alone or self.queue.next_alone()):
                return
            unit = self.queue.take()
            worker.units.append(unit)
            self.crew.tell(worker.key, self.crew.assignment(unit))

    def handle_death(self, worker: _Worker, died: Died, stopping: bool) -> None:
        """Remove a dead worker and queue its unreported work for another one."""
        del self.workers[worker.key]
        self.watch(worker.rank, None)
        if stopping or (worker.ready and not worker.units):
            return
        log.warning("worker %d died (%s); another worker takes over its work", worker.rank, died.cause)
        self.failed_starts += not worker.ready
        self.deaths += 1
        if self.failed_starts >= FAILED_STARTS or self.deaths >= DEATHS_WITHOUT_PROGRESS:
            when = "while starting" if self.failed_starts >= FAILED_STARTS else "before computing anything"
            error = f"; its error: {self.last_error}" if self.last_error else "; their messages are in the log"
            raise HfprepError(
                f"workers keep dying {when} (the last with {died.cause}{error}). Check memory and devices (`hfprep "
                "doctor`), then run the same command again: finished work is kept"
            )
        for unit in reversed(worker.units):
            self.requeue(unit, died, only=len(worker.units) == 1)
        self.replenish()

    def requeue(self, unit: WorkUnit, died: Died, *, only: bool) -> None:
        """Queue the rest of a unit, or reject its last sample if that kills workers."""
        culprit = self.queue.give_back(unit, died.in_hand, only=only)
        if culprit is not None:
            message = f"the process computing it died {culprit.deaths} times ({died.cause})"
            if self.last_error:
                message += f": {self.last_error}"
            log.warning("sample %r kills its workers: %s", culprit.id, message)
            rejection = Unproven(culprit.line, culprit.id, Reason.COMPUTE_FAILED, message, DIED)
            self.accept(self.breaker.take(computed=0, rejections=[rejection]))
