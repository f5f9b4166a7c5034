"""Publishes batches in order in a separate thread, during or before the computation of the next batch."""

import logging
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

log = logging.getLogger(__name__)


class BackgroundWriter:
    """Runs jobs one after another in one thread; once a job has failed, every call raises its error and none runs.

    With `overlap` a job may still run when `submit` returns; without, it is done by then. Use from one thread.
    """

    def __init__(self, *, overlap: bool) -> None:
        self._overlap = overlap
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="hfprep-publish")
        self._last: Future[None] | None = None
        self._reported = False

    def submit(self, job: Callable[[], None]) -> None:
        """Start a job once the last one is done, which limits memory and how much a kill can lose."""
        self.flush()
        self._last = self._thread.submit(job)
        if not self._overlap:
            self.flush()

    def flush(self) -> None:
        """Wait until the last job is done."""
        if self._last is not None and (error := self._last.exception()) is not None:
            self._reported = True
            raise error

    def close(self) -> None:
        """Wait until the last job is done; an error that no call has raised is logged."""
        self._thread.shutdown(wait=True)
        error = None if self._last is None else self._last.exception()
        if error is not None and not self._reported:
            log.error("%s", error)
            self._reported = True
