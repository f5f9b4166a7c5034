"""One worker: models that stay open, and the loop that computes work units with them. `serve` is its whole life.

The same loop runs in a process of this machine, in an actor of a cluster and, for a debugger, in the calling process
(`Worker.work`). A worker never touches the final layout: it may die at any moment.
"""

import contextlib
import dataclasses
import itertools
import logging
import os
import sys
import tempfile
import threading
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pyarrow as pa

from hfprep.errors import HfprepError, StopRequested
from hfprep.pipeline.background import BackgroundWriter
from hfprep.pipeline.collector import imports_left_out
from hfprep.pipeline.engines.in_hand import InHand
from hfprep.pipeline.engines.messages import (
    Assignment,
    Batch,
    Channel,
    Closed,
    Failed,
    Finished,
    LogLine,
    Opened,
    Stop,
    Taken,
    Underway,
    WorkerSetup,
)
from hfprep.pipeline.engines.spec import NO_COST, BatchCost, Models, cost_of
from hfprep.pipeline.engines.spool import Spooled, by_its_own_name, spooled
from hfprep.pipeline.failures import DeviceError
from hfprep.pipeline.features import BatchResult
from hfprep.pipeline.intake import Task
from hfprep.pipeline.observing import observing
from hfprep.pipeline.plan import MappedRows, planned_row
from hfprep.pipeline.precision_trial import Trial
from hfprep.pipeline.underway import Watch, work_of
from hfprep.recipes.base import Layered
from hfprep.schema import Features, Rejection
from hfprep.store.layout import PlannedRow

NextUnit = Callable[[bool], Assignment | None]


@dataclass(frozen=True, slots=True)
class Computed:
    """A batch of a work unit: what was computed, what was rejected, what it cost."""

    unit: int
    computed: list[tuple[PlannedRow, Features]]
    rejections: list[Rejection]
    cost: BatchCost = NO_COST


@dataclass(frozen=True, slots=True)
class _Row:
    """A row being worked on: as it was planned, as it is read (its clip may lie in a spool), and where it belongs."""

    planned: PlannedRow
    unit: int
    spooled: Spooled


class Worker:
    """An extractor, and the rows that it has been given."""

    def __init__(self, setup: WorkerSetup, models: Models, *, tell: Callable[[Underway], None] | None = None) -> None:
        control, schema = setup.control, setup.spec.model_set.schema
        self.extractor = setup.spec.open(
            setup.device,
            models=models,
            control=None if control is None else Task.of(schema, control.utterance, setup.spec.need),
        )
        if tell is not None:
            self._watch(tell)
        self._models, self._seen = models, setup.spec.seen
        self._plan = None if setup.plan is None else MappedRows(setup.plan)
        self._rows: dict[int, _Row] = {}
        self._left: Counter[int] = Counter()
        self._counted = 0
        self._spool = ExitStack()
        self._folder = setup.folder

    def close(self) -> None:
        """End what loads samples, remove clips that were set out, and let go of the model."""
        if self.extractor.watch is not None:
            self.extractor.watch.close()
        self.extractor.close()
        self._spool.close()

    def work(self, next_unit: NextUnit) -> Iterator[Computed | Finished]:
        """Compute units as `next_unit(wait)` gives them; while one is computed the next one is being loaded.

        `next_unit` gives None where there is no unit: with `wait` for good, without it for now.
        """
        with contextlib.closing(self.extractor.stream(self._feed(next_unit))) as results:
            for result in results:
                self._models.check_mapped(self._seen)  # before anything is made of what was computed
                yield from self._sorted(result)

    def _feed(self, next_unit: NextUnit) -> Callable[[bool], list[Task] | None]:
        parts: Iterator[tuple[int, Spooled]] = iter(())

        def feed(wait: bool) -> list[Task] | None:
            nonlocal parts
            while (part := next(parts, None)) is None:
                assignment = next_unit(wait)
                if assignment is None:
                    return None
                rows = self._read(assignment)
                self._left[assignment.unit] = len(rows)
                parts = zip(itertools.repeat(assignment.unit), self._set_out(rows))
            unit, spooled_rows = part
            for planned, used in spooled_rows.pairs:
                self._rows[used.utterance.line] = _Row(planned, unit, spooled_rows)
            schema = self.extractor.schema
            return [Task.of(schema, used.utterance, used.need, used.audio.size) for _, used in spooled_rows.pairs]

        return feed

    def _watch(self, tell: Callable[[Underway], None]) -> None:
        """Tell how far a batch is, where a CPU computes it: there it may take minutes."""
        model: Any = self.extractor.model
        groups = self.extractor.schema.audio_groups
        if model is None or model.device.type != "cpu" or not isinstance(model, Layered):
            return

        def tell_work(tasks: Sequence[Task], share: float) -> None:
            rows = [self._rows[task.utterance.line].planned for task in tasks]
            tell(Underway(sum(work_of(row, groups) for row in rows), share))

        self.extractor.watch = Watch(model, tell_work)

    def _read(self, assignment: Assignment) -> list[PlannedRow]:
        if isinstance(assignment.rows, bytes):
            with pa.ipc.open_stream(assignment.rows) as stream:
                return [planned_row(row) for row in stream.read_all().to_pylist()]
        assert self._plan is not None
        return [planned_row(row) for row in self._plan.take(assignment.rows).to_pylist()]

    def _set_out(self, rows: list[PlannedRow]) -> Generator[Spooled, None, None]:
        if self._folder is None:
            self._folder = Path(self._spool.enter_context(tempfile.TemporaryDirectory(prefix="hfprep-")))
        return spooled(rows, self._folder, self.extractor.schema.audio_groups)

    def _sorted(self, result: BatchResult) -> Iterator[Computed | Finished]:
        """A result in the words of the rows that were assigned, and which units are finished with it."""
        found: dict[int, Computed] = {}
        for task, outcome in result.outcomes:
            row = self._rows.pop(task.utterance.line)
            batch = found.setdefault(row.unit, Computed(row.unit, [], []))
            if isinstance(outcome, Features):
                batch.computed.append((row.planned, outcome))
            else:
                batch.rejections.append(by_its_own_name(outcome, row.planned.utterance.path, task.utterance.path))
            row.spooled.one_is_done()
        for unit, batch in found.items():
            events = self.extractor.out_of_memory_events - self._counted
            self._counted += events
            features = [item for _, item in batch.computed]
            cost = cost_of(result, features, self.extractor.schema, events)
            rows = len(batch.computed) + len(batch.rejections)
            yield dataclasses.replace(batch, cost=dataclasses.replace(cost, rows=rows))
            self._left[unit] -= rows
            if not self._left[unit]:
                del self._left[unit]
                yield Finished(unit)


class _Outbox:
    """Sends messages to the driver, from any thread, one at a time."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._lock = threading.Lock()

    def send(self, message: Any) -> None:
        with self._lock:
            self._channel.send(message)


class _Inbox:
    """What the driver has said; raises StopRequested where it has said to stop."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._units: deque[Assignment] = deque()
        self._done = False

    def next_unit(self, wait: bool) -> Assignment | None:
        """The next unit; see `Worker.work`."""
        while not self._units and not self._done and (wait or self._channel.poll()):
            self._take(self._channel.recv())
        return self._units.popleft() if self._units else None

    def look(self) -> None:
        """Take what has come in meanwhile."""
        while self._channel.poll():
            self._take(self._channel.recv())

    def wait_until_taken(self) -> None:
        """Wait for the driver's answer to a batch."""
        while not isinstance(message := self._channel.recv(), Taken):
            self._take(message)

    def _take(self, message: Any) -> None:
        if isinstance(message, Assignment):
            self._units.append(message)
        elif isinstance(message, Stop):
            self._done = True
            if not message.done:
                raise StopRequested


class _ForwardedLogs(logging.Handler):
    """Sends log records to the driver, which shows them."""

    def __init__(self, outbox: _Outbox) -> None:
        super().__init__()
        self.outbox = outbox

    def emit(self, record: logging.LogRecord) -> None:
        with contextlib.suppress(OSError):  # the driver is gone, and with it whoever would read this
            self.outbox.send(LogLine(record.levelno, record.name, record.getMessage()))


def main(descriptor: int) -> None:
    """Work for the driver at the other end of the connection until it says None or is gone."""
    connection = Connection(descriptor)
    try:
        serve(connection)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        sys.exit(1)  # the driver is gone: what is staged here is computed again
    os._exit(0)  # everything is reported; taking torch and its threads down in order takes a second and gives nothing


def serve(channel: Channel) -> None:
    """Work for one build after the other, with models that stay loaded, until the driver says None."""
    outbox, models = _Outbox(channel), Models()
    with _logs_to(outbox), imports_left_out():
        while (request := channel.recv()) is not None:
            opened = False
            try:
                if isinstance(request, Trial):
                    outbox.send(request.run())
                    continue
                tell = None if request.folder is None else outbox.send  # a cluster asks for each message
                with contextlib.closing(Worker(request, models, tell=tell)) as worker:
                    outbox.send(Opened(works=request.prove and worker.extractor.works()))
                    opened = True
                    _work(worker, request, channel, outbox)
                outbox.send(Closed())
            except HfprepError as error:
                outbox.send(Failed(error, fatal=not opened or not isinstance(error, DeviceError)))
                return


@contextlib.contextmanager
def _logs_to(outbox: _Outbox) -> Iterator[None]:
    logger, handler = logging.getLogger("hfprep"), _ForwardedLogs(outbox)
    before = logger.level, logger.propagate
    logger.setLevel(logging.INFO)
    logger.propagate = False
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.level, logger.propagate = before


def _work(worker: Worker, setup: WorkerSetup, channel: Channel, outbox: _Outbox) -> None:
    """One build: report every batch, on an accelerator while the next one computes."""
    awaited = not worker.extractor.looks_ahead
    inbox = _Inbox(channel)
    with ExitStack() as stack:
        writer = stack.enter_context(contextlib.closing(BackgroundWriter(overlap=not awaited)))
        stage = None
        if setup.folder is not None and setup.spec.staging is not None:
            stage = stack.enter_context(contextlib.closing(setup.spec.staging.open(setup.folder)))
            stack.enter_context(observing(InHand(setup.folder)))

        def report(found: Computed | Finished) -> None:
            if isinstance(found, Finished):
                outbox.send(found)
                return
            staged = [] if stage is None else stage.write(found.computed)
            arrays = found.computed if stage is None else []
            outbox.send(Batch(found.unit, found.rejections, found.cost, staged, arrays, awaited))

        with contextlib.suppress(StopRequested):
            for found in worker.work(inbox.next_unit):
                writer.submit(lambda found=found: report(found))  # type: ignore[misc]
                if isinstance(found, Finished):
                    continue
                if awaited:
                    inbox.wait_until_taken()
                inbox.look()
        writer.flush()
