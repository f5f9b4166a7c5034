"""Publishing in the background, in order, while the next batch computes."""

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

WAITING_BATCHES = 2


class BackgroundWriter:
    """Runs jobs one after another in one thread; an error of a job is raised at the next call here."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="hfprep-publish")
        self._jobs: deque[Future[None]] = deque()

    def submit(self, job: Callable[[], None]) -> None:
        """Queue a job; waits while more than a few are queued, so that memory stays bounded."""
        while len(self._jobs) >= WAITING_BATCHES:
            self._jobs.popleft().result()
        self._jobs.append(self._thread.submit(job))

    def flush(self) -> None:
        """Wait until everything queued is done."""
        while self._jobs:
            self._jobs.popleft().result()

    def close(self) -> None:
        """Drop what has not begun (after an error), wait for what has."""
        self._thread.shutdown(wait=True, cancel_futures=True)
