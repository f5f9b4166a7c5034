"""One worker process of the processes engine; `main` is its whole life.

Takes shards of the plan over a connection, computes them with the local engine's map, stages the arrays in its own
folder, and reports each batch. It never touches the final layout: a worker may die at any moment.
"""

import contextlib
import logging
import os
import sys
import threading
from multiprocessing.connection import Connection
from typing import Any

import datasets

from hfprep.errors import HfprepError, StopRequested
from hfprep.pipeline.background import BackgroundWriter
from hfprep.pipeline.engines.local import map_rows
from hfprep.pipeline.engines.messages import Assignment, Batch, Failed, Finished, LogLine, WorkerSetup
from hfprep.pipeline.engines.spec import cost_of
from hfprep.pipeline.failures import DeviceError
from hfprep.pipeline.features import BatchResult
from hfprep.schema import Features, Rejection
from hfprep.store.layout import PlannedRow


class _Outbox:
    """Sends messages to the driver, from any thread, one at a time."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._lock = threading.Lock()

    def send(self, message: Any) -> None:
        with self._lock:
            self._connection.send(message)


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
        _serve(connection, _Outbox(connection))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        sys.exit(1)  # the driver is gone: what is staged here is computed again


def _serve(connection: Connection, outbox: _Outbox) -> None:
    setup: WorkerSetup = connection.recv()
    logger = logging.getLogger("hfprep")
    logger.setLevel(logging.INFO)
    logger.propagate = False
    logger.addHandler(_ForwardedLogs(outbox))
    datasets.disable_progress_bars()
    try:
        worker = _Worker(setup, connection, outbox)
        outbox.send(Finished(None))
        with contextlib.suppress(StopRequested):
            while (assignment := connection.recv()) is not None:
                worker.compute(assignment)
        worker.writer.flush()
    except HfprepError as error:
        outbox.send(Failed(error, fatal=not isinstance(error, DeviceError)))
    os._exit(0)  # everything is reported; taking torch and its threads down in order takes a second and gives nothing


class _Worker:
    """A worker with its models open."""

    def __init__(self, setup: WorkerSetup, connection: Connection, outbox: _Outbox) -> None:
        self.connection = connection
        self.outbox = outbox
        self.extractor = setup.spec.open(setup.device)
        self.writer = BackgroundWriter(overlap=self.extractor.looks_ahead)
        self.plan = datasets.Dataset.from_file(str(setup.plan))
        self.folder = setup.folder
        self.stage = setup.spec.staging.open(setup.folder)
        self.counted = 0

    def compute(self, assignment: Assignment) -> None:
        """Compute a shard and report it batch by batch; raises StopRequested after a batch when told to stop."""

        def deliver(
            computed: list[tuple[PlannedRow, Features]], rejections: list[Rejection], result: BatchResult
        ) -> None:
            features, events = [item for _, item in computed], self.extractor.out_of_memory_events
            cost = cost_of(result, features, self.extractor.schema, events - self.counted)
            self.counted = events
            awaited = not self.extractor.looks_ahead
            self.writer.submit(
                lambda: self.outbox.send(Batch(assignment.shard, self.stage.write(computed), rejections, cost, awaited))
            )
            if awaited and self.connection.recv() is None:
                raise StopRequested
            if self.connection.poll():  # but for that answer, only the word to stop can come in the middle of a shard
                raise StopRequested

        mapped = self.folder / f"shard-{assignment.shard}.arrow"
        map_rows(self.plan.select(list(assignment.rows)), self.extractor, deliver, cache_file=mapped)
        mapped.unlink()
        self.writer.submit(lambda: self.outbox.send(Finished(assignment.shard)))
