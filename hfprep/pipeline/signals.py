"""SIGINT and SIGTERM as stop requests, which a run checks between batches."""

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

log = logging.getLogger(__name__)


@dataclass
class StopSignals:
    """The signal that asked this run to stop, None if there was none."""

    signal: int | None = None


@contextmanager
def stop_on_signals() -> Iterator[StopSignals]:
    """Make SIGINT and SIGTERM ask the run to finish its batch and stop; a second SIGINT stops at once."""
    request = StopSignals()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return

    def note(number: int, _frame: FrameType | None) -> None:
        if request.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        request.signal = number
        log.warning("%s: finishing the batch in flight (Ctrl-C again stops at once)", signal.Signals(number).name)

    earlier = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield request
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)
