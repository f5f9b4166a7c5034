"""Reads untrusted tables in a separate process, so that a crash of the reader only costs that process.

Besides its rows, a reader reports its position before each part that it reads. If its process dies, that position shows
which part crashed it: a row group is tried again with only the columns that hfprep needs, and then skipped, with a
rejection that names it; a file without row groups is skipped from there on. Knows nothing about formats.
"""

import contextlib
import json
import os
import pickle
import resource
import signal
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

from hfprep.errors import ConfigError, HfprepError, Reason, RejectedSample, StoreError
from hfprep.inputs.manifest.field_map import FieldMap

MAX_MEMORY_BYTES = 16 << 30  # that the reader may allocate; a damaged length can request any number of bytes
MAX_ROWS = 1 << 32  # in a row group; a damaged file may claim more
# -P and an explicit path, so that an untrusted file in the working directory is not imported as a module.
COMMAND = (
    "import json, sys; sys.path[:] = json.loads(sys.stdin.buffer.readline()); "
    "from hfprep.inputs.manifest.guarded import serve; serve()"
)


@dataclass(frozen=True, slots=True)
class Position:
    """A reader's position: index of the file and of the part in it, number of rows before the part, and rows in it.

    With `narrow` only the columns that hfprep needs are read.
    """

    file: int = 0
    part: int = 0
    number: int = 0
    rows: int = 0
    narrow: bool = False


Row = dict[str, Any] | RejectedSample
Step = Position | tuple[int, Row]


class GuardedTables(ABC):
    """A source of rows whose `steps` are taken in another process, because reading may crash it."""

    where: str
    paths: tuple[Any, ...]
    fields: FieldMap

    @abstractmethod
    def steps(self, start: Position) -> Iterator[Step]:
        """Rows from a position on, and the position before each part is read. Raises ConfigError or StoreError."""

    def lines(self) -> Iterator[tuple[int, Row]]:
        """Number and content of each row. Raises ConfigError if the tables cannot be read at all."""
        start, last = Position(), 0
        while start.file < len(self.paths):
            at = start
            try:
                for step in run(partial(self.steps, start)):
                    if isinstance(step, Position):
                        at = step
                    elif step[0] > last:  # otherwise it was yielded before the process died
                        last = step[0]
                        yield step
                return
            except Died as error:
                if at.rows and not at.narrow:
                    start = replace(at, narrow=True)
                    continue
                last += 1
                yield last, self._rejection(at, str(error))
                if at.rows:
                    start = Position(at.file, at.part + 1, max(last, at.number + at.rows))
                else:
                    start = Position(at.file + 1, number=last)

    def mapped(self, number: int, row: Row) -> Row:
        """A row under hfprep's names."""
        try:
            return row if isinstance(row, RejectedSample) else self.fields.apply(number, row)
        except RejectedSample as error:
            return error

    def _rejection(self, at: Position, problem: str) -> RejectedSample:
        what = f"row group {at.part} of {self.paths[at.file]}" if at.rows else str(self.paths[at.file])
        message = f"{what} is damaged: the process that reads it {problem}; the rest of it is skipped"
        return RejectedSample(Reason.INVALID_FIELD, message)


class Died(Exception):
    """The other process ended before its work was done; the message says how."""


def run(steps: Callable[[], Iterator[Step]]) -> Iterator[Step]:
    """Steps that are taken in another process. Raises Died, and the ConfigError or StoreError that `steps` raises."""
    receiving, sending = os.pipe()
    with open(receiving, "rb") as answers:
        try:
            process = subprocess.Popen(
                [sys.executable, "-P", "-c", COMMAND, str(sending)],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                pass_fds=[sending],
            )
        finally:
            os.close(sending)
        try:
            assert process.stdin is not None
            with contextlib.suppress(BrokenPipeError), process.stdin:
                process.stdin.write(json.dumps(sys.path).encode() + b"\n" + pickle.dumps(steps))
            if not (yield from decoded(answers)):
                raise Died(_how(process.wait()))
        finally:
            process.kill()
            process.wait()


def encoded(steps: Callable[[], Iterator[Step]]) -> Iterator[bytes]:
    """Lines with one JSON object each: the steps, then their end, or the ConfigError or StoreError that ended them."""
    try:
        for step in steps():
            yield json.dumps(_message(step)).encode() + b"\n"
        yield b'{"end": true}\n'
    except HfprepError as error:
        message = {"error": str(error), "is_config": isinstance(error, ConfigError)}
        yield json.dumps(message).encode() + b"\n"


def decoded(lines: Iterable[bytes]) -> Generator[Step, None, bool]:
    """The steps in the lines of `encoded`; returns whether the lines are complete. Raises the error in them."""
    for line in lines:
        message = json.loads(line) if line.endswith(b"\n") else {}
        if "end" in message:
            return True
        if message:
            yield _step(message)
    return False


def _step(message: dict[str, Any]) -> Step:
    if "at" in message:
        return Position(**message["at"])
    if "error" in message:
        raise (ConfigError if message["is_config"] else StoreError)(message["error"])
    if "rejected" in message:
        reason, text = message["rejected"]
        return message["number"], RejectedSample(Reason(reason), text)
    return message["number"], message["row"]


def _how(status: int) -> str:
    if status >= 0:
        return f"ended with status {status}"
    with contextlib.suppress(ValueError):
        return f"crashed ({signal.Signals(-status).name})"
    return f"was killed by signal {-status}"


def serve() -> None:
    """Take the steps read from stdin, and write them, encoded, to the descriptor given as argument."""
    with contextlib.suppress(ValueError, OSError):
        _, most = resource.getrlimit(resource.RLIMIT_DATA)
        limit = MAX_MEMORY_BYTES if most == resource.RLIM_INFINITY else min(most, MAX_MEMORY_BYTES)
        resource.setrlimit(resource.RLIMIT_DATA, (limit, most))
        resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the driver decides when to stop
    steps = pickle.load(sys.stdin.buffer)  # noqa: S301 - the driver wrote it
    with open(int(sys.argv[1]), "wb", buffering=0) as answers, contextlib.suppress(BrokenPipeError):
        for line in encoded(steps):
            answers.write(line)


def _message(step: Step) -> dict[str, Any]:
    if isinstance(step, Position):
        return {"at": asdict(step)}
    number, row = step
    if isinstance(row, RejectedSample):
        return {"number": number, "rejected": [row.reason.value, row.message]}
    return {"number": number, "row": row}
