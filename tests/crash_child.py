"""A real build in a child process of its own that dies, fails or is signalled where a test says.

Run as a program this is a fork server: it imports everything once, then forks one child for each request, so that a
trial costs what its build costs. A request is one line of JSON on standard input, an answer one line on standard
output. `CrashServer` is the test's side of it. Knows nothing of what a build should leave behind.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any

COLUMN_FOLDERS = ("text_ids", "codes", "condition", "spk_emb", "emo_vec")  # of every recipe that is killed


@dataclass(frozen=True, kw_only=True)
class Fault:
    """What happens to a child, and when: at the nth time a point is reached for a kind of file, or after a while.

    `do`: "kill" (SIGKILL), the name of another signal, or an errno name, which is raised there. `point` "" is any
    point, `kind` "" any file. Without `after_seconds` and `nth` nothing happens.
    """

    do: str = "kill"
    point: str = ""
    kind: str = ""
    nth: int = 0
    after_seconds: float | None = None


@dataclass(frozen=True)
class Ended:
    """How a child ended: exit status (negative: the signal), what it printed, and what it had begun to compute."""

    status: int
    stdout: str
    stderr: str
    computed: list[str]
    points: list[tuple[str, str]]
    seconds: float


class CrashServer:
    """Runs builds in children of the fork server; a context manager."""

    def __init__(self, folder: Path, golden: str = "golden-small") -> None:
        """`golden` is the set whose models the builds take, with two of the encoder's layers: they are loaded once."""
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._process = subprocess.Popen(
            [sys.executable, __file__, str(folder), golden],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )

    def __enter__(self) -> "CrashServer":
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=60)

    def run(self, arguments: Sequence[object], fault: Fault | None = None, **patches: Any) -> Ended:
        """One `hfprep` command with these arguments, in a fresh child."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        request = {"arguments": [str(word) for word in arguments], "fault": asdict(fault or Fault()), **patches}
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, "the fork server has ended"
        status, seconds = json.loads(answer)
        points = [(point, kind) for point, kind in (line.split("\t") for line in self._text("points").splitlines())]
        return Ended(
            status, self._text("stdout"), self._text("stderr"), self._text("computed").splitlines(), points, seconds
        )

    def _text(self, name: str) -> str:
        return (self.folder / name).read_text(encoding="utf-8")


def kind_of(output: str, path: str) -> str:
    """The kind of file that a point was reached for: a column, "stage", or the file's own name."""
    relative = os.path.relpath(path, output)
    first = relative.split(os.sep)[0]
    if first in COLUMN_FOLDERS:
        return first
    return "stage" if "work" in relative.split(os.sep) else relative


def _append(path: Path, text: str) -> None:
    """Opens the file each time: workers, which are forks, have no other descriptors of their driver."""
    with path.open("ab", buffering=0) as file:
        file.write(text.encode())


class _Saboteur:
    """Counts the points that are reached and does what the fault says at its place."""

    def __init__(self, output: str, fault: Fault, log: Path) -> None:
        self.output = output
        self.fault = fault
        self.reached: Counter[str] = Counter()
        self.log = log

    def observe(self, point: str, path: str) -> None:
        kind = kind_of(self.output, path)
        _append(self.log, f"{point}\t{kind}\n")
        fault = self.fault
        if fault.point in ("", point) and fault.kind in ("", kind) and fault.nth:
            self.reached["here"] += 1
            if self.reached["here"] == fault.nth:
                self.strike(path)

    def strike(self, path: str) -> None:
        do = self.fault.do
        if do == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif do.startswith("SIG"):
            os.kill(os.getpid(), getattr(signal, do))
        else:
            import errno

            number = getattr(errno, do)
            raise OSError(number, os.strerror(number), path)


@contextlib.contextmanager
def _into(path: Path, stream: Any) -> Iterator[None]:
    """Send a standard stream into a file, below Python's own buffers too."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
    os.dup2(descriptor, stream.fileno())
    yield


def _torn_appends() -> None:
    """Let appends reach the disk in two pieces, with a point in between."""
    from hfprep.io import atomic

    whole = atomic.write_all

    def in_two(descriptor: int, data: bytes) -> None:
        middle = len(data) // 2
        whole(descriptor, data[:middle])
        atomic.observe("mid-append", os.readlink(f"/proc/self/fd/{descriptor}"))
        whole(descriptor, data[middle:])

    atomic.write_all = in_two


def _log_computed(path: Path) -> None:
    """Note the id of every sample that the models begin to run over."""
    from hfprep.pipeline.observing import add_observer

    def note(moment: str, utterances: Sequence[Any]) -> None:
        if moment == "batch begins":
            _append(path, "".join(f"{utterance.id}\n" for utterance in utterances))

    add_observer(note)


def _limit_file_size(limit: int) -> None:
    """Let every write beyond so many bytes of a file fail with EFBIG, as a full disk would with ENOSPC."""
    import resource

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))


def _child(folder: Path, request: dict[str, Any]) -> int:
    from hfprep.cli import app as cli
    from hfprep.io import atomic

    arguments = request["arguments"]
    fault = Fault(**request["fault"])
    output = arguments[arguments.index("--output-dir") + 1]
    with _into(folder / "stdout", sys.stdout), _into(folder / "stderr", sys.stderr):
        atomic.set_observer(_Saboteur(output, fault, folder / "points").observe)
        _torn_appends()
        _log_computed(folder / "computed")
        if request.get("max_file_bytes"):
            _limit_file_size(request["max_file_bytes"])
        for name, code in request.get("patches", {}).items():
            exec(compile(code, name, "exec"), {})
        sys.argv = ["hfprep", *arguments]
        try:
            cli.main()
        except SystemExit as end:
            return int(end.code or 0)
        except BaseException:  # noqa: BLE001 - whatever it is, the test is told by status and trace
            traceback.print_exc()
            return 99
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
    return 0


def _warm_up(folder: Path, golden: Path) -> None:
    """One build in this process, so that its children need not import, open and fill caches again.

    Tokenizers and ids are kept for them, as the engine keeps models: these cost more than all that is tried here.
    """
    import functools
    import gc
    import logging

    import torch
    from typer.main import get_command
    from typer.testing import CliRunner

    from hfprep.cli import app as cli
    from hfprep.inputs.text.tokenizer import TextTokenizer
    from hfprep.pipeline import building
    from hfprep.recipes.indextts2 import recipe
    from hfprep.recipes.indextts25 import recipe as recipe25
    from hfprep.recipes.indextts25.text import TextEncoder

    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from tests.engines import limit_layers, one_worker_inline

    one_worker_inline(dict.__setitem__)
    torch.set_num_threads(1)
    limit_layers(2, setattr)
    recipe.TextTokenizer = functools.cache(recipe.TextTokenizer)  # type: ignore[misc,assignment]
    recipe25.TextEncoder = functools.cache(recipe25.TextEncoder)  # type: ignore[misc,assignment]
    for encoder in (TextTokenizer, TextEncoder):
        encoder.encode = functools.cache(encoder.encode)  # type: ignore[method-assign]
    files = [f"--manifest={golden}/manifest.jsonl", f"--models={golden}/checkpoints", f"--output-dir={folder}/warm"]
    done = CliRunner().invoke(cli.app, ["build", *files, "--workers=1"])
    assert done.exit_code == 0, done.output
    logging.getLogger().handlers.clear()  # they write to what is closed now
    # To make the commands, and to count what is frozen, would take each child 30 ms.
    cli.app = get_command(cli.app)  # type: ignore[assignment]
    building.imports_frozen = contextlib.nullcontext  # type: ignore[assignment]
    gc.collect()
    gc.freeze()  # children would copy every page that the collector looks at


def _serve(folder: Path, golden: Path) -> None:
    _warm_up(folder, golden)
    for line in sys.stdin:
        request = json.loads(line)
        for name in ("stdout", "stderr", "computed", "points"):
            (folder / name).write_bytes(b"")
        started = time.monotonic()
        pid = os.fork()
        if pid == 0:
            status = 98
            try:
                status = _child(folder, request)
            finally:
                os._exit(status)
        after = request["fault"]["after_seconds"]
        if after is not None:
            _kill_later(pid, after, request["fault"]["do"])
        _, code = os.waitpid(pid, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        answer = [os.waitstatus_to_exitcode(code), time.monotonic() - started]
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


def _kill_later(pid: int, seconds: float, do: str) -> None:
    number = signal.SIGKILL if do == "kill" else getattr(signal, do)

    def strike(_number: int, _frame: FrameType | None) -> None:
        with contextlib.suppress(ProcessLookupError):  # it may have just ended by itself
            os.kill(pid, number)

    signal.signal(signal.SIGALRM, strike)
    signal.setitimer(signal.ITIMER_REAL, seconds)


if __name__ == "__main__":
    _serve(Path(sys.argv[1]), Path(__file__).resolve().parent / sys.argv[2])
