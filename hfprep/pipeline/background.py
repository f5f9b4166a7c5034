"""Publishing in a thread of its own, in order: while the next batch computes, or before it does."""

import logging
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

log = logging.getLogger(__name__)

# With overlap one batch is written while others compute; no more wait, so that what a kill costs stays bounded.
WAITING_BATCHES = 1


class BackgroundWriter:
    """Runs jobs one after another in one thread; after a job has failed, every call here raises its error.

    With `overlap` a job may go on after `submit` has returned; without, it is done by then. Use from one thread.
    """

    def __init__(self, *, overlap: bool) -> None:
        self.overlap = overlap
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="hfprep-publish")
        self._jobs: deque[Future[None]] = deque()
        self._error: BaseException | None = None
        self._told = False

    def submit(self, job: Callable[[], None]) -> None:
        """Queue a job; waits while one is unfinished, so that memory and what a kill may cost stay bounded."""
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
        """Wait until everything queued is done, or dropped because a job before it failed."""
        self._thread.shutdown(wait=True)
        if self._error is not None and not self._told:
            log.error("%s", self._error)
            self._told = True

    def _run(self, job: Callable[[], None]) -> None:
        if self._error is not None:
            return  # what comes after a failed batch is not written: the disk may be full or gone
        try:
            job()
        except BaseException as error:  # noqa: BLE001 - raised again by `_raise`, in the thread that submits
            self._error = error

    def _raise(self) -> None:
        if self._error is not None:
            self._told = True
            raise self._error
