"""Worker processes on this machine, started before there is work for them and kept between builds.

Provides `WorkerPool`. Light to import, so that the first worker can start its imports before the driver does.
"""

import contextlib
import json
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import IO, Any

log = logging.getLogger(__name__)


def code_of(module: str) -> str:
    """The program of a process that runs `main` of this module."""
    # Not `-m`: the messages' classes must have the same module name on both sides.
    return f"""
import sys
sys.path.insert(0, sys.argv.pop())
from hfprep.pipeline.engines.lifeline import start
start(*sys.argv[1:], {module!r})
"""


WORKER_CODE = code_of("hfprep.pipeline.engines.worker")
PACKAGE_PARENT = Path(__file__).resolve().parents[3]


@dataclass(frozen=True, eq=False)
class WorkerProcess:
    """A running worker and the driver's end of its connection."""

    rank: int
    process: "subprocess.Popen[bytes]"
    connection: Connection

    def tell(self, message: Any) -> None:
        """Send a message; waits only for a message that is larger than the buffer, which a build's are not."""
        with contextlib.suppress(OSError):  # dead, which reading reports or has just reported
            self.connection.send(message)

    def receive(self) -> Any:
        """Wait for its next message; raises EOFError if it has ended, also in the middle of a message."""
        try:
            return self.connection.recv()
        except OSError as error:
            raise EOFError(f"worker {self.rank}: {error}") from error

    def end(self, patience: float = 0.0) -> int:
        """End the process, unless it ends by itself within `patience` seconds; returns its exit status."""
        self.connection.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(patience)
        self.process.kill()
        return self.process.wait()


class WorkerPool:
    """Workers by rank, each for one build at a time; a context manager that ends them. All end with this process.

    `popen` starts a process, as `subprocess.Popen` does.
    """

    def __init__(
        self, code: str = WORKER_CODE, popen: "Callable[..., subprocess.Popen[bytes]]" = subprocess.Popen
    ) -> None:
        self._code = code
        self._popen = popen
        self._idle: dict[int, WorkerProcess] = {}
        self._lifeline: tuple[int, int] | None = None

    def prepare(self, count: int) -> None:
        """Start the first `count` workers, unless they exist already, for builds to take."""
        for rank in range(count):
            if rank not in self._idle:
                self._idle[rank] = self._start(rank)

    def take(self, rank: int) -> WorkerProcess:
        """The worker of a rank, started if it does not exist."""
        worker = self._idle.pop(rank, None)
        if worker is not None and worker.process.poll() is not None:
            worker.end()
            worker = None
        return worker or self._start(rank)

    def give_back(self, worker: WorkerProcess) -> None:
        """Keep a worker that has left its build for the next one."""
        self._idle[worker.rank] = worker

    def close(self) -> None:
        """End all idle workers."""
        for worker in self._idle.values():
            worker.end()
        self._idle.clear()
        if self._lifeline is not None:
            for descriptor in self._lifeline:
                os.close(descriptor)
            self._lifeline = None

    def __enter__(self) -> "WorkerPool":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start(self, rank: int) -> WorkerProcess:
        if self._lifeline is None:
            self._lifeline = os.pipe()
        here, there = Pipe()
        with there:
            passed = [self._lifeline[0], there.fileno()]
            arguments = [*map(str, passed), json.dumps(sys.path), str(PACKAGE_PARENT)]
            process = self._popen(
                [sys.executable, "-c", self._code, *arguments],
                pass_fds=passed,
                stdin=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
            )
        threading.Thread(target=_log_stderr, args=(rank, process.stderr), daemon=True).start()
        return WorkerProcess(rank, process, here)


def _log_stderr(rank: int, stderr: IO[bytes]) -> None:
    """Log what a worker and its libraries print to stderr, until it ends."""
    with stderr:
        for line in stderr:
            if words := line.decode("utf-8", "replace").strip():
                log.warning("worker %d: %s", rank, words)
