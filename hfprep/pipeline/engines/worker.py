"""A worker: models that stay loaded, and the loop that computes work units with them (`serve`).

The same loop runs in a process on this machine, in an actor of a cluster and, for debugging, in the calling process
(`Worker.work`). A worker never writes to the final layout, because it may die at any moment.
"""

import contextlib
import dataclasses
import itertools
import logging
import os
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pyarrow as pa

from hfprep.errors import HfprepError, StopRequested
from hfprep.pipeline.background import BackgroundWriter
from hfprep.pipeline.codebook import count_codes
from hfprep.pipeline.collector import imports_frozen
from hfprep.pipeline.engines.messages import (
    Assignment,
    Batch,
    Channel,
    Closed,
    Failed,
    LogLine,
    Opened,
    Stop,
    Taken,
    Underway,
    WorkerSetup,
)
from hfprep.pipeline.engines.spec import NO_COST, BatchCost, Models
from hfprep.pipeline.engines.spool import Spooled, spooled
from hfprep.pipeline.failures import DeviceError
from hfprep.pipeline.features import BatchResult
from hfprep.pipeline.intake import Task
from hfprep.pipeline.observing import InHand, observing
from hfprep.pipeline.plan import Plan, planned_row
from hfprep.pipeline.precision_trial import Trial
from hfprep.pipeline.underway import Watch, work_of
from hfprep.recipes.base import Layered
from hfprep.schema import Features
from hfprep.store.layout import PlannedRow

NextUnit = Callable[[bool], Assignment | None]


@dataclass(frozen=True, slots=True)
class _Row:
    """A row in progress: as it was planned, its unit, and its spool (which may have its clip)."""

    planned: PlannedRow
    unit: int
    spooled: Spooled


class Worker:
    """An extractor and its assigned rows."""

    def __init__(self, setup: WorkerSetup, models: Models, *, tell: Callable[[Underway], None] | None = None) -> None:
        control, schema = setup.control, setup.spec.model_set.schema
        self.extractor = setup.spec.open(
            models=models,
            control=None if control is None else Task.of(schema, control.utterance, setup.spec.need),
        )
        if tell is not None:
            self._watch(tell)
        self._models, self._seen = models, setup.spec.seen
        self._plan = None if setup.plan is None else Plan(setup.plan)
        self._rows: dict[int, _Row] = {}
        self._counted = 0
        self._spool = ExitStack()
        self._folder = setup.folder

    def close(self) -> None:
        """Stop the loaders, remove spooled clips, and release the model."""
        if self.extractor.watch is not None:
            self.extractor.watch.close()
        self.extractor.close()
        self._spool.close()

    def work(self, next_unit: NextUnit) -> Iterator[Batch]:
        """Compute units from `next_unit(wait)`; while one is computed, the next one is loaded.

        `next_unit` returns None if there is no more unit (with `wait`) or none yet (without).
        """
        with contextlib.closing(self.extractor.stream(self._feed(next_unit))) as results:
            for result in results:
                self._models.check_mapped(self._seen)  # before results are used
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
                parts = zip(itertools.repeat(assignment.unit), self._spooled(rows))
            unit, spooled_rows = part
            for planned, used in spooled_rows.pairs:
                self._rows[used.utterance.line] = _Row(planned, unit, spooled_rows)
            schema = self.extractor.schema
            return [Task.of(schema, used.utterance, used.need, used.audio.size) for _, used in spooled_rows.pairs]

        return feed

    def _watch(self, tell: Callable[[Underway], None]) -> None:
        """Report progress within a batch on a CPU, where it may take minutes."""
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

    def _spooled(self, rows: list[PlannedRow]) -> Generator[Spooled, None, None]:
        if self._folder is None:
            self._folder = Path(self._spool.enter_context(tempfile.TemporaryDirectory(prefix="hfprep-")))
        return spooled(rows, self._folder, self.extractor.schema.audio_groups)

    def _sorted(self, result: BatchResult) -> Iterator[Batch]:
        """A result by work unit, with the rows as they were assigned, not yet staged."""
        found: dict[int, Batch] = {}
        for task, outcome in result.outcomes:
            row = self._rows.pop(task.utterance.line)
            batch = found.setdefault(row.unit, Batch(row.unit, [], NO_COST))
            if isinstance(outcome, Features):
                batch.computed.append((row.planned, outcome))
            else:
                message = outcome.message.replace(task.utterance.path, row.planned.utterance.path)  # not the spool's
                batch.rejections.append(dataclasses.replace(outcome, message=message))
            row.spooled.release_one()
        for batch in found.values():
            features = [item for _, item in batch.computed]
            events = self.extractor.out_of_memory_events - self._counted
            self._counted += events
            cost = BatchCost(
                rows=len(features) + len(batch.rejections),
                num_frames=result.num_frames,
                padded_frames=result.padded_frames,
                audio_seconds=sum(item.seconds or 0.0 for item in features),
                out_of_memory_events=events,
                codes=count_codes(self.extractor.schema, features),
            )
            yield dataclasses.replace(batch, cost=cost)


class _Outbox:
    """Sends messages to the driver. Thread-safe."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._lock = threading.Lock()

    def send(self, message: Any) -> None:
        with self._lock:
            self._channel.send(message)


class _Inbox:
    """Messages from the driver; raises StopRequested on a request to stop."""

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
        """Process messages that have arrived meanwhile."""
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
        with contextlib.suppress(OSError):  # the driver is gone
            self.outbox.send(LogLine(record.levelno, record.name, record.getMessage()))


def main(descriptor: int) -> None:
    """Work for the driver at the other end of the connection until it sends None or is gone."""
    connection = Connection(descriptor)
    try:
        serve(connection)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        sys.exit(1)  # the driver is gone: staged samples are computed again
    os._exit(0)  # everything is reported; a normal exit with torch takes a second


def serve(channel: Channel) -> None:
    """Work for one build after another, with models that stay loaded, until the driver sends None."""
    outbox, models = _Outbox(channel), Models()
    with _logs_to(outbox), imports_frozen():
        while (request := channel.recv()) is not None:
            opened = False
            try:
                if isinstance(request, Trial):
                    outbox.send(request.run())
                    continue
                tell = None if request.folder is None else outbox.send  # on a cluster, each message is a request
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
    """Run one build and report every batch, on an accelerator while the next one computes."""
    awaited = not worker.extractor.looks_ahead
    inbox = _Inbox(channel)
    with ExitStack() as stack:
        writer = stack.enter_context(contextlib.closing(BackgroundWriter(overlap=not awaited)))
        stage = None
        if setup.folder is not None and setup.spec.staging is not None:
            stage = stack.enter_context(contextlib.closing(setup.spec.staging.open(setup.folder)))
            stack.enter_context(observing(InHand(setup.folder)))

        def report(batch: Batch) -> None:
            if stage is not None:
                batch = dataclasses.replace(batch, staged=stage.write(batch.computed), computed=[])
            outbox.send(dataclasses.replace(batch, awaited=awaited))

        with contextlib.suppress(StopRequested):
            for batch in worker.work(inbox.next_unit):
                writer.submit(partial(report, batch))
                if awaited:
                    inbox.wait_until_taken()
                inbox.look()
        writer.flush()
