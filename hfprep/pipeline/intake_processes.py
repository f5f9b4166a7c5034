"""Decode and tokenize in worker processes: threads would have to share Python's lock with the one that feeds the GPU.

Decoding holds the lock for two milliseconds a clip, and a grammar for one for every two characters where there are
numbers to spell out. Gives `IntakeProcesses`, for an `Intake`. A fork server imports what is needed once, so that the
processes share its memory and start at once. For processes of hfprep's own only: a fork server loads the main module.
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
from hfprep.pipeline.collector import imports_left_out
from hfprep.pipeline.intake import Intake, IntakeSettings, Loaded, Task, expected_seconds, reject
from hfprep.recipes.base import TextEncoder
from hfprep.schema import Rejection

log = logging.getLogger(__name__)

Answer = TypeVar("Answer")

TRIES = 2
CRASHES = [-number for number in (signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGFPE, signal.SIGILL)]
DYING_SECONDS = 1.0  # that a crashed process may take to be gone, after its socket
# No thread of a library that a fork would leave behind.
ENVIRONMENT = {
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "JE_ARROW_MALLOC_CONF": "background_thread:false",
    "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
}


class _ProcessError(Exception):
    """A process has failed; `ended` is its exit status, 0 where there is none."""

    def __init__(self, ended: int) -> None:
        super().__init__(ended)
        self.ended = ended


class IntakeProcesses:
    """Loads samples in up to `count` processes that have a copy of `tokenizer`, each started when others are busy.

    Safe to call from several threads. A process that has ended is replaced. What these cannot do, because one was
    killed or the tokenizer's file has changed, is for the asker to do.
    """

    def __init__(self, tokenizer: TextEncoder | None, count: int) -> None:
        self._tokenizer = tokenizer
        self._changed = False  # the tokenizer's file, and so all ids that processes would give
        self._count = count
        self._context = fork_server(__name__)
        with contextlib.suppress(OSError):  # whoever asks first meets the same error
            forkserver.ensure_running()
        self._idle: LifoQueue[_Process | None] = LifoQueue()
        for _ in range(count):
            self._idle.put(None)

    def load(self, task: Task, settings: IntakeSettings) -> Loaded | tuple[Task, Rejection] | None:
        """What an `Intake` with these settings makes of a task; None where it has to be asked here.

        A sample at which two processes crash, one after the other, is rejected: here it would end the process.
        """
        ended = 0
        for _ in range(TRIES):
            if self._changed:
                return None
            try:
                return self._with_process(lambda process: process.load(task, settings), task.utterance.id)
            except _ProcessError as error:
                ended = error.ended
            if ended not in CRASHES:
                return None
        reason = Reason.AUDIO_UNREADABLE if task.with_audio else Reason.TEXT_FAILED
        how = signal.Signals(-ended).name
        return task, reject(task, reason, f"while reading {task.utterance.path}: the process crashed ({how}), twice")

    def expected_seconds(self, clips: Sequence[tuple[str, int | None]]) -> Sequence[float | None] | None:
        """What the function `expected_seconds` gives for these paths and sizes; None where it has to be asked here.

        All of them are as good as unreadable where a process crashes at one.
        """
        if self._changed:
            return None
        try:
            return self._with_process(lambda process: process.expected_seconds(clips), f"{len(clips)} headers")
        except _ProcessError as error:
            return [None] * len(clips) if error.ended in CRASHES else None

    def _with_process(self, ask: Callable[["_Process"], Answer], what: str) -> Answer:
        """What an idle process answers; raises _ProcessError where it fails."""
        process = self._idle.get()
        try:
            process = process or self.start()
            return ask(process)
        except Exception as error:
            log.warning("the process that loads %s failed (%s)", what, error)
            ended = 0 if process is None else process.close(DYING_SECONDS)
            process = None
            raise _ProcessError(ended) from error
        finally:
            self._idle.put(process)

    def close(self) -> None:
        """End the processes; to be called when no thread asks any more, and those who ask later start new ones."""
        for process in [self._idle.get() for _ in range(self._count)]:
            if process is not None:
                process.close()
            self._idle.put(None)

    def start(self) -> "_Process":
        """Another process. Raises OSError or EOFError where there is none, ValueError where its ids would differ."""
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
        """What it answers; raises OSError or EOFError where it does not."""
        self._connection.send(list(clips))
        answer: list[float | None] = self._answer()
        return answer

    def load(self, task: Task, settings: IntakeSettings) -> Loaded | tuple[Task, Rejection] | None:
        """What it answers; raises OSError or EOFError where it does not."""
        if settings is not self._settings:
            self._connection.send(settings)
            self._settings = settings
        self._connection.send(task)
        answer: Loaded | tuple[Task, Rejection] | None = self._answer()
        return answer

    def _answer(self) -> Any:
        """What it answers; what it says for the record on the way is logged here."""
        while isinstance(answer := self._connection.recv(), str):
            record.info("%s", answer)
        return answer

    def close(self, patience: float = 0.0) -> int:
        """End it, unless it does so by itself within `patience` seconds; gives its exit status."""
        self._connection.close()
        self.process.join(patience)
        self.process.kill()
        self.process.join()
        return self.process.exitcode or 0


def fork_server(module: str) -> ForkServerContext:
    """The process's fork server, which imports `module` and keeps to one thread, unless it is running already.

    Its environment is set below Python's own copy, which others may look at.
    """
    for name, value in ENVIRONMENT.items():
        os.putenv(name, value)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([module])
    return context


def _version(tokenizer: TextEncoder | None) -> str | None:
    """What two copies of a tokenizer must agree on to give the same ids."""
    return None if tokenizer is None else tokenizer.fingerprint()


def _serve(asker: Connection, tokenizer: TextEncoder | None) -> None:
    """Answer what comes in until the connection closes: a sample, a rejection, or that the asker has to find out by
    itself (None); for a list of clips, how long they are expected to be."""  # fmt: skip
    os.setsid()  # Ctrl-C and SIGTERM may go to the asker's whole group; what they mean is for the asker to decide
    torch.set_num_threads(1)
    record.setLevel(logging.INFO)
    record.propagate = False
    record.addHandler(_ForTheRecord(asker))
    intake: Intake | None = None
    with asker, imports_left_out(), contextlib.suppress(OSError, EOFError):  # whoever asked is gone
        asker.send(_version(tokenizer))
        while True:
            request = asker.recv()
            if isinstance(request, IntakeSettings):
                intake = Intake(tokenizer, request)
            elif isinstance(request, list):
                asker.send([expected_seconds(path, num_bytes) for path, num_bytes in request])
            else:
                asker.send(_answer(intake, request))


class _ForTheRecord(logging.Handler):
    """Sends lines to the asker, ahead of the answer."""

    def __init__(self, asker: Connection) -> None:
        super().__init__()
        self._asker = asker

    def emit(self, record: logging.LogRecord) -> None:
        with contextlib.suppress(OSError):  # whoever asked is gone
            self._asker.send(record.getMessage())


def _answer(intake: Intake | None, task: Task) -> Loaded | tuple[Task, Rejection] | None:
    try:
        return None if intake is None else intake.load(task)
    except Exception:  # noqa: BLE001 - the asker tries the same and meets the same error
        return None
