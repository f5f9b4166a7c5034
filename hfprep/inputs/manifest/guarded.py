"""Strangers' tables, read in a separate process: a crash of the reader costs that process, and the table a row.

A reader of tables gives, besides its rows, the position before each part that it is about to read. Where its process
dies, the position says what killed it: a row group is tried again with our columns alone, and then left out with a
rejection that names it; what has no parts is left out from there on. Knows nothing of formats.
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
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

from hfprep.errors import ConfigError, HfprepError, Reason, RejectedSample, StoreError
from hfprep.inputs.manifest.field_map import FieldMap

MAX_MEMORY_BYTES = 16 << 30  # of what the reader allocates; a damaged length can ask for any number of bytes
MOST_ROWS = 1 << 32  # that are believed of a row group
# -P, and our own path: a file of a stranger's in the working directory must not be taken for a module.
COMMAND = (
    "import json, sys; sys.path[:] = json.loads(sys.stdin.buffer.readline()); "
    "from hfprep.inputs.manifest.guarded import serve; serve()"
)


@dataclass(frozen=True, slots=True)
class Position:
    """Where a reader is: the number of the file, of the part in it, rows before that, and rows in it.

    With `narrow` our own columns alone are read.
    """

    file: int = 0
    part: int = 0
    number: int = 0
    rows: int = 0
    narrow: bool = False


Row = dict[str, Any] | RejectedSample
Step = Position | tuple[int, Row]


class Guarded(ABC):
    """Work that is done in another process, since it may end it."""

    @abstractmethod
    def steps(self, start: Position) -> Iterator[Step]:
        """What it gives, from a position on. Raises ConfigError or StoreError."""


class GuardedTables(Guarded):
    """A source of rows whose `steps` run in another process."""

    where: str
    paths: tuple[Any, ...]
    fields: FieldMap

    @abstractmethod
    def steps(self, start: Position) -> Iterator[Step]:
        """Rows from a position on, and each position before what is there is read."""

    def lines(self) -> Iterator[tuple[int, Row]]:
        """Number and row of each row. Raises ConfigError where the tables cannot be read at all."""
        start, last = Position(), 0
        while start.file < len(self.paths):
            at = start
            try:
                for step in run(self, start):
                    if isinstance(step, Position):
                        at = step
                    elif step[0] > last:  # else it was given out before the process died
                        last = step[0]
                        yield step
                return
            except Died as error:
                if at.rows and not at.narrow:
                    start = replace(at, narrow=True)
                    continue
                yield last + 1, self._rejection(at, str(error))
                last += 1
                if at.rows:
                    number = max(last, at.number + at.rows)
                    start = Position(at.file, at.part + 1, number)
                else:
                    start = Position(at.file + 1, 0, last)

    def mapped(self, number: int, row: Row) -> Row:
        """A row under our names."""
        try:
            return row if isinstance(row, RejectedSample) else self.fields.apply(number, row)
        except RejectedSample as error:
            return error

    def _rejection(self, at: Position, problem: str) -> RejectedSample:
        what = f"row group {at.part} of {self.paths[at.file]}" if at.rows else str(self.paths[at.file])
        message = f"{what} is damaged: the process that read it {problem}; what is left of it is not read"
        return RejectedSample(Reason.INVALID_FIELD, message)


class Died(Exception):
    """The other process ended before its work did; the text says how."""


def run(work: Guarded, start: Position) -> Iterator[Step]:
    """The steps of some work, from another process. Raises Died, and what the work raised on purpose."""
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
                process.stdin.write(json.dumps(sys.path).encode() + b"\n" + pickle.dumps((work, start)))
            for line in answers:
                message = json.loads(line) if line.endswith(b"\n") else {}
                if "end" in message:
                    return
                if message:
                    yield _step(message)
            raise Died(_how(process.wait()))
        finally:
            process.kill()
            process.wait()


def _step(message: dict[str, Any]) -> Step:
    """What a line of the reading process says. Raises what it raised."""
    if "at" in message:
        return Position(**message["at"])
    if "config_error" in message:
        raise ConfigError(message["config_error"])
    if "store_error" in message:
        raise StoreError(message["store_error"])
    if "rejected" in message:
        reason, text = message["rejected"]
        return message["number"], RejectedSample(Reason(reason), text)
    return message["number"], message["row"]


def _how(status: int) -> str:
    if status >= 0:
        return f"ended with status {status}"
    with contextlib.suppress(ValueError):
        return f"crashed ({signal.Signals(-status).name})"
    return f"was ended by signal {-status}"


def serve() -> None:
    """Do the work that comes by stdin, and write one JSON object a step to the descriptor that is the argument."""
    with contextlib.suppress(ValueError, OSError):
        _, most = resource.getrlimit(resource.RLIMIT_DATA)
        limit = MAX_MEMORY_BYTES if most == resource.RLIM_INFINITY else min(most, MAX_MEMORY_BYTES)
        resource.setrlimit(resource.RLIMIT_DATA, (limit, most))
        resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the driver decides when to stop
    work, start = pickle.load(sys.stdin.buffer)  # noqa: S301 - the driver wrote it
    with open(int(sys.argv[1]), "wb", buffering=0) as answers, contextlib.suppress(BrokenPipeError):
        try:
            for step in work.steps(start):
                answers.write(json.dumps(_message(step)).encode() + b"\n")
            answers.write(b'{"end": true}\n')
        except ConfigError as error:
            answers.write(json.dumps({"config_error": str(error)}).encode() + b"\n")
        except HfprepError as error:
            answers.write(json.dumps({"store_error": str(error)}).encode() + b"\n")


def _message(step: Step) -> dict[str, Any]:
    if isinstance(step, Position):
        return {"at": asdict(step)}
    number, row = step
    if isinstance(row, RejectedSample):
        return {"number": number, "rejected": [row.reason.value, row.message]}
    return {"number": number, "row": row}
