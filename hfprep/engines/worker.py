"""One worker process of the processes engine; `main` is its whole life.

Takes shards of the plan over a connection, computes them with the local engine's map, stages the arrays in its own
folder, and reports each batch. It never touches the final layout: a worker may die at any moment.
"""

import logging
import signal
import sys
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import datasets

from hfprep.engines.local import map_rows
from hfprep.engines.spec import BatchCost, ExtractorSpec, StopRequested, cost_of
from hfprep.errors import HfprepError
from hfprep.features import BatchResult, FeatureExtractor
from hfprep.records import Features, Rejection
from hfprep.store.layout import PlannedRow, Stage, Staged
from hfprep.store.writer import BackgroundWriter


@dataclass(frozen=True, slots=True)
class Assignment:
    """A shard of the plan: positions of rows in the plan's Arrow file."""

    shard: int
    rows: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Batch:
    """A computed and staged batch of a shard."""

    shard: int
    staged: list[Staged]
    rejections: list[Rejection]
    cost: BatchCost


@dataclass(frozen=True, slots=True)
class Finished:
    """A shard of which everything has been reported; None stands for "ready for the first one"."""

    shard: int | None


@dataclass(frozen=True, slots=True)
class Failed:
    """An error that ends the run (`fatal`) or only this process."""

    error: Exception
    fatal: bool


@dataclass(frozen=True, kw_only=True)
class WorkerSetup:
    """The first message to a worker."""

    spec: ExtractorSpec
    device: str
    plan: Path
    folder: Path


class _ForwardedLogs(logging.Handler):
    """Sends log records to the driver, which shows them."""

    def __init__(self, send: Any) -> None:
        super().__init__()
        self.send = send

    def emit(self, record: logging.LogRecord) -> None:
        self.send((record.levelno, record.name, record.getMessage()))


def main(descriptor: int) -> None:
    """Work for the driver at the other end of the connection until it says None or is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the driver decides
    connection = Connection(descriptor)
    try:
        _serve(connection)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        sys.exit(1)  # the driver is gone: what is staged here is computed again


def _serve(connection: Connection) -> None:
    setup: WorkerSetup = connection.recv()
    writer = BackgroundWriter()  # the one thread that sends, so that messages never mix
    logger = logging.getLogger("hfprep")
    logger.setLevel(logging.INFO)
    logger.addHandler(_ForwardedLogs(lambda message: writer.submit(lambda: connection.send(message))))
    datasets.disable_progress_bars()
    stage = Stage(setup.folder)
    try:
        extractor = setup.spec.open(setup.device)
        plan = datasets.Dataset.from_file(str(setup.plan))
        writer.submit(lambda: connection.send(Finished(None)))
        while (assignment := connection.recv()) is not None:
            _run_shard(assignment, plan, extractor, stage, writer, connection)
        writer.flush()
    except StopRequested:
        writer.flush()
    except HfprepError as error:
        writer.flush()
        connection.send(Failed(error, fatal=type(error).__name__ != "DeviceError"))


def _run_shard(
    assignment: Assignment,
    plan: datasets.Dataset,
    extractor: FeatureExtractor,
    stage: Stage,
    writer: BackgroundWriter,
    connection: Connection,
) -> None:
    counted = extractor.out_of_memory_events

    def deliver(computed: list[tuple[PlannedRow, Features]], rejections: list[Rejection], result: BatchResult) -> None:
        nonlocal counted
        seconds = sum(features.seconds or 0.0 for _, features in computed)
        cost = cost_of(result, seconds, extractor.out_of_memory_events - counted)
        counted = extractor.out_of_memory_events
        writer.submit(lambda: connection.send(Batch(assignment.shard, stage.write(computed), rejections, cost)))
        if connection.poll():  # the only message that can come in the middle of a shard is the one to stop
            raise StopRequested

    rows = plan.select(list(assignment.rows))
    map_rows(rows, extractor, deliver, cache_file=stage.folder / f"shard-{assignment.shard}.arrow")
    writer.submit(lambda: connection.send(Finished(assignment.shard)))
