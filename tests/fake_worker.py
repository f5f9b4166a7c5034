"""A worker process without models, which can be told to die of a sample: the driver's tests start it in its place.

`Orders` travel where the extractor's spec would.
"""

import os
import signal
import struct
import sys
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Orders:
    """What workers do: lines they die of, the mark that makes the next of them die, an error to fail with at start."""

    device: str = "cpu"
    poison: tuple[int, ...] = ()
    die_once_at: tuple[tuple[int, str], ...] = ()
    error: Exception | None = None
    fatal: bool = True
    works: bool = True  # whether the control is computed
    exit_at_start: int | None = None
    seconds_a_row: float = 0.0
    log_lines: int = 0
    payload: str = ""
    cut_off: bool = False  # whether they die while they are sending a message
    lingers: bool = False  # whether they only close the connection instead
    in_hand: bool = False  # whether rows are noted as they are begun
    begun: str = ""  # a folder in which each row that is begun leaves a file; every batch is then awaited


def main(connection: int) -> None:
    """The life of a fake worker."""
    channel = Connection(connection)
    while (setup := channel.recv()) is not None:
        _build(channel, setup)


def _build(channel: Connection, setup: Any) -> None:
    from hfprep.pipeline.engines.messages import Assignment, Closed, Failed, LogLine, Opened, Stop, Taken

    orders: Orders = setup.spec
    if orders.exit_at_start is not None:
        sys.exit(orders.exit_at_start)
    if orders.error is not None:
        channel.send(Failed(orders.error, fatal=orders.fatal))
        sys.exit()
    setup.folder.mkdir(parents=True)
    (setup.folder / "staged").write_bytes(b"work in progress")
    channel.send(Opened(works=setup.prove and orders.works))
    waiting: list[Any] = []

    def next_message() -> Any:
        return waiting.pop(0) if waiting else channel.recv()

    while isinstance(assignment := next_message(), Assignment):
        for row in assignment.rows:
            for number in range(orders.log_lines):
                channel.send(LogLine(20, "hfprep.test", f"row {row}, line {number}"))
            _compute(channel, orders, assignment.unit, int(row), str(setup.folder))
            while orders.begun and not isinstance(answer := channel.recv(), Taken):
                waiting.append(answer)
                if isinstance(answer, Stop):
                    break
            while channel.poll():
                waiting.append(channel.recv())
            if any(isinstance(message, Stop) for message in waiting):
                channel.send(Closed())
                return
    channel.send(Closed())


def _compute(channel: Connection, orders: Orders, unit: int, row: int, folder: str) -> None:
    """The row at position p stands on line p + 1 and has the id "row<p>"; its one file names the worker's folder."""
    from hfprep.pipeline.engines.messages import Batch
    from hfprep.store.layout import Staged

    line = row + 1
    if orders.begun:
        (Path(orders.begun) / str(row)).touch()
    time.sleep(orders.seconds_a_row)
    if orders.in_hand:
        np.array([line], np.int64).tofile(Path(folder) / "in-hand")
    if line in orders.poison:
        if orders.cut_off:
            os.write(channel.fileno(), struct.pack("!i", 1000) + b"the first of them")
        if orders.lingers:
            channel.close()
            time.sleep(100)
        os.kill(os.getpid(), signal.SIGKILL)
    for fatal_line, mark in orders.die_once_at:
        if line == fatal_line and not Path(mark).exists():
            Path(mark).touch()
            os.kill(os.getpid(), signal.SIGKILL)
    planned: Any = SimpleNamespace(utterance=SimpleNamespace(line=line, id=f"row{row}"))
    staged = Staged(planned, {"text_ids": folder + orders.payload}, {}, None)
    cost: Any = SimpleNamespace(rows=1)
    channel.send(Batch(unit, [], cost, [staged], awaited=bool(orders.begun)))
