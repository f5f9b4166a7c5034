"""Examines chunks of lines in other processes: a single one would be bound by the GIL.

Provides `examine_in_processes`, for the planner, and `main`, which the processes run. A process that dies costs time
only: its chunk is examined here.
"""

import gc
import itertools
import logging
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import closing
from multiprocessing.connection import Connection

from hfprep.errors import HfprepError
from hfprep.pipeline.engines.pool import WorkerPool, WorkerProcess, code_of
from hfprep.pipeline.examining import Examined, Examiner, ExaminerSettings, Lines

log = logging.getLogger(__name__)

CHUNKS_PER_COLLECTION = 16  # there is almost no garbage in cycles
CODE = code_of("hfprep.pipeline.examining_processes")


def examine_in_processes(
    settings: ExaminerSettings, chunks: Iterable[Lines], count: int, examiner: Examiner
) -> Iterator[Examined]:
    """The results for these chunks, in order, from up to `count` processes; started when there are chunks for them.

    `examiner` takes the place of a process that has died. Raises StoreError as it does.
    """
    waiting: deque[tuple[Lines, WorkerProcess | None]] = deque()  # each process has one chunk, whose result it sends
    with WorkerPool(CODE) as pool:
        try:
            for chunk in chunks:
                if len(waiting) < count:
                    process: WorkerProcess | None = pool.take(len(waiting))
                    _tell(process, settings, chunk)
                    waiting.append((chunk, process))
                    continue
                found, process = _received(*waiting[0], examiner)
                _tell(process, chunk)
                waiting.popleft()
                waiting.append((chunk, process))
                yield found
            while waiting:
                yield _received(*waiting[0], examiner)[0]
                _end(waiting.popleft()[1])
        finally:
            for _, process in waiting:
                _end(process)


def _received(chunk: Lines, process: WorkerProcess | None, examiner: Examiner) -> tuple[Examined, WorkerProcess | None]:
    """The result for a chunk, and the process that examined it: None if it has died."""
    if process is None:
        return examiner.examine(chunk), None
    try:
        found = process.receive()
    except EOFError:
        message = "a process that reads the manifest ended with status %d; this one reads its lines"
        log.warning(message, process.end())
        return examiner.examine(chunk), None
    if isinstance(found, HfprepError):
        raise found
    assert isinstance(found, Examined)
    return found, process


def _tell(process: WorkerProcess | None, *messages: object) -> None:
    if process is not None:
        for message in messages:
            process.tell(message)


def _end(process: WorkerProcess | None) -> None:
    if process is not None:
        process.end()


def main(descriptor: int) -> None:
    """Examine chunks for the planner at the other end of the connection until it is gone."""
    connection = Connection(descriptor)
    gc.freeze()  # what was imported is not walked after each chunk
    gc.disable()
    try:
        with closing(Examiner(connection.recv())) as examiner:
            chunks = itertools.count(1)
            while True:
                chunk = connection.recv()
                try:
                    connection.send(examiner.examine(chunk))
                except HfprepError as error:
                    connection.send(error)
                del chunk
                if next(chunks) % CHUNKS_PER_COLLECTION == 0:
                    gc.collect()
    except (EOFError, BrokenPipeError, ConnectionResetError):
        sys.exit(1)  # the planner needs no more
