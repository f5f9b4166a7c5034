"""Publishes batches in order in a separate thread, during or before the computation of the next batch."""

import logging
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

log = logging.getLogger(__name__)

# With overlap, one batch is written while others compute. No more may wait, to limit how much a kill can lose.
WAITING_BATCHES = 1


class BackgroundWriter:
    """Runs jobs one after another in one thread; once a job has failed, every call raises its error.

    With `overlap` a job may still run when `submit` returns; without, it is done by then. Use from one thread.
    """

    def __init__(self, *, overlap: bool) -> None:
        self.overlap = overlap
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="hfprep-publish")
        self._jobs: deque[Future[None]] = deque()
        self._error: BaseException | None = None
        self._reported = False

    def submit(self, job: Callable[[], None]) -> None:
        """Queue a job; waits while one is unfinished, which limits memory and how much a kill can lose."""
        while len(self._jobs) >= WAITING_BATCHES:
            self._jobs.popleft().result()
        self._raise()
        self._jobs.append(self._thread.submit(self._run, job))
        if not self.overlap:
            self.flush()

    def flush(self) -> None:
        """Wait until everything queued is done."""
        while self._jobs:
            self._jobs.popleft().result()
        self._raise()

    def close(self) -> None:
        """Wait until all queued jobs are done, or dropped because an earlier one failed."""
        self._thread.shutdown(wait=True)
        if self._error is not None and not self._reported:
            log.error("%s", self._error)
            self._reported = True

    def _run(self, job: Callable[[], None]) -> None:
        if self._error is not None:
            return  # nothing is written after a failed batch: the disk may be full or gone
        try:
            job()
        except BaseException as error:  # noqa: BLE001 - raised again by `_raise`, in the thread that submits
            self._error = error

    def _raise(self) -> None:
        if self._error is not None:
            self._reported = True
            raise self._error
