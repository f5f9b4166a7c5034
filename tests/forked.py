"""A worker process as a fork of the process that asks for it, which has imported torch: a worker in no time."""

import contextlib
import logging
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from typing import Any, NoReturn


class Forked:
    """Runs `python -c CODE ARGUMENTS` in a fork of this process; it is used like a `subprocess.Popen`."""

    def __init__(self, arguments: Sequence[str], *, pass_fds: Sequence[int], **_: Any) -> None:
        here, there = os.pipe()
        self.returncode: int | None = None
        self._lock = threading.Lock()
        self.pid = os.fork()
        if self.pid == 0:
            _run(arguments, set(pass_fds), there)
        os.close(there)
        self.stderr = open(here, "rb")  # noqa: SIM115 - the pool closes it

    def poll(self) -> int | None:
        with self._lock:
            if self.returncode is None:
                pid, status = os.waitpid(self.pid, os.WNOHANG)
                self.returncode = os.waitstatus_to_exitcode(status) if pid else None
            return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        end = None if timeout is None else time.monotonic() + timeout
        while self.poll() is None:
            if end is not None and time.monotonic() >= end:
                raise subprocess.TimeoutExpired("a forked worker", timeout or 0.0)
            time.sleep(0.001)
        assert self.returncode is not None
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def forked(arguments: Sequence[str], **options: Any) -> Any:
    """A `Forked`, in the place of a `subprocess.Popen`."""
    return Forked(arguments, **options)


def _run(arguments: Sequence[str], kept: set[int], stderr: int) -> NoReturn:
    _, option, code, *rest = arguments
    status = 1
    try:
        assert option == "-c"
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(stderr, 2)
        for descriptor in map(int, os.listdir("/proc/self/fd")):
            if descriptor not in kept | {0, 1, 2}:
                with contextlib.suppress(OSError):  # that of the listing
                    os.close(descriptor)
        for logger in (logging.root, *logging.root.manager.loggerDict.values()):
            if isinstance(logger, logging.Logger):
                logger.handlers.clear()  # they write to what is closed now
        sys.argv = [option, *rest]
        exec(code, {"__name__": "__main__"})
        status = 0
    except SystemExit as end:
        status = int(end.code or 0)
    except BaseException:  # noqa: BLE001 - the driver logs it
        os.write(2, traceback.format_exc().encode())
    finally:
        os._exit(status)
