"""Texts tokenized in other processes: the same ids, the same rejections, and no text lost with a process."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from hfprep.errors import RejectedSample
from hfprep.text import processes
from hfprep.text.processes import TokenizerProcesses
from hfprep.text.tokenizer import TextTokenizer

MODEL = Path(__file__).parent / "data" / "text-bpe.model"
TEXTS = [
    ("It cost $4.50 on May 5, 2021.", "en"),
    ("plain words", None),
    ("今天是2024年。", "zh"),
    ("ሰላም፡ለሁሉም።", "am"),
    ("こんにちは、世界\n", None),
    ("speaker 3:", "en"),
    ("half a character: \ud800", "en"),
    ("7" * 6000, "en"),
]


@pytest.fixture
def tokenizer() -> Iterator[TokenizerProcesses]:
    opened = TokenizerProcesses(TextTokenizer(MODEL), 2)
    yield opened
    opened.close()


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list["subprocess.Popen[bytes]"]:
    """Every process that was started."""
    found: list[subprocess.Popen[bytes]] = []
    start = processes._Process.__init__

    def noted(self: processes._Process, tokenizer: TextTokenizer, expected: str) -> None:
        start(self, tokenizer, expected)
        found.append(self._process)

    monkeypatch.setattr(processes._Process, "__init__", noted)
    return found


def outcome(encode: Callable[[str, str | None], object], text: str, language: str | None) -> object:
    try:
        return list(encode(text, language))  # type: ignore[call-overload]
    except RejectedSample as error:
        return error.reason, error.message


def test_ids_and_rejections_are_the_same_from_many_threads(
    tokenizer: TokenizerProcesses, started: list["subprocess.Popen[bytes]"], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = [outcome(TextTokenizer(MODEL).encode, *text) for text in TEXTS]
    monkeypatch.setattr(TextTokenizer, "encode", lambda *_: pytest.fail("read in this process"))
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda text: outcome(tokenizer.encode, *text), TEXTS * 3))
    assert found == expected * 3
    assert tokenizer.encode("one").dtype == "int32"
    assert len(started) == 2
    tokenizer.close()
    assert all(process.returncode is not None for process in started)


def test_a_killed_process_loses_no_text(
    tokenizer: TokenizerProcesses, started: list["subprocess.Popen[bytes]"], caplog: pytest.LogCaptureFixture
) -> None:
    expected = list(tokenizer.encode("one"))
    os.kill(started[0].pid, signal.SIGKILL)
    started[0].wait()
    assert list(tokenizer.encode("one")) == expected
    assert "has ended" in caplog.text
    assert list(tokenizer.encode("one")) == expected
    assert len(started) == 2  # and another is there in its place


def test_an_interrupt_is_left_to_whoever_asks(
    tokenizer: TokenizerProcesses, started: list["subprocess.Popen[bytes]"]
) -> None:
    tokenizer.encode("one")
    os.kill(started[0].pid, signal.SIGINT)
    tokenizer.encode("two")
    assert len(started) == 1
    assert started[0].poll() is None


def test_another_model_in_the_files_place_is_not_used(tmp_path: Path, golden_small: Path) -> None:
    path = tmp_path / "bpe.model"
    shutil.copyfile(MODEL, path)
    tokenizer = TokenizerProcesses(TextTokenizer(path), 1)
    shutil.copyfile(golden_small / "checkpoints" / "bpe.model", path)
    assert list(tokenizer.encode("It cost $4.50")) == list(TextTokenizer(MODEL).encode("It cost $4.50"))
    assert list(TextTokenizer(path).encode("It cost $4.50")) != list(TextTokenizer(MODEL).encode("It cost $4.50"))
    tokenizer.close()


def test_other_threads_go_on_while_a_text_is_read(tokenizer: TokenizerProcesses) -> None:
    """Of a grammar in this process they would see nothing for as long as it takes."""
    tokenizer.encode("one 1")  # the process is there and has its grammar
    longest, last, done = 0.0, time.perf_counter(), threading.Event()
    text = "It cost $4.50 on May 5, 2021, and $5.60 the day after. " * 4

    def read() -> None:
        tokenizer.encode(text)
        done.set()

    thread = threading.Thread(target=read)
    started = last
    thread.start()
    while not done.is_set():
        time.sleep(0.001)
        now = time.perf_counter()
        longest, last = max(longest, now - last), now
    thread.join()
    assert longest < (last - started) / 2


def test_it_ends_with_whoever_asks() -> None:
    code = (
        "import os, signal, sys; from pathlib import Path; from hfprep.text import processes\n"
        "t = processes.TokenizerProcesses(processes.TextTokenizer(Path(sys.argv[1])), 1); t.encode('one')\n"
        "os.kill(t._idle.queue[-1]._process.pid, 0); os.kill(os.getpid(), signal.SIGKILL)"
    )
    # Its standard error is the other process's, too, and so comes to its end when both are gone.
    command = [sys.executable, "-c", code, str(MODEL)]
    found = subprocess.run(command, capture_output=True, cwd=Path(__file__).parent.parent, check=False, timeout=30)
    assert found.returncode == -signal.SIGKILL, found.stderr
