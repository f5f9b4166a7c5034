"""Samples loaded in processes of their own, for threads that would have to share Python's lock.

Decoding holds the lock for two milliseconds a clip, and a grammar for one for every two characters where there are
numbers to spell out; meanwhile no other thread could keep a GPU busy. Gives `IntakeProcesses`, for an `Intake`.

One process imports what is needed, a quarter of a GB with torch, and then forks: the others share its memory and start
at once. It runs no other threads, so that forking is safe. Knows nothing of who asks.
"""

import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from multiprocessing import reduction
from multiprocessing.connection import Connection, Pipe
from queue import LifoQueue
from typing import Any, TypeVar

import numpy as np
import torch

from hfprep.errors import Reason
from hfprep.pipeline.intake import Intake, IntakeSettings, Loaded, Task, expected_seconds, reject
from hfprep.recipes.base import TextEncoder
from hfprep.schema import Rejection

log = logging.getLogger(__name__)

Answer = TypeVar("Answer")

CODE = (
    "import json, os, sys; sys.path[:] = json.loads(sys.argv[1])\n"
    # No thread of a library that a fork would leave behind.
    "os.environ.update(OPENBLAS_NUM_THREADS='1', OMP_NUM_THREADS='1', JE_ARROW_MALLOC_CONF='background_thread:false')\n"
    "from hfprep.pipeline.intake_processes import serve; serve(int(sys.argv[2]))"
)
TRIES = 2
CRASHES = [-number for number in (signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGFPE, signal.SIGILL)]
DYING_SECONDS = 1.0  # that a crashed process may take to be gone, after its socket
POLL_SECONDS = 0.01


class _ProcessError(Exception):
    """A process has failed; `ended` is its exit status, 0 where there is none."""

    def __init__(self, ended: int) -> None:
        super().__init__(ended)
        self.ended = ended


class IntakeProcesses:
    """Loads samples in up to `count` processes that know a tokenizer like `tokenizer`, each there when others are busy.

    Safe to call from several threads. A process that has ended is replaced. What these cannot do, because one was
    killed or the tokenizer's file has changed, is for the asker to do.
    """

    def __init__(self, tokenizer: TextEncoder | None, count: int) -> None:
        self._tokenizer = tokenizer
        self._count = count
        self._lock = threading.Lock()
        self._changed = False  # the tokenizer's file, and so all ids that processes would give
        self._parent: _Parent | None = None
        with contextlib.suppress(OSError):  # whoever asks first meets the same error
            self._parent = _Parent(tokenizer)
        self._idle: LifoQueue[_Process | None] = LifoQueue()
        for _ in range(count):
            self._idle.put(None)

    def load(self, task: Task, settings: IntakeSettings) -> Loaded | tuple[Task, Rejection] | None:
        """What an `Intake` with these settings makes of a task; None where it has to be asked here.

        A sample at which two processes crash, one after the other, is rejected: here it would end the run.
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
            process = process or self._start()
            return ask(process)
        except Exception as error:
            log.warning("the process that was to load %s has failed (%s)", what, error)
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
        with self._lock:
            if self._parent is not None:
                self._parent.close()
            self._parent = None

    def _start(self) -> "_Process":
        """Another process. Raises OSError or EOFError where there is none, ValueError where its ids would differ."""
        with self._lock:
            parent = self._parent = self._parent or _Parent(self._tokenizer)
        try:
            return parent.fork()
        except (OSError, EOFError, ValueError) as error:
            self._changed = isinstance(error, ValueError)
            with self._lock:
                if self._parent is parent:
                    self._parent = None
            parent.close()
            raise


class _Parent:
    """The process that forks. It ends by itself once nobody holds the other end of its socket; so do all others."""

    def __init__(self, tokenizer: TextEncoder | None) -> None:
        """Start it; raises OSError where that fails."""
        self._lock = threading.Lock()
        self._expected = _fingerprint(tokenizer)
        self._checked = False
        self._connection, theirs = Pipe()
        with theirs:
            end = theirs.fileno()
            arguments = [json.dumps(sys.path), str(end)]
            # Whatever a library has to say goes where errors go.
            self.process = subprocess.Popen(
                [sys.executable, "-c", CODE, *arguments], stdin=subprocess.DEVNULL, stdout=2, pass_fds=[end]
            )
        self._connection.send(tokenizer)

    def fork(self) -> "_Process":
        """Raises OSError or EOFError where it does not answer, ValueError where it has read another tokenizer."""
        ours, theirs = Pipe()
        try:
            with theirs, self._lock:
                if not self._checked:
                    if self._connection.recv() != self._expected:
                        raise ValueError("the tokenizer has changed")
                    self._checked = True
                self._connection.send(None)
                reduction.send_handle(self._connection, theirs.fileno(), self.process.pid)
                return _Process(self, self._connection.recv(), ours)
        except BaseException:
            ours.close()
            raise

    def end(self, number: int, patience: float) -> int:
        """End one of its processes, unless it does so by itself within `patience` seconds; gives its exit status."""
        try:
            with self._lock:
                self._connection.send((number, patience))
                return int(self._connection.recv())
        except (OSError, EOFError):
            return 0  # nobody knows: this process has ended, too, and with it all others will

    def close(self) -> None:
        self._connection.close()
        self.process.kill()
        self.process.wait()


class _Process:
    """One process that loads samples."""

    def __init__(self, parent: _Parent, number: int, connection: Connection) -> None:
        self.number = number
        self._parent = parent
        self._connection = connection

    def expected_seconds(self, clips: Sequence[tuple[str, int | None]]) -> list[float | None]:
        """What it answers; raises OSError or EOFError where it does not."""
        self._connection.send(list(clips))
        answer: list[float | None] = self._connection.recv()
        return answer

    def load(self, task: Task, settings: IntakeSettings) -> Loaded | tuple[Task, Rejection] | None:
        """What it answers; raises OSError or EOFError where it does not."""
        self._connection.send((task, settings))
        kind, answer = self._connection.recv()
        if kind == "rejected":
            return task, answer
        if kind == "loaded":
            text_ids, shape, seconds, num_frames = answer
            audio = None if shape is None else np.empty(shape, np.float32)
            if audio is not None:
                _fill(self._connection, audio)
            return Loaded(task, text_ids, audio, seconds, num_frames)
        return None

    def close(self, patience: float = 0.0) -> int:
        """End it, unless it does so by itself within `patience` seconds; gives its exit status."""
        self._connection.close()
        return self._parent.end(self.number, patience)


def _fingerprint(tokenizer: TextEncoder | None) -> str | None:
    return None if tokenizer is None else tokenizer.fingerprint()


def serve(end: int) -> None:
    """Fork and end processes as asked through the connection with this descriptor, until it closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the asker decides
    torch.set_num_threads(1)
    with Connection(end) as asker, contextlib.suppress(OSError, EOFError):  # whoever asked is gone
        tokenizer = asker.recv()
        asker.send(_fingerprint(tokenizer))
        while True:
            request = asker.recv()
            asker.send(_fork(asker, reduction.recv_handle(asker), tokenizer) if request is None else _end(*request))


def _fork(asker: Connection, descriptor: int, tokenizer: TextEncoder | None) -> int:
    number = os.fork()
    if number == 0:
        asker.close()
        try:
            _load_samples(descriptor, tokenizer)
        finally:
            os._exit(0)
    os.close(descriptor)
    return number


def _end(number: int, patience: float) -> int:
    deadline = time.monotonic() + patience
    found, status = os.waitpid(number, os.WNOHANG)
    while not found and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
        found, status = os.waitpid(number, os.WNOHANG)
    if not found:
        os.kill(number, signal.SIGKILL)
        _, status = os.waitpid(number, 0)
    return os.waitstatus_to_exitcode(status)


def _load_samples(descriptor: int, tokenizer: TextEncoder | None) -> None:
    """Answer what comes in until the connection closes: `loaded`, with the samples after the answer, or `rejected`, or
    that the asker has to find out by itself; for a list of clips, how long they are expected to be."""  # fmt: skip
    with Connection(descriptor) as asker, contextlib.suppress(OSError, EOFError):
        while True:
            request = asker.recv()
            if isinstance(request, list):
                asker.send([expected_seconds(path, num_bytes) for path, num_bytes in request])
                continue
            task, settings = request
            answer, audio = _answer(Intake(tokenizer, settings), task)
            asker.send(answer)
            if audio is not None:
                with open(asker.fileno(), "wb", closefd=False) as stream:
                    stream.write(np.ascontiguousarray(audio).data)


def _answer(intake: Intake, task: Task) -> tuple[tuple[str, Any], np.ndarray | None]:
    try:
        found = intake.load(task)
    except Exception:  # noqa: BLE001 - the asker tries the same and meets the same error
        return ("unknown", None), None
    if isinstance(found, tuple):
        return ("rejected", found[1]), None
    shape = None if found.audio is None else found.audio.shape
    return ("loaded", (found.text_ids, shape, found.seconds, found.num_frames)), found.audio


def _fill(source: Connection, array: np.ndarray) -> None:
    """Receive the bytes of an array where they belong: `recv_bytes_into` copies them twice, holding Python's lock."""
    rest = array.data.cast("B")
    while rest:
        received = os.readv(source.fileno(), [rest])
        if not received:
            raise EOFError
        rest = rest[received:]
