"""The driver of workers on this machine, with light workers in the place of real ones; then real ones."""

import dataclasses
import json
import logging
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import hfprep
from hfprep.errors import CheckpointError, HfprepError, Reason, StopRequested
from hfprep.formats.feature_stores import NpyStaging
from hfprep.inputs.audio.decode import load_waveform
from hfprep.pipeline.breaker import SystematicFailureError
from hfprep.pipeline.engines import driver as driver_module
from hfprep.pipeline.engines import local, worker
from hfprep.pipeline.engines.driver import Driver
from hfprep.pipeline.engines.messages import Assignment, Batch, Closed, Opened, Stop, WorkerSetup
from hfprep.pipeline.engines.messages import Taken as TakenMessage
from hfprep.pipeline.engines.pool import WorkerPool, code_of
from hfprep.pipeline.engines.work_units import WorkQueue, WorkUnit
from hfprep.pipeline.failures import DeviceError
from hfprep.pipeline.features import BatchResult
from hfprep.pipeline.plan import rows_schema
from hfprep.schema import Rejection
from tests.fake_worker import Orders
from tests.forked import forked
from tests.sample_schemas import speech_schema

REPOSITORY = Path(__file__).resolve().parent.parent


def fake_pool() -> WorkerPool:
    return WorkerPool(code_of("tests.fake_worker"), popen=forked)


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


@dataclasses.dataclass
class Running:
    """A driver of fake workers over `rows` rows in units of `unit`."""

    orders: Orders
    sink: Any
    folder: Path
    rows: int = 12
    unit: int = 4
    num: int = 2
    has_control: bool = False
    pool: WorkerPool = dataclasses.field(default_factory=fake_pool)

    def __post_init__(self) -> None:
        def read(positions: Any) -> list[tuple[int, str, int]]:
            return [(int(position) + 1, f"row{position}", int(position)) for position in positions]

        starts = range(0, self.rows, self.unit)
        units = [WorkUnit(n, range(start, min(self.rows, start + self.unit))) for n, start in enumerate(starts)]
        spec: Any = self.orders
        crew = local.LocalCrew(self.pool, spec, self.folder / "plan", self.folder)
        queue = WorkQueue(units, read)
        self.driver = Driver(crew, queue, self.sink, self.num, lambda *_: None, has_control=self.has_control)

    def run(self, stop: Any) -> None:
        with self.pool:
            self.driver.run(stop)


def driver_of(orders: Orders, sink: Any, folder: Path, **options: Any) -> Running:
    return Running(orders, sink, folder, **options)


def never() -> bool:
    return False


def test_every_row_is_taken_once_and_nothing_is_left(tmp_path: Path) -> None:
    taken = Taken()
    driver_of(Orders(seconds_a_row=0.2), taken, tmp_path).run(never)
    assert sorted(taken.lines) == list(range(1, 13))
    assert {Path(folder).parent.name for folder in taken.folders} == {"worker_00", "worker_01"}
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_no_more_workers_than_units(tmp_path: Path) -> None:
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
@pytest.mark.parametrize("in_hand", [False, True])
def test_poisonous_samples_are_found_and_rejected_and_nothing_else(tmp_path: Path, num: int, in_hand: bool) -> None:
    taken = Taken()
    driver_of(Orders(poison=(3, 9), in_hand=in_hand), taken, tmp_path, num=num).run(never)
    assert sorted(taken.lines) == [line for line in range(1, 13) if line not in (3, 9)]
    assert sorted((found.line, found.id, found.reason) for found in taken.rejections) == [
        (3, "row2", Reason.COMPUTE_FAILED),
        (9, "row8", Reason.COMPUTE_FAILED),
    ]
    assert all("died 3 times (signal 9)" in found.message for found in taken.rejections)
    assert {type(found) for found in taken.rejections} == {Rejection}


def test_a_dead_worker_may_be_told_something() -> None:
    """When two die at the same time, both deaths are read before the first is handled, which may assign work."""
    with fake_pool() as pool:
        worker = pool.take(0)
        worker.end()
        worker.tell("anything")


def test_a_worker_may_die_while_it_sends_a_message(tmp_path: Path) -> None:
    taken = Taken()
    driver_of(Orders(poison=(3,), cut_off=True, in_hand=True), taken, tmp_path).run(never)
    assert sorted(taken.lines) == [line for line in range(1, 13) if line != 3]
    assert [found.id for found in taken.rejections] == ["row2"]


def test_a_worker_that_closes_its_connection_and_does_not_exit_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "EXIT_SECONDS", 0.1)
    taken = Taken()
    driver_of(Orders(poison=(3,), lingers=True, in_hand=True), taken, tmp_path).run(never)
    assert sorted(taken.lines) == [line for line in range(1, 13) if line != 3]
    assert [found.id for found in taken.rejections] == ["row2"]


def test_what_a_worker_had_in_hand_saves_the_search(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    taken = Taken()
    driver_of(Orders(poison=(700,), in_hand=True), taken, tmp_path, rows=1000, unit=1000, num=1).run(never)
    assert len(taken.lines) == 999
    assert caplog.text.count("another worker takes over its work") == 3


def test_workers_that_die_whatever_they_get_end_the_run_and_nothing_is_rejected(tmp_path: Path) -> None:
    """The fault is then in the machine: it would be wrong to reject sample after sample for it."""
    taken = Taken()
    orders = Orders(poison=tuple(range(1, 41)), in_hand=True)
    with pytest.raises(SystematicFailureError, match=r"5 samples failed one after another.*died 3 times"):
        driver_of(orders, taken, tmp_path, rows=40, unit=20).run(never)
    assert not taken.rejections


def test_workers_that_die_of_no_one_sample_end_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver_module, "DEATHS_WITHOUT_PROGRESS", 10)
    taken = Taken()
    with pytest.raises(HfprepError, match="keep dying before computing anything"):
        driver_of(Orders(poison=tuple(range(1, 41))), taken, tmp_path, rows=40, unit=20).run(never)
    assert not taken.rejections


@pytest.mark.parametrize("works", [False, True])
def test_where_only_poisonous_samples_are_left_a_control_decides(tmp_path: Path, works: bool) -> None:
    """As in a rerun over an output of which two samples were rejected: what was computed shows whose fault it is."""
    taken = Taken()
    running = driver_of(
        Orders(poison=(1, 2), in_hand=True, works=works), taken, tmp_path, rows=2, num=1, has_control=True
    )
    if works:
        running.run(never)
        assert sorted(found.line for found in taken.rejections) == [1, 2]
    else:
        with pytest.raises(SystematicFailureError, match="2 samples failed"):
            running.run(never)
        assert not taken.rejections


def test_one_poisonous_sample_alone_is_rejected(tmp_path: Path) -> None:
    taken = Taken()
    driver_of(Orders(poison=(1,), in_hand=True), taken, tmp_path, rows=1).run(never)
    assert [found.id for found in taken.rejections] == ["row0"]


def test_workers_stay_for_the_next_build(tmp_path: Path) -> None:
    pool, taken = fake_pool(), [Taken(), Taken()]
    with pool:
        pool.prepare(2)
        pids = {process.process.pid for process in pool._idle.values()}
        for number in range(2):
            running = driver_of(Orders(seconds_a_row=0.05), taken[number], tmp_path / str(number), pool=pool)
            running.driver.run(never)
            assert {int(Path(folder).name) for folder in taken[number].folders} <= pids
            assert taken[number].folders
    assert not any(map(is_running, pids))


def test_workers_that_never_start_end_the_run(tmp_path: Path) -> None:
    with pytest.raises(HfprepError, match=r"keep dying while starting \(the last with status 7; their messages"):
        driver_of(Orders(exit_at_start=7), Taken(), tmp_path).run(never)


def test_a_workers_fatal_error_is_raised_here(tmp_path: Path) -> None:
    error = CheckpointError("gpt.pth lacks emo_layer.weight")
    with pytest.raises(CheckpointError, match="lacks emo_layer"):
        driver_of(Orders(error=error), Taken(), tmp_path).run(never)


def test_a_device_that_fails_again_and_again_is_named(tmp_path: Path) -> None:
    error = DeviceError("the device failed: CUDA error: unspecified launch failure")
    with pytest.raises(HfprepError, match=r"keep dying while starting .* its error: the device failed: CUDA error"):
        driver_of(Orders(error=error, fatal=False), Taken(), tmp_path).run(never)


def test_an_error_of_the_sink_ends_the_run_and_every_worker(tmp_path: Path) -> None:
    def sink(*_: object) -> None:
        raise OSError("disk full")

    running = driver_of(Orders(), sink, tmp_path)
    with running.pool:
        running.pool.prepare(2)
        pids = [process.process.pid for process in running.pool._idle.values()]
        with pytest.raises(OSError, match="disk full"):
            running.driver.run(never)
    assert not any(map(is_running, pids))


def test_asked_to_stop_it_takes_what_is_in_flight_and_no_more(tmp_path: Path) -> None:
    taken = Taken()
    driver = driver_of(Orders(seconds_a_row=0.05), taken, tmp_path, rows=400, unit=100)
    with pytest.raises(StopRequested):
        driver.run(lambda: len(taken.lines) >= 5)
    assert 5 <= len(taken.lines) < 40
    assert len(set(taken.lines)) == len(taken.lines)
    assert not driver.driver.workers


def test_an_awaited_batch_is_answered_when_it_is_final_and_not_before(tmp_path: Path) -> None:
    begun, taken = tmp_path / "begun", Taken()
    begun.mkdir()

    def slow(*batch: Any) -> None:
        time.sleep(0.1)  # the time in which a worker that does not wait would begin the next row
        taken(*batch)
        row = taken.lines[-1] - 1
        assert not (begun / str(row + 1)).exists() or (row + 1) % 4 == 0  # the first row of another worker's unit

    driver_of(Orders(begun=str(begun)), slow, tmp_path / "work").run(never)
    assert sorted(taken.lines) == list(range(1, 13))


def test_a_worker_that_waits_for_an_answer_can_be_stopped(tmp_path: Path) -> None:
    (tmp_path / "begun").mkdir()
    taken = Taken()
    driver = driver_of(Orders(begun=str(tmp_path / "begun"), seconds_a_row=0.02), taken, tmp_path / "work", rows=400)
    with pytest.raises(StopRequested):
        driver.run(lambda: len(taken.lines) >= 5)
    assert 5 <= len(taken.lines) < 40
    assert not driver.driver.workers


def test_a_flood_of_messages_in_both_directions_blocks_nobody(tmp_path: Path) -> None:
    """Shards of the largest size, batches larger than a socket's buffer, logs, and a driver slower than its workers."""
    taken = Taken()

    def slow(*batch: Any) -> None:
        time.sleep(0.001)
        taken(*batch)

    driver_of(Orders(payload="x" * 300_000, log_lines=5), slow, tmp_path, rows=2100, unit=2048).run(never)
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
        "from pathlib import Path\nimport tests.test_engines_local as t\n"
        f"t.driver_of(t.Orders(seconds_a_row=600), t.Taken(), Path({str(tmp_path)!r})).run(t.never)\n"
    )
    driver = subprocess.Popen([sys.executable, "-c", script], cwd=REPOSITORY)
    try:
        pids = [
            int(path.parent.name) for path in wait_for(lambda: list(tmp_path.rglob("staged")), count=2, seconds=200)
        ]
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
    driver = driver_of(Orders(seconds_a_row=0.02), taken, tmp_path, rows=150, unit=10, num=3)
    generator = np.random.default_rng(0)
    killed: list[int] = []
    left: dict[int, int] = {}

    def progressed(worker: Any) -> bool:
        if not worker.ready or not worker.units:
            return False
        now = sum(len(unit.left) for unit in worker.units)
        return now != left.setdefault(worker.key.process.pid, now)

    def kill_some() -> None:
        while len(killed) < 20:
            time.sleep(float(generator.uniform(0.02, 0.1)))
            able = [worker for worker in list(driver.driver.workers.values()) if progressed(worker)]
            if able:
                victim = able[int(generator.integers(len(able)))].key.process
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
    assert local.worker_device(device, rank) == expected


@pytest.mark.parametrize(
    ("asked", "device", "gpus", "expected"),
    [(0, "auto", 0, 1), (0, "auto", 4, 4), (3, "auto", 4, 3), (0, "cuda:1", 4, 1), (0, "cpu", 4, 1), (2, "cpu", 0, 2)],
)
def test_as_many_processes_as_gpus_unless_told_otherwise(
    monkeypatch: pytest.MonkeyPatch, asked: int, device: str, gpus: int, expected: int
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: gpus)
    assert local.choose_num_processes(asked, device) == expected


def test_threads_are_divided(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    assert [local.threads_per_process(count) for count in (1, 2, 3, 16)] == [8, 4, 2, 1]


class _Extractor:
    """Gives one batch a row, without any model; says in `begun` which it has begun."""

    out_of_memory_events = 0
    model = watch = None
    schema = speech_schema()

    def __init__(self, looks_ahead: bool) -> None:
        self.looks_ahead = looks_ahead
        self.begun = 0

    def stream(self, feed: Any) -> Any:
        while (tasks := feed(True)) is not None:
            for task in tasks:
                self.begun += 1
                line, name = task.utterance.line, task.utterance.id
                yield BatchResult([(task, Rejection(line, name, Reason.AUDIO_EMPTY, "none"))])

    def close(self) -> None: ...


class _End:
    """One end of a connection within this process."""

    def __init__(self, incoming: "queue.Queue[Any]", outgoing: "queue.Queue[Any]") -> None:
        self._incoming, self._outgoing = incoming, outgoing

    def send(self, message: Any, /) -> None:
        self._outgoing.put(message)

    def recv(self) -> Any:
        return self._incoming.get(timeout=60)

    def poll(self) -> bool:
        return not self._incoming.empty()


def plan_of(path: Path, rows: int) -> Path:
    row = {"id": "a", "text": "t", "audio": "a.wav", "path": "a.wav", "extra": "{}", "audio_bytes": 1,
           "audio_mtime_ns": 1, "need": ["text", "codes", "latents"]}  # fmt: skip
    schema = rows_schema(speech_schema().group_names)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
        writer.write_table(pa.Table.from_pylist([row | {"line": line + 1} for line in range(rows)], schema))
    return path


@pytest.mark.parametrize("looks_ahead", [False, True])
def test_a_worker_on_a_cpu_computes_nothing_until_the_last_batch_is_published(
    tmp_path: Path, looks_ahead: bool
) -> None:
    """On an accelerator it goes on at once, so that writing costs no time there."""
    extractor = _Extractor(looks_ahead)
    spec: Any = SimpleNamespace(
        open=lambda *_, **__: extractor,
        seen={},
        staging=NpyStaging(),
        model_set=SimpleNamespace(schema=extractor.schema),
    )
    one: queue.Queue[Any] = queue.Queue()
    other: queue.Queue[Any] = queue.Queue()
    here, there = _End(one, other), _End(other, one)
    plan = plan_of(tmp_path / "plan.arrow", 4)
    (tmp_path / "work").mkdir()
    thread = threading.Thread(target=worker.serve, args=[there])
    thread.start()
    here.send(WorkerSetup(spec=spec, plan=plan, folder=tmp_path / "work"))
    messages = []

    def next_batch() -> Any:
        message = here.recv()
        messages.append(message)
        return message if isinstance(message, Batch) else next_batch()

    for assignment in (Assignment(0, (0, 1)), Assignment(1, (2, 3))):  # the second one comes before the first is done
        here.send(assignment)
    for number in (1, 2, 3, 4):
        batch = next_batch()
        assert [item.line for item in batch.rejections] == [number]
        assert batch.awaited is not looks_ahead
        time.sleep(0.1)
        assert extractor.begun == (4 if looks_ahead else number)
        if batch.awaited:
            here.send(TakenMessage())
    here.send(Stop(done=True))
    messages.append(here.recv())
    here.send(None)
    thread.join(30)
    kinds = [type(message) for message in messages]
    assert kinds == [Opened, Batch, Batch, Batch, Batch, Closed]


# Real workers, of builds as users run them


def manifest_with(golden_small: Path, path: Path, **extra: str) -> Path:
    """The golden clips, and more by id and path."""
    lines = (golden_small / "manifest.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    rows = [row | {"audio": str(golden_small / row["audio"])} for row in rows]
    rows += [{"id": name, "text": "deadly", "audio": audio} for name, audio in extra.items()]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize("runs", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_clip_at_which_the_decoder_aborts_is_rejected_by_a_build_of_one_process(
    golden_small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, real_workers: None, runs: int
) -> None:
    def deadly(path: Any, **options: Any) -> Any:
        if "deadly" in str(path):
            os.abort()
        return load_waveform(path, **options)

    monkeypatch.setattr("hfprep.pipeline.intake.load_waveform", deadly)  # workers are forks of this process
    (tmp_path / "deadly.wav").write_bytes((golden_small / "audio" / "synth1.wav").read_bytes())
    manifest = manifest_with(golden_small, tmp_path / "m.jsonl", deadly=str(tmp_path / "deadly.wav"))
    config = hfprep.BuildConfig(
        manifest=manifest, output_dir=tmp_path / "out", models=golden_small / "checkpoints", batch_size=2, device="cpu"
    )
    for _ in range(runs):  # a second run has nothing but that clip, and rejects it again
        assert hfprep.build(config).rejected == {"compute_failed": 1}
        rejected = [json.loads(line) for line in (tmp_path / "out" / "rejected.jsonl").read_text().splitlines()]
        assert [(item["id"], item["reason"]) for item in rejected] == [("deadly", "compute_failed")]
        assert "died 3 times (signal 6)" in rejected[0]["message"]
        progress = tmp_path / "out" / ".preprocessing_progress.txt"
        assert len(progress.read_text().splitlines()) == 8


def test_sigterm_to_the_whole_group_finishes_the_batch_in_flight(golden_small: Path, tmp_path: Path) -> None:
    """As `timeout` and `scancel` send it."""
    progress = tmp_path / "out" / ".preprocessing_progress.txt"
    command = [
        sys.executable, "-m", "hfprep", "build", "--manifest", str(golden_small / "manifest.jsonl"), "--models",
        str(golden_small / "checkpoints"), "--output-dir", str(tmp_path / "out"), "--batch-size=1", "--device=cpu",
    ]  # fmt: skip
    running = subprocess.Popen(command, cwd=REPOSITORY, start_new_session=True, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: progress.read_text().splitlines() if progress.exists() else [], count=1)
    os.killpg(running.pid, signal.SIGTERM)
    _, said = running.communicate(timeout=100)
    assert running.returncode == 128 + signal.SIGTERM, said
    assert "everything computed is on disk" in said
    assert "died" not in said
    done = progress.read_text().splitlines()
    assert 1 <= len(done) < 8
    assert {path.stem for path in (tmp_path / "out" / "codes").glob("*.npy")} == set(done)
