"""How a worker process ends when its driver does, whatever either is doing at the time.

The driver holds the writing end of a pipe and every worker reads the other: when the driver is gone, however it went,
the read returns and the process ends. Light to import, because a worker does this before anything else.
"""

import json
import os
import signal
import sys
import threading

ORPHANED = 3  # exit status of a worker whose driver went first


def hold(descriptor: int) -> None:
    """End this process as soon as the other end of the pipe is closed."""

    def wait() -> None:
        while os.read(descriptor, 4096):
            pass
        os._exit(ORPHANED)  # what is staged here is computed again; nothing needs to be put in order

    threading.Thread(target=wait, name="hfprep-lifeline", daemon=True).start()


def ignore_signals() -> None:
    """Leave Ctrl-C and SIGTERM to the driver: both may reach a whole group of processes, and the driver decides."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def start(lifeline: str, connection: str, search_path: str) -> None:
    """The first and only call of a worker process: be ended with the driver, see the driver's modules, then work."""
    ignore_signals()
    hold(int(lifeline))
    sys.path[:] = json.loads(search_path)
    from hfprep.pipeline.engines.worker import main

    main(int(connection))
