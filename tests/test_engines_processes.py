"""The driver of many processes, with light workers in the place of real ones."""

import dataclasses
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from multiprocessing.connection import Pipe
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from hfprep.errors import CheckpointError, HfprepError, Reason, StopRequested
from hfprep.pipeline.engines import processes, worker
from hfprep.pipeline.engines.messages import Assignment, Finished, Published, WorkerSetup
from hfprep.pipeline.engines.shards import Shard, ShardQueue
from hfprep.pipeline.features import BatchResult
from hfprep.pipeline.planning import rows_schema
from hfprep.schema import Rejection
from tests.fake_worker import Orders
from tests.sample_schemas import speech_schema

REPOSITORY = Path(__file__).resolve().parent.parent
FAKE_CODE = (
    f"import sys; sys.path[:0] = [{str(REPOSITORY)!r}]; from tests.fake_worker import start; start(*sys.argv[1:4])"
)


@dataclasses.dataclass
class Taken:
    """What reached the sink."""

    lines: list[int] = dataclasses.field(default_factory=list)
    rejections: list[Rejection] = dataclasses.field(default_factory=list)
    folders: list[str] = dataclasses.field(default_factory=list)

    def __call__(self, staged: list[Any], rejections: list[Rejection], cost: Any) -> None:
        self.lines += [item.row.utterance.line for item in staged]
        self.rejections += rejections
        self.folders += [item.files["text_ids"][:200] for item in staged]


def driver_of(orders: Orders, sink: Any, folder: Path, *, rows: int = 12, shard: int = 4, num: int = 2) -> Any:
    """A driver of fake workers over `rows` rows in shards of `shard`."""

    def read(positions: Any) -> list[tuple[int, str, int]]:
        return [(int(position) + 1, f"row{position}", int(position)) for position in positions]

    starts = range(0, rows, shard)
    shards = [Shard(number, range(start, min(rows, start + shard))) for number, start in enumerate(starts)]
    spec: Any = orders
    return processes._Driver(spec, folder / "plan", folder, sink, ShardQueue(shards, read), num)


@pytest.fixture(autouse=True)
def _light_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "WORKER_CODE", FAKE_CODE)


def never() -> bool:
    return False


def test_every_row_is_taken_once_and_nothing_is_left(tmp_path: Path) -> None:
    taken = Taken()
    driver_of(Orders(seconds_a_row=0.2), taken, tmp_path).run(never)
    assert sorted(taken.lines) == list(range(1, 13))
    assert {Path(folder).parent.name for folder in taken.folders} == {"worker_00", "worker_01"}
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_no_more_workers_than_shards(tmp_path: Path) -> None:
    taken = Taken()
    driver_of(Orders(), taken, tmp_path, rows=3, num=8).run(never)
    assert {Path(folder).parent.name for folder in taken.folders} == {"worker_00"}


def test_a_killed_worker_is_replaced_and_its_work_done_by_another(tmp_path: Path) -> None:
    marks = tuple((line, str(tmp_path / f"mark{line}")) for line in (2, 7, 12))
    taken = Taken()
    driver_of(Orders(die_once_at=marks), taken, tmp_path / "work").run(never)
    assert sorted(taken.lines) == list(range(1, 13))
    assert not taken.rejections


@pytest.mark.parametrize("num", [1, 3])
def test_poisonous_samples_are_found_and_rejected_and_nothing_else(tmp_path: Path, num: int) -> None:
    taken = Taken()
    driver_of(Orders(poison=(3, 9)), taken, tmp_path, num=num).run(never)
    assert sorted(taken.lines) == [line for line in range(1, 13) if line not in (3, 9)]
    assert sorted((found.line, found.id, found.reason) for found in taken.rejections) == [
        (3, "row2", Reason.COMPUTE_FAILED),
        (9, "row8", Reason.COMPUTE_FAILED),
    ]
    assert all("died 3 times (signal 9)" in found.message for found in taken.rejections)


def test_workers_that_die_whatever_they_get_end_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The fault is then in the machine: it would be wrong to reject sample after sample for it."""
    monkeypatch.setattr(processes, "BARREN_DEATHS", 10)
    taken = Taken()
    with pytest.raises(HfprepError, match="keep dying before they have computed anything"):
        driver_of(Orders(poison=tuple(range(1, 41))), taken, tmp_path, rows=40, shard=20).run(never)
    assert len(taken.rejections) <= 3


def test_workers_that_never_start_end_the_run(tmp_path: Path) -> None:
    with pytest.raises(HfprepError, match=r"keep dying while starting \(the last with status 7\)"):
        driver_of(Orders(exit_at_start=7), Taken(), tmp_path).run(never)


def test_a_workers_fatal_error_is_raised_here(tmp_path: Path) -> None:
    error = CheckpointError("gpt.pth lacks emo_layer.weight")
    with pytest.raises(CheckpointError, match="lacks emo_layer"):
        driver_of(Orders(error=error), Taken(), tmp_path).run(never)


def test_an_error_of_the_sink_ends_the_run_and_every_worker(tmp_path: Path) -> None:
    def sink(*_: object) -> None:
        raise OSError("disk full")

    driver = driver_of(Orders(), sink, tmp_path)
    with pytest.raises(OSError, match="disk full"):
        driver.run(never)
    assert all(worker.process.returncode is not None for worker in driver.workers.values())


def test_asked_to_stop_it_takes_what_is_in_flight_and_no_more(tmp_path: Path) -> None:
    taken = Taken()
    driver = driver_of(Orders(seconds_a_row=0.05), taken, tmp_path, rows=400, shard=100)
    with pytest.raises(StopRequested):
        driver.run(lambda: len(taken.lines) >= 5)
    assert 5 <= len(taken.lines) < 40
    assert len(set(taken.lines)) == len(taken.lines)
    assert not driver.workers


def test_an_awaited_batch_is_answered_when_it_is_final_and_not_before(tmp_path: Path) -> None:
    begun, taken = tmp_path / "begun", Taken()
    begun.mkdir()

    def slow(*batch: Any) -> None:
        time.sleep(0.1)  # the time in which a worker that does not wait would begin the next row
        taken(*batch)
        row = taken.lines[-1] - 1
        assert not (begun / str(row + 1)).exists() or (row + 1) % 4 == 0  # the first row of another worker's shard

    driver_of(Orders(begun=str(begun)), slow, tmp_path / "work").run(never)
    assert sorted(taken.lines) == list(range(1, 13))


def test_a_worker_that_waits_for_an_answer_can_be_stopped(tmp_path: Path) -> None:
    (tmp_path / "begun").mkdir()
    taken = Taken()
    driver = driver_of(Orders(begun=str(tmp_path / "begun"), seconds_a_row=0.02), taken, tmp_path / "work", rows=400)
    with pytest.raises(StopRequested):
        driver.run(lambda: len(taken.lines) >= 5)
    assert 5 <= len(taken.lines) < 40
    assert not driver.workers


def test_a_flood_of_messages_in_both_directions_blocks_nobody(tmp_path: Path) -> None:
    """Shards of the largest size, batches larger than a socket's buffer, logs, and a driver slower than its workers."""
    taken = Taken()

    def slow(*batch: Any) -> None:
        time.sleep(0.001)
        taken(*batch)

    driver_of(Orders(payload="x" * 300_000, log_lines=5), slow, tmp_path, rows=2100, shard=2048).run(never)
    assert len(taken.lines) == 2100


def test_what_workers_log_is_logged_here_with_their_rank(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "hfprep.test"):
        driver_of(Orders(log_lines=1), Taken(), tmp_path, rows=2).run(never)
    assert [record.getMessage() for record in caplog.records if record.name == "hfprep.test"] == [
        "worker 0: row 0, line 0",
        "worker 0: row 1, line 0",
    ]


def test_workers_end_with_their_driver_even_while_they_compute(tmp_path: Path) -> None:
    script = (
        "from pathlib import Path\nimport tests.test_engines_processes as t\n"
        "t.processes.WORKER_CODE = t.FAKE_CODE\n"
        f"t.driver_of(t.Orders(seconds_a_row=600), t.Taken(), Path({str(tmp_path)!r})).run(t.never)\n"
    )
    driver = subprocess.Popen([sys.executable, "-c", script], cwd=REPOSITORY)
    try:
        pids = [int(path.parent.name) for path in wait_for(lambda: list(tmp_path.rglob("staged")), count=2)]
        assert all(is_running(pid) for pid in pids)
        driver.kill()
        driver.wait()
        deadline = time.monotonic() + 10
        while any(is_running(pid) for pid in pids) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not [pid for pid in pids if is_running(pid)]
    finally:
        driver.kill()
        driver.wait()


def wait_for(find: Any, *, count: int, seconds: float = 60) -> list[Any]:
    """What `find` gives once it gives `count` things."""
    deadline = time.monotonic() + seconds
    while len(found := find()) < count:
        assert time.monotonic() < deadline, f"only {found} after {seconds} s"
        time.sleep(0.05)
    return list(found)


def is_running(pid: int) -> bool:
    """Whether a process is there and not a zombie."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def test_workers_killed_at_random_cost_nothing(tmp_path: Path) -> None:
    """Kills while 150 rows are computed: each row is taken exactly once, none is rejected.

    Only who has finished a row since it was first seen is killed, or a row could die three times by chance.
    """
    taken = Taken()
    driver = driver_of(Orders(seconds_a_row=0.02), taken, tmp_path, rows=150, shard=10, num=3)
    generator = np.random.default_rng(0)
    killed: list[int] = []
    left: dict[int, int] = {}

    def progressed(worker: Any) -> bool:
        if not worker.ready or worker.shard is None:
            return False
        now = len(worker.shard.left)
        return now != left.setdefault(worker.process.pid, now)

    def kill_some() -> None:
        while len(killed) < 20:
            time.sleep(float(generator.uniform(0.02, 0.1)))
            able = [worker for worker in list(driver.workers.values()) if progressed(worker)]
            if able:
                victim = able[int(generator.integers(len(able)))].process
                victim.send_signal(signal.SIGKILL)
                killed.append(victim.pid)

    threading.Thread(target=kill_some, daemon=True).start()
    driver.run(never)
    assert len(killed) >= 3
    assert sorted(taken.lines) == list(range(1, 151))
    assert not taken.rejections


@pytest.mark.parametrize(
    ("device", "gpus", "rank", "expected"),
    [
        ("auto", 0, 1, "auto"),
        ("auto", 2, 0, "cuda:0"),
        ("auto", 2, 3, "cuda:1"),
        ("cuda", 4, 6, "cuda:2"),
        ("cuda:1", 4, 2, "cuda:1"),
        ("cpu", 4, 2, "cpu"),
    ],
)
def test_a_worker_gets_the_gpu_of_its_rank(
    monkeypatch: pytest.MonkeyPatch, device: str, gpus: int, rank: int, expected: str
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: gpus > 0)
    monkeypatch.setattr("torch.cuda.device_count", lambda: gpus)
    assert processes.worker_device(device, rank) == expected


@pytest.mark.parametrize(
    ("asked", "device", "gpus", "expected"),
    [(0, "auto", 0, 1), (0, "auto", 4, 4), (3, "auto", 4, 3), (0, "cuda:1", 4, 1), (0, "cpu", 4, 1), (2, "cpu", 0, 2)],
)
def test_as_many_processes_as_gpus_unless_told_otherwise(
    monkeypatch: pytest.MonkeyPatch, asked: int, device: str, gpus: int, expected: int
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: gpus)
    assert processes.choose_num_processes(asked, device) == expected


def test_threads_are_divided(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    assert [processes.threads_per_process(count) for count in (1, 2, 3, 16)] == [8, 4, 2, 1]


class _Extractor:
    """Gives one batch a row, without any model; says in `begun` which it has begun."""

    out_of_memory_events = 0

    def __init__(self, looks_ahead: bool) -> None:
        self.looks_ahead = looks_ahead
        self.begun = 0

    def extract(self, tasks: list[Any]) -> Any:
        for task in tasks:
            self.begun += 1
            yield BatchResult([(task, Rejection(task.utterance.line, task.utterance.id, Reason.AUDIO_EMPTY, "none"))])


@pytest.mark.parametrize("looks_ahead", [False, True])
def test_a_worker_on_a_cpu_computes_nothing_until_the_last_batch_is_published(
    tmp_path: Path, looks_ahead: bool
) -> None:
    """On an accelerator it goes on at once, so that writing costs no time there."""
    extractor = _Extractor(looks_ahead)
    plan = tmp_path / "plan.arrow"
    row = {"id": "a", "text": "t", "audio": "a.wav", "path": "a.wav", "extra": "{}", "audio_bytes": 1,
           "audio_mtime_ns": 1, "need": ["text", "codes", "latents"],
           "fingerprints": dict.fromkeys(("text", "codes", "latents"), "0" * 32)}  # fmt: skip
    schema = rows_schema(speech_schema().group_names)
    with pa.OSFile(str(plan), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
        writer.write_table(pa.Table.from_pylist([row | {"line": line} for line in (1, 2, 3)], schema))
    spec: Any = SimpleNamespace(open=lambda device: extractor)
    here, there = Pipe()
    setup = WorkerSetup(spec=spec, device="cpu", plan=plan, folder=tmp_path / "work")
    working = worker._Worker(setup, there, worker._Outbox(there))
    thread = threading.Thread(target=working.compute, args=[Assignment(0, (0, 1, 2))])
    thread.start()
    for number in (1, 2, 3):
        assert here.poll(30)
        batch = here.recv()
        assert [item.line for item in batch.rejections] == [number]
        assert batch.awaited is not looks_ahead
        time.sleep(0.1)
        assert extractor.begun == (3 if looks_ahead else number)
        if batch.awaited:
            here.send(Published())
    thread.join(30)
    assert here.recv() == Finished(0)
