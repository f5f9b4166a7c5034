"""Samples loaded in other processes: the same arrays, the same rejections, and none lost with a process."""

import contextlib
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile

from hfprep.errors import Reason
from hfprep.inputs.text.tokenizer import TextTokenizer
from hfprep.pipeline.config import BuildConfig
from hfprep.pipeline.engines.choice import MANY_TEXTS, Job
from hfprep.pipeline.inputs import find_inputs
from hfprep.pipeline.intake import Intake, IntakeSettings, Loaded, SampleLimits, Task
from hfprep.pipeline.intake_processes import IntakeProcesses
from hfprep.pipeline.plan import PlanCounts
from hfprep.recipes.indextts import SemanticAudio
from hfprep.schema import Rejection, Utterance
from hfprep.store.layout import OutputFolder
from tests.av_files import encode, tone
from tests.sample_schemas import speech_schema

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
SCHEMA = speech_schema()
LIMITS = SampleLimits(schema=SCHEMA, min_frames=3, max_frames=300)
SETTINGS = IntakeSettings(limits=LIMITS, audio=SemanticAudio(), on_gpu=True)


@pytest.fixture
def tasks(tmp_path: Path) -> list[Task]:
    """A clip for each text, one too short and one too long, one damaged and one missing; one without audio."""
    noise = np.random.default_rng(5).standard_normal(200_000).astype(np.float32) / 10
    found = []
    for number, (text, language) in enumerate(TEXTS):
        path = tmp_path / f"{number}.wav"
        soundfile.write(path, noise[: {0: 900, 4: 200_000}.get(number, number * 20_000)], (24_000, 16_000)[number % 2])
        found.append(task_of(number, text, path, language))
    (tmp_path / "damaged.wav").write_bytes(b"RIFF" + bytes(100))
    found += [task_of(number, "x", tmp_path / name) for number, name in ((90, "damaged.wav"), (91, "missing.wav"))]
    return [*found, replace(found[1], need=SCHEMA.text_groups, with_audio=False)]


def task_of(number: int, text: str, path: Path, language: str | None = None) -> Task:
    return Task.of(SCHEMA, Utterance(number, f"clip-{number}", text, str(path), str(path), language=language))


@pytest.fixture
def processes() -> Iterator[IntakeProcesses]:
    opened = IntakeProcesses(TextTokenizer(MODEL), 2)
    yield opened
    opened.close()


@pytest.mark.parametrize(
    ("need", "pending", "workers", "expected"),
    [
        ({"text"}, MANY_TEXTS, 2, True),
        ({"text"}, MANY_TEXTS - 1, 2, False),
        ({"text"}, MANY_TEXTS, 1, False),
        ({"text", "codes"}, MANY_TEXTS, 2, False),
    ],
)
def test_many_texts_are_tokenized_in_processes(
    golden_small: Path, tmp_path: Path, need: set[str], pending: int, workers: int, expected: bool
) -> None:
    """In threads they would share one interpreter lock."""
    config = BuildConfig(
        manifest=golden_small / "manifest.jsonl", output_dir=tmp_path, models=golden_small / "checkpoints",
        workers=workers, device="cpu",
    )  # fmt: skip
    planned: Any = SimpleNamespace(counts=PlanCounts(need=need, pending=pending))
    unused: Any = None
    job = Job(
        config=config, inputs=find_inputs(config, OutputFolder(tmp_path)), plan=planned, staging=unused, sink=unused,
        watch=unused, work=tmp_path, stop=bool,
    )  # fmt: skip
    spec = job.spec(1)
    assert spec.loaders is expected
    if need == {"text"}:
        with contextlib.closing(spec.open()) as extractor:
            assert (extractor.intake.processes is not None) is expected


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of all processes that were started."""
    found: list[int] = []
    start = IntakeProcesses.start

    def noted(self: IntakeProcesses) -> Any:
        process = start(self)
        found.append(process.process.pid or 0)
        return process

    monkeypatch.setattr(IntakeProcesses, "start", noted)
    return found


class Deadly(str):
    """A path at which a process ends when it is sent there, as often as there is a mark left."""

    ending = "os.abort()"
    marks: tuple[str, ...] = ()

    def __reduce__(self) -> tuple[Callable[..., str], tuple[Any, ...]]:
        return _die_of, (str(self), self.ending, self.marks)


def _die_of(path: str, ending: str, marks: tuple[str, ...]) -> str:
    for mark in marks:
        if not os.path.exists(mark):
            open(mark, "w").close()
            {"os.abort()": os.abort, "os._exit(3)": lambda: os._exit(3)}[ending]()
    return path


def deadly(task: Task, folder: Path, times: int, ending: str = "os.abort()") -> Task:
    """The task with a path at which so many processes end."""
    path = Deadly(task.utterance.path)
    path.ending, path.marks = ending, tuple(str(folder / f"mark-{number}") for number in range(times))
    return replace(task, utterance=task.utterance._replace(path=path))


def alive(number: int) -> bool:
    return Path(f"/proc/{number}").exists()


def plain(found: Loaded | Rejection | None) -> object:
    """Something to compare."""
    if not isinstance(found, Loaded):
        return found
    arrays = (None if array is None else (array.dtype, array.tolist()) for array in (found.text_ids, found.audio))
    return found.task, *arrays, found.seconds


@pytest.mark.parametrize("waveforms", [True, False])
def test_samples_and_rejections_are_the_same_from_many_threads(
    started: list[int],
    processes: IntakeProcesses,
    tasks: list[Task],
    waveforms: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = replace(SETTINGS, on_gpu=waveforms)
    here = Intake(TextTokenizer(MODEL), settings)
    expected = [plain(here.load(task)) for task in tasks]
    reasons = [found.reason for found in expected if isinstance(found, Rejection)]
    assert {Reason.AUDIO_MISSING, Reason.AUDIO_UNREADABLE, Reason.AUDIO_TOO_SHORT, Reason.AUDIO_TOO_LONG} < {*reasons}
    assert len(reasons) < len(tasks) - 3
    monkeypatch.setattr("hfprep.pipeline.intake.load_sample", lambda *_: pytest.fail("loaded in this process"))
    there = Intake(TextTokenizer(MODEL), settings, processes)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda task: plain(there.load(task)), tasks * 3))
    assert found == expected * 3
    assert len(started) == 2
    server = int(Path(f"/proc/{started[0]}/stat").read_text().rpartition(")")[2].split()[1])
    assert len(list(Path(f"/proc/{server}/task").iterdir())) == 1  # or a fork would not be safe
    there.close()
    assert not any(map(alive, started))


def test_a_killed_process_loses_no_sample(
    started: list[int],
    processes: IntakeProcesses,
    tasks: list[Task],
    caplog: pytest.LogCaptureFixture,
) -> None:
    intake = Intake(TextTokenizer(MODEL), SETTINGS, processes)
    expected = plain(intake.load(tasks[2]))
    os.kill(started[0], signal.SIGKILL)
    assert plain(intake.load(tasks[2])) == expected
    assert "the process that loads clip-2 failed" in caplog.text
    assert len(started) == 1
    assert plain(intake.load(tasks[2])) == expected
    assert len(started) == 2  # another is there in its place


def test_a_killed_fork_server_loses_no_sample(
    started: list[int], processes: IntakeProcesses, tasks: list[Task]
) -> None:
    intake = Intake(TextTokenizer(MODEL), SETTINGS, processes)
    expected = plain(intake.load(tasks[2]))
    server = int(Path(f"/proc/{started[0]}/stat").read_text().rpartition(")")[2].split()[1])
    os.kill(server, signal.SIGKILL)
    assert plain(intake.load(tasks[2])) == expected  # its process still loads samples
    os.kill(started[0], signal.SIGKILL)
    for _ in range(3):  # here, or in a process of another fork server
        assert plain(intake.load(tasks[2])) == expected


@pytest.mark.parametrize("crashes", [1, 2])
def test_a_sample_at_which_processes_crash_is_rejected(
    started: list[int],
    tasks: list[Task],
    tmp_path: Path,
    crashes: int,
) -> None:
    """Here it would end the process; where only one of two crashes, it may have been for want of memory."""
    processes = IntakeProcesses(TextTokenizer(MODEL), 1)
    intake = Intake(TextTokenizer(MODEL), SETTINGS)
    task = deadly(tasks[2], tmp_path, crashes)
    found = processes.load([task], SETTINGS)[0]
    if crashes == 1:
        assert plain(found) == plain(intake.load(tasks[2]))
    else:
        assert isinstance(found, Rejection)
        assert found.reason is Reason.AUDIO_UNREADABLE
        assert "the process crashed twice (SIGABRT)" in found.message
        assert tasks[2].utterance.path in found.message
    assert isinstance(processes.load([tasks[3]], SETTINGS)[0], Loaded)
    assert len(started) == crashes + 1
    processes.close()


def test_a_crash_costs_no_other_sample_of_a_group(started: list[int], tasks: list[Task], tmp_path: Path) -> None:
    """The group's process and the two that then try the sample alone crash."""
    processes = IntakeProcesses(TextTokenizer(MODEL), 1)
    intake = Intake(TextTokenizer(MODEL), SETTINGS, processes)
    expected = [plain(Intake(TextTokenizer(MODEL), SETTINGS).load(task)) for task in tasks]
    found = intake.load_all([*tasks[:2], deadly(tasks[2], tmp_path, 3), *tasks[3:]])
    rejected = found.pop(2)
    assert isinstance(rejected, Rejection)
    assert "the process crashed twice (SIGABRT)" in rejected.message
    assert [plain(item) for item in found] == [*expected[:2], *expected[3:]]
    assert len(started) == 4
    processes.close()


def test_expected_lengths_are_those_of_the_headers(processes: IntakeProcesses, tasks: list[Task]) -> None:
    there = Intake(TextTokenizer(MODEL), SETTINGS, processes).expected_seconds(tasks)
    assert there == Intake(TextTokenizer(MODEL), SETTINGS).expected_seconds(tasks)
    assert there[:3] == [900 / 24_000, 20_000 / 16_000, 40_000 / 24_000]
    assert there[8:10] == [0.0, 0.0]  # damaged and missing: for loading to say
    stored = replace(tasks[1], utterance=tasks[1].utterance._replace(path="s3://there/clip.wav"), audio_bytes=32_000)
    assert Intake(TextTokenizer(MODEL), SETTINGS, processes).expected_seconds([stored]) == [2.0]  # a guess


def test_what_a_decoder_says_comes_with_the_file_s_name(
    processes: IntakeProcesses, tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level("INFO", logger="hfprep")
    path = tmp_path / "noisy.mp3"
    damaged = bytearray(encode(path, "mp3", "libmp3lame", tone(3, 16_000), 16_000).read_bytes())
    for place in np.random.default_rng(0).integers(1_000, len(damaged) - 10, 20):
        damaged[place] ^= 0x55
    path.write_bytes(damaged)
    assert isinstance(processes.load([task_of(1, "x", path)], SETTINGS)[0], Loaded)
    (seconds,) = processes.expected_seconds([(str(path), None)]) or ()
    assert seconds == pytest.approx(3, abs=0.1)
    assert caplog.messages
    assert all(message.startswith(f"{path}: the mp3 decoder says") for message in caplog.messages)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(("ending", "expected"), [("os.abort()", 0.0), ("os._exit(3)", 1.25)])
def test_lengths_are_unknown_where_a_process_crashes(
    started: list[int], tasks: list[Task], ending: str, expected: float, tmp_path: Path
) -> None:
    """Asked here the header would end the run; a process that ended in another way says nothing of the header."""
    processes = IntakeProcesses(TextTokenizer(MODEL), 1)
    task = deadly(tasks[1], tmp_path, 2, ending)
    assert Intake(TextTokenizer(MODEL), SETTINGS, processes).expected_seconds([task]) == [expected]
    assert isinstance(processes.load([tasks[3]], SETTINGS)[0], Loaded)
    assert len(started) == 2
    processes.close()


def test_an_interrupt_is_left_to_whoever_asks(
    started: list[int], processes: IntakeProcesses, tasks: list[Task]
) -> None:
    """It goes to a group of processes, in which these are not."""
    processes.load([tasks[2]], SETTINGS)
    assert os.getpgid(started[0]) != os.getpgid(0)
    assert isinstance(processes.load([tasks[2]], SETTINGS)[0], Loaded)
    assert len(started) == 1


def test_another_model_in_the_files_place_is_not_used(
    tmp_path: Path, golden_small: Path, tasks: list[Task], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "bpe.model"
    shutil.copyfile(MODEL, path)
    tokenizer = TextTokenizer(path)
    assert tokenizer.model_sha256 == TextTokenizer(MODEL).model_sha256  # the hash of what it has read
    shutil.copyfile(golden_small / "checkpoints" / "bpe.model", path)
    intake = Intake(tokenizer, SETTINGS, IntakeProcesses(tokenizer, 1))
    assert plain(intake.load(tasks[3])) == plain(Intake(TextTokenizer(MODEL), SETTINGS).load(tasks[3]))
    assert plain(intake.load(tasks[3])) != plain(Intake(TextTokenizer(path), SETTINGS).load(tasks[3]))
    monkeypatch.setattr(IntakeProcesses, "start", lambda _: pytest.fail("tried again"))
    assert isinstance(intake.load(tasks[3]), Loaded)
    intake.close()


def test_where_no_process_can_be_started_samples_are_loaded_here(
    tasks: list[Task], monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_process(*_: object, **__: object) -> None:
        raise OSError("no process")

    context = SimpleNamespace(Pipe=multiprocessing.Pipe, Process=no_process)
    monkeypatch.setattr("hfprep.pipeline.intake_processes.fork_server", lambda _: context)
    intake = Intake(TextTokenizer(MODEL), SETTINGS, IntakeProcesses(TextTokenizer(MODEL), 1))
    assert isinstance(intake.load(tasks[3]), Loaded)
    intake.close()


def test_other_threads_go_on_while_a_text_is_read(processes: IntakeProcesses, tasks: list[Task]) -> None:
    """Of a grammar in this process they would see nothing for as long as it takes."""
    processes.load([tasks[0]], SETTINGS)  # the process is there and has its grammar
    longest, last, done = 0.0, time.perf_counter(), threading.Event()
    text = "It cost $4.50 on May 5, 2021, and $5.60 the day after. " * 4
    long = Task.of(SCHEMA, tasks[0].utterance._replace(text=text), SCHEMA.text_groups)

    def read() -> None:
        processes.load([long], SETTINGS)
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


def test_they_end_with_whoever_asks() -> None:
    code = (
        "import os, signal, sys; from pathlib import Path; from hfprep.pipeline import intake_processes as module\n"
        "from hfprep.inputs.text.tokenizer import TextTokenizer\n"
        "p = module.IntakeProcesses(TextTokenizer(Path(sys.argv[1])), 1); q = p.start()\n"
        "os.kill(q.process.pid, 0); os.kill(os.getpid(), signal.SIGKILL)"
    )
    # Its standard error is the other processes', too, and so comes to its end when all are gone.
    command = [sys.executable, "-c", code, str(MODEL)]
    found = subprocess.run(command, capture_output=True, cwd=Path(__file__).parent.parent, check=False, timeout=120)
    assert found.returncode == -signal.SIGKILL, found.stderr
