"""Decodes and tokenizes in worker processes: threads would compete for the GIL with the thread that feeds the GPU.

Decoding holds the GIL for 2 ms per clip, and a grammar for 1 ms per two characters if there are numbers to verbalize.
Provides `IntakeProcesses`, for an `Intake`. A fork server imports modules once, so that the processes share its memory
and start fast. Only for hfprep's own worker processes, as a fork server imports the main module.
"""

import contextlib
import logging
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Sequence
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from queue import LifoQueue
from typing import Any, TypeVar

import torch

from hfprep.errors import Reason
from hfprep.io.record import record
from hfprep.io.words import count
from hfprep.pipeline.collector import imports_frozen
from hfprep.pipeline.intake import Intake, IntakeSettings, Loaded, Task, expected_seconds, reject
from hfprep.recipes.base import TextEncoder
from hfprep.schema import Rejection

log = logging.getLogger(__name__)

Answer = TypeVar("Answer")
Sample = Loaded | Rejection

TRIES = 2
CRASHES = [-number for number in (signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGFPE, signal.SIGILL)]
DYING_SECONDS = 1.0  # that a crashed process may take to exit after closing its socket
# No library threads, which would not survive a fork.
ENVIRONMENT = {
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "JE_ARROW_MALLOC_CONF": "background_thread:false",
    "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
}


class _ProcessError(Exception):
    """A process has failed; `status` is its exit status, 0 if there is none."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


class IntakeProcesses:
    """Loads samples in up to `count` processes with a copy of `tokenizer`, which are started when others are busy.

    Thread-safe. A process that has ended is replaced. If a process was killed or the tokenizer's file has changed, the
    caller has to load the sample itself.
    """

    def __init__(self, tokenizer: TextEncoder | None, count: int) -> None:
        self._tokenizer = tokenizer
        self._changed = False  # whether the tokenizer's file has changed, so that new processes would return other ids
        self._count = count
        self._context = fork_server(__name__)
        with contextlib.suppress(OSError):  # the first request raises the same error
            forkserver.ensure_running()
        self._idle: LifoQueue[_Process | None] = LifoQueue()
        for _ in range(count):
            self._idle.put(None)

    def load(self, tasks: Sequence[Task], settings: IntakeSettings) -> list[Sample | None]:
        """Load tasks in one process as an `Intake` with these settings does; None for those the caller has to load.

        A sample that crashes two processes, one after another, is rejected: it would crash this process, too.
        """
        what = tasks[0].utterance.id if len(tasks) == 1 else count(len(tasks), "sample")
        status = 0
        for _ in range(TRIES if len(tasks) == 1 else 1):
            if self._changed:
                return [None] * len(tasks)
            try:
                return self._with_process(lambda process: process.load(tasks, settings), what)
            except _ProcessError as error:
                status = error.status
            if status not in CRASHES:
                return [None] * len(tasks)
        if len(tasks) > 1:
            return [sample for task in tasks for sample in self.load([task], settings)]
        (task,) = tasks
        reason = Reason.AUDIO_UNREADABLE if task.with_audio else Reason.TEXT_FAILED
        how = signal.Signals(-status).name
        return [reject(task, reason, f"while reading {task.utterance.path}: the process crashed twice ({how})")]

    def expected_seconds(self, clips: Sequence[tuple[str, int | None]]) -> Sequence[float | None] | None:
        """`expected_seconds` of these paths and sizes; None if the caller has to compute it.

        If a process crashes on one of them, all count as unreadable.
        """
        if self._changed:
            return None
        try:
            return self._with_process(lambda process: process.expected_seconds(clips), f"{len(clips)} headers")
        except _ProcessError as error:
            return [None] * len(clips) if error.status in CRASHES else None

    def _with_process(self, ask: Callable[["_Process"], Answer], what: str) -> Answer:
        """The answer of an idle process; raises _ProcessError if it fails."""
        process = self._idle.get()
        try:
            process = process or self.start()
            return ask(process)
        except Exception as error:
            log.warning("the process that loads %s failed (%s)", what, error)
            status = 0 if process is None else process.close(DYING_SECONDS)
            process = None
            raise _ProcessError(status) from error
        finally:
            self._idle.put(process)

    def close(self) -> None:
        """End the processes. Call it when no thread uses them; later calls start new ones."""
        for process in [self._idle.get() for _ in range(self._count)]:
            if process is not None:
                process.close()
            self._idle.put(None)

    def start(self) -> "_Process":
        """Start a process. Raises OSError or EOFError if that fails, ValueError if its ids would differ."""
        ours, theirs = self._context.Pipe()
        process = self._context.Process(target=_serve, args=(theirs, self._tokenizer), daemon=True)
        try:
            with theirs:
                process.start()
            started = _Process(process, ours)
            if ours.recv() != _version(self._tokenizer):
                self._changed = True
                started.close()
                raise ValueError("the tokenizer's file has changed")
            return started
        except BaseException:
            ours.close()
            raise


class _Process:
    """One process that loads samples."""

    def __init__(self, process: BaseProcess, connection: Connection) -> None:
        self.process = process
        self._connection = connection
        self._settings: IntakeSettings | None = None

    def expected_seconds(self, clips: Sequence[tuple[str, int | None]]) -> list[float | None]:
        """Its answer; raises OSError or EOFError if it has died."""
        self._connection.send(list(clips))
        answer: list[float | None] = self._answer()
        return answer

    def load(self, tasks: Sequence[Task], settings: IntakeSettings) -> list[Sample | None]:
        """Its answer; raises OSError or EOFError if it has died."""
        if settings is not self._settings:
            self._connection.send(settings)
            self._settings = settings
        self._connection.send(tuple(tasks))
        answer: list[Sample | None] = self._answer()
        return answer

    def _answer(self) -> Any:
        """Wait for its answer; messages for the build log that come before it are logged."""
        while isinstance(answer := self._connection.recv(), str):
            record.info("%s", answer)
        return answer

    def close(self, patience: float = 0.0) -> int:
        """End it, unless it ends by itself within `patience` seconds; returns its exit status."""
        self._connection.close()
        self.process.join(patience)
        self.process.kill()
        self.process.join()
        return self.process.exitcode or 0


def fork_server(module: str) -> ForkServerContext:
    """The process's fork server, which imports `module` and uses one thread, unless it is running already.

    Its environment is set with putenv, so that os.environ, which others may read, does not change.
    """
    for name, value in ENVIRONMENT.items():
        os.putenv(name, value)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([module])
    return context


def _version(tokenizer: TextEncoder | None) -> str | None:
    """Equal for tokenizers that return the same ids."""
    return None if tokenizer is None else tokenizer.fingerprint()


def _serve(client: Connection, tokenizer: TextEncoder | None) -> None:
    """Answer requests until the connection closes.

    To a tuple of tasks with a sample, a rejection or None (the client has to load it) for each; to a list of clips with
    their expected lengths.
    """
    os.setsid()  # signals may go to the client's whole process group, but only the client handles them
    torch.set_num_threads(1)
    record.setLevel(logging.INFO)
    record.propagate = False
    record.addHandler(_RecordForwarder(client))
    intake: Intake | None = None
    with client, imports_frozen(), contextlib.suppress(OSError, EOFError):  # the client is gone
        client.send(_version(tokenizer))
        while True:
            request = client.recv()
            if isinstance(request, IntakeSettings):
                intake = Intake(tokenizer, request)
            elif isinstance(request, list):
                client.send([expected_seconds(path, num_bytes) for path, num_bytes in request])
            else:
                client.send([_answer(intake, task) for task in request])


class _RecordForwarder(logging.Handler):
    """Sends log messages to the client, before the answer."""

    def __init__(self, client: Connection) -> None:
        super().__init__()
        self._client = client

    def emit(self, record: logging.LogRecord) -> None:
        with contextlib.suppress(OSError):  # the client is gone
            self._client.send(record.getMessage())


def _answer(intake: Intake | None, task: Task) -> Sample | None:
    try:
        return None if intake is None else intake.load(task)
    except Exception:  # noqa: BLE001 - the client loads it itself and gets the same error
        return None
