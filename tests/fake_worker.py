"""A worker process without models, which can be told to die of a sample: the driver's tests start it in its place.

`Orders` travel where the extractor's spec would. Started by `start`, as the real one is; it loads nothing heavy.
"""

import json
import os
import signal
import sys
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from hfprep.pipeline.engines.lifeline import hold


@dataclass(frozen=True)
class Orders:
    """What workers do: lines they die of, the mark that makes the next of them die, an error to fail with at start."""

    device: str = "cpu"
    poison: tuple[int, ...] = ()
    die_once_at: tuple[tuple[int, str], ...] = ()
    error: Exception | None = None
    exit_at_start: int | None = None
    seconds_a_row: float = 0.0
    log_lines: int = 0
    payload: str = ""
    begun: str = ""  # a folder in which each row that is begun leaves a file; every batch is then awaited


def start(lifeline: str, connection: str, search_path: str) -> None:
    """The life of a fake worker."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    hold(int(lifeline))
    sys.path[:] = json.loads(search_path)
    from hfprep.pipeline.engines.messages import Failed, Finished, LogLine

    channel = Connection(int(connection))
    setup = channel.recv()
    orders = setup.spec
    if orders.exit_at_start is not None:
        sys.exit(orders.exit_at_start)
    if orders.error is not None:
        channel.send(Failed(orders.error, fatal=True))
        return
    setup.folder.mkdir(parents=True)
    (setup.folder / "staged").write_bytes(b"work in progress")
    channel.send(Finished(None))
    while (assignment := channel.recv()) is not None:
        for row in assignment.rows:
            for number in range(orders.log_lines):
                channel.send(LogLine(20, "hfprep.test", f"row {row}, line {number}"))
            _compute(channel, orders, assignment.shard, row, str(setup.folder))
            if orders.begun and channel.recv() is None:
                return
            if channel.poll():
                return
        channel.send(Finished(assignment.shard))


def _compute(channel: Connection, orders: Orders, shard: int, row: int, folder: str) -> None:
    """The row at position p stands on line p + 1 and has the id "row<p>"; its one file names the worker's folder."""
    from hfprep.pipeline.engines.messages import Batch
    from hfprep.store.layout import Staged

    line = row + 1
    if orders.begun:
        (Path(orders.begun) / str(row)).touch()
    time.sleep(orders.seconds_a_row)
    if line in orders.poison:
        os.kill(os.getpid(), signal.SIGKILL)
    for fatal_line, mark in orders.die_once_at:
        if line == fatal_line and not Path(mark).exists():
            Path(mark).touch()
            os.kill(os.getpid(), signal.SIGKILL)
    planned: Any = SimpleNamespace(utterance=SimpleNamespace(line=line, id=f"row{row}"))
    staged = Staged(planned, {"text_ids": folder + orders.payload}, {}, None)
    cost: Any = SimpleNamespace(rows=1)
    channel.send(Batch(shard, [staged], [], cost, awaited=bool(orders.begun)))
