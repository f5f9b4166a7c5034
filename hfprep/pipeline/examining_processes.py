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
    waiting: deque[tuple[Lines, WorkerProcess]] = deque()  # each process has one chunk, whose result it sends
    with WorkerPool(CODE) as pool:
        try:
            for chunk in chunks:
                found = None
                if len(waiting) < count:
                    process = pool.take(len(waiting))
                    process.tell(settings)
                else:
                    found, process = _received(*waiting[0], examiner), waiting[0][1]
                    waiting.popleft()
                process.tell(chunk)
                waiting.append((chunk, process))
                if found is not None:
                    yield found
            while waiting:
                yield _received(*waiting[0], examiner)
                waiting.popleft()[1].end()
        finally:
            for _, process in waiting:
                process.end()


def _received(chunk: Lines, process: WorkerProcess, examiner: Examiner) -> Examined:
    """The result for a chunk, which is examined here if its process has died."""
    if process.connection.closed:  # ended before
        return examiner.examine(chunk)
    try:
        found = process.receive()
    except EOFError:
        message = "a process that reads the manifest ended with status %d; this one reads its lines"
        log.warning(message, process.end())
        return examiner.examine(chunk)
    if isinstance(found, HfprepError):
        raise found
    assert isinstance(found, Examined)
    return found


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
