"""Ends a worker process when its driver ends, whatever either is doing at the time.

The driver holds the write end of a pipe, and every worker reads from the other end: when the driver has ended for any
reason, the read returns and the worker exits. Light to import, because a worker does this first.
"""

import importlib
import json
import os
import signal
import sys
import threading

ORPHANED = 3  # exit status of a worker whose driver ended first


def hold(descriptor: int) -> None:
    """Exit this process as soon as the other end of the pipe is closed."""

    def wait() -> None:
        while os.read(descriptor, 4096):
            pass
        os._exit(ORPHANED)  # staged samples are computed again; no cleanup needed

    threading.Thread(target=wait, name="hfprep-lifeline", daemon=True).start()


def ignore_signals() -> None:
    """Ignore SIGINT and SIGTERM: they may reach the whole process group, but only the driver handles them."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def start(lifeline: str, connection: str, search_path: str, module: str) -> None:
    """The entry point of a worker process: tie it to the driver, use the driver's module path, then run `module`."""
    ignore_signals()
    hold(int(lifeline))
    sys.path[:] = json.loads(search_path)
    importlib.import_module(module).main(int(connection))
