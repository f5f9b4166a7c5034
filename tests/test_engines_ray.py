"""The Ray engine, on this machine and over two nodes on it: the tree that one process makes, whatever dies.

The nodes get the rows from the driver and send back arrays; the driver's output directory is never seen by them.
"""

import contextlib
import importlib
import json
import logging
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest

import hfprep
from hfprep.errors import CheckpointError, ConfigError, Reason
from hfprep.formats.feature_stores import NpyStaging
from hfprep.formats.samples import SPLITS
from hfprep.pipeline.engines import choice, work_units
from hfprep.pipeline.engines.driver import Died
from hfprep.pipeline.engines.messages import Failed
from hfprep.pipeline.engines.spec import ExtractorSpec, Models
from hfprep.pipeline.features import FeatureExtractor
from hfprep.pipeline.intake import Task
from hfprep.pipeline.observing import add_observer
from hfprep.pipeline.plan import Plan
from hfprep.schema import Rejection, Utterance
from hfprep.store.layout import PROGRESS, Publisher, Staged
from hfprep.tools.demo.dataset import DemoDataset, make_dataset
from tests.s3_server import s3_server
from tests.sample_sets import samples_of

ray = pytest.importorskip("ray", reason="the extra hfprep[ray] is not installed")
ray_engine = importlib.import_module("hfprep.pipeline.engines.ray")  # with Ray there, its not loading is a failure

REPOSITORY = Path(__file__).resolve().parent.parent
ONE_CPU = ("--num-cpus=1", "--num-gpus=0")


@dataclass
class Cluster:
    """A head and a second node, each a group of processes of its own."""

    address: str
    environment: dict[str, str]
    head: "subprocess.Popen[bytes]"
    start_second: Callable[[], "subprocess.Popen[bytes]"]
    second: "subprocess.Popen[bytes] | None" = None


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """Two nodes with one CPU each, so that two workers are on two nodes."""
    with nodes() as running:
        yield running


@contextlib.contextmanager
def nodes(
    *head_options: str, second_later: bool = False, environment: Mapping[str, str] | None = None
) -> Iterator[Cluster]:
    """A cluster of two nodes, the second one of which may be left to `Cluster.start_second`."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    folder = tempfile.mkdtemp(prefix="r")  # short: sockets lie in it
    variables = {
        **os.environ,
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "1",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": "0",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(REPOSITORY),
        **(environment or {}),
    }
    common = ["--node-ip-address=127.0.0.1", "--disable-usage-stats", "--block"]
    common += ["--object-store-memory=200000000"]
    started = []

    def start(*arguments: str) -> "subprocess.Popen[bytes]":
        command = [str(Path(sys.executable).parent / "ray"), "start", *common, *arguments]
        process = subprocess.Popen(
            command, env=variables, cwd=REPOSITORY, start_new_session=True, stdout=subprocess.DEVNULL
        )
        started.append(process)
        return process

    try:
        head_options = head_options or ONE_CPU
        head = start("--head", f"--port={port}", "--include-dashboard=false", f"--temp-dir={folder}", *head_options)
        deadline = time.monotonic() + 60
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                assert time.monotonic() < deadline, "the head does not answer"
                time.sleep(0.2)
        running = Cluster(f"127.0.0.1:{port}", variables, head, lambda: start(f"--address=127.0.0.1:{port}", *ONE_CPU))
        if not second_later:
            running.second = running.start_second()
        yield running
    finally:
        for process in reversed(started):
            end(process)
        shutil.rmtree(folder, ignore_errors=True)


def end(process: "subprocess.Popen[bytes]") -> None:
    """kill -9 a node: all processes that its starter started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> DemoDataset:
    return make_dataset(tmp_path_factory.mktemp("demo"), num_samples=48, max_seconds=3.0)


@pytest.fixture(scope="module")
def whole(demo: DemoDataset, golden_small: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of one process with one thread."""
    output = tmp_path_factory.mktemp("whole") / "out"
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run(command(demo, golden_small, output), env=environment, cwd=REPOSITORY, check=True, timeout=300)
    return output


def command(demo: DemoDataset, models: Path, output: Path, *arguments: str) -> list[str]:
    return [
        sys.executable, "-m", "hfprep", "build", "--manifest", str(demo.manifest), "--output-dir", str(output),
        "--models", str(models / "checkpoints"), "--val-ratio", "0.3", "--batch-size", "1", *arguments,
    ]  # fmt: skip


def tree(output: Path) -> dict[str, bytes]:
    """Every public file of an output and its bytes; of the statistics, what does not tell how often memory ran out."""
    return {
        path.relative_to(output).as_posix(): path.read_bytes()
        for path in sorted(output.rglob("*"))
        if path.is_file() and path.relative_to(output).parts[0] != ".hfprep"
    }


def on_ray(cluster: Cluster, demo: DemoDataset, models: Path, output: Path, *more: str) -> "subprocess.Popen[bytes]":
    arguments = ["--engine", "ray", "--ray-address", cluster.address, "--num-processes", "2", *more]
    return subprocess.Popen(command(demo, models, output, *arguments), env=cluster.environment, cwd=REPOSITORY)


def wait_for_progress(driver: "subprocess.Popen[bytes]", progress: Path, *, samples: int = 4) -> None:
    """Wait until some samples are complete while the driver is still at work."""
    deadline = time.monotonic() + 200
    while not (progress.exists() and len(progress.read_bytes().splitlines()) >= samples):
        assert driver.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)


def descends(pid: int, ancestor: int) -> bool:
    """Whether a process was started by another, directly or not."""
    while pid > 1:
        if pid == ancestor:
            return True
        try:
            pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        except FileNotFoundError:
            return False
    return False


def actors(node: "subprocess.Popen[bytes]") -> list[int]:
    """Processes of a node that hold the models."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            if b"ray::Actor" in path.read_bytes() and descends(int(path.parent.name), node.pid):
                found.append(int(path.parent.name))
    return found


def wait_until(holds: Callable[[], object], driver: "subprocess.Popen[bytes]", *, seconds: float = 100) -> None:
    """Wait until something holds while the driver is at work."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert driver.poll() is None, "the driver has ended"
        assert time.monotonic() < deadline
        time.sleep(0.02)


# On one node that the build starts itself


@dataclass(frozen=True, kw_only=True)
class TroubledSpec(ExtractorSpec):
    """Opens an extractor that says how far it is in a file, and dies over one sample."""

    log: str
    deadly: str | None = None

    def open(self, *, models: Models | None = None, control: Task | None = None) -> FeatureExtractor:
        log, deadly = self.log, self.deadly

        def note(moment: str, utterances: Sequence[Utterance]) -> None:
            if moment == "batch begins" and any(utterance.id == deadly for utterance in utterances):
                os._exit(1)
            if moment == "batch computed":
                with open(log, "a") as file:
                    file.write("x")

        add_observer(note)
        return super().open(models=models, control=control)


@pytest.fixture
def troubled(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[[str | None], Path]]:
    """Make builds of this process use a TroubledSpec; gives the file that it writes to."""
    module = sys.modules[__name__]
    ray.cloudpickle.register_pickle_by_value(module)  # the nodes need not find the tests

    def use(deadly: str | None) -> Path:
        log = tmp_path / "batches"
        log.touch()
        monkeypatch.setattr(choice, "ExtractorSpec", partial(TroubledSpec, log=str(log), deadly=deadly))
        return log

    yield use
    ray.cloudpickle.unregister_pickle_by_value(module)


def small_build(golden_small: Path, output: Path, **options: Any) -> hfprep.Summary:
    given: dict[str, Any] = {"manifest": golden_small / "manifest.jsonl", "models": golden_small / "checkpoints"}
    config = hfprep.BuildConfig(**given | {"output_dir": output, "batch_size": 1} | options)
    return hfprep.build(config)


def test_a_cluster_started_here_makes_the_tree_of_one_process(golden_small: Path, tmp_path: Path) -> None:
    small_build(golden_small, tmp_path / "local")
    summary = small_build(golden_small, tmp_path / "ray", engine="ray")
    assert (summary.accepted, summary.tally.done) == (8, 8)
    assert tree(tmp_path / "ray") == tree(tmp_path / "local")
    assert not (tmp_path / "ray" / ".hfprep" / "work").exists()


@pytest.mark.slow
def test_a_sample_that_kills_its_actor_is_rejected_and_no_other(
    golden_small: Path, tmp_path: Path, troubled: Callable[[str | None], Path]
) -> None:
    troubled("synth3")
    summary = small_build(golden_small, tmp_path / "out", engine="ray")
    assert (summary.accepted, summary.rejected) == (7, {"compute_failed": 1})
    (rejected,) = [json.loads(line) for line in (tmp_path / "out" / "rejected.jsonl").read_text().splitlines()]
    assert (rejected["id"], rejected["line"]) == ("synth3", 4)
    assert "the process computing it died 3 times" in rejected["message"]


@pytest.mark.slow
def test_a_driver_that_is_slow_holds_its_workers_back(
    demo: DemoDataset, golden_small: Path, tmp_path: Path, troubled: Callable[[str | None], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """What is computed and not yet published is bounded, however much there is to do."""
    log, publish, published, ahead = troubled(None), Publisher.publish, 0, []

    def slowly(self: Publisher, staged: Sequence[Staged], rejections: Sequence[Rejection]) -> list[Staged]:
        nonlocal published
        time.sleep(0.4)
        placed = publish(self, staged, rejections)
        published += 1
        ahead.append(log.stat().st_size - published)
        return placed

    monkeypatch.setattr(Publisher, "publish", slowly)
    models = golden_small / "checkpoints"
    config = hfprep.BuildConfig(
        manifest=demo.manifest, models=models, output_dir=tmp_path / "out", engine="ray", batch_size=1
    )
    assert hfprep.build(config).accepted == len(demo.accepted_ids)
    assert len(ahead) > 40
    assert max(ahead) <= 16, ahead


@pytest.mark.slow
def test_workers_load_their_models_once_however_many_units_there_are(
    golden_small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(work_units, "MIN_UNIT_ROWS", 1)
    monkeypatch.setattr(work_units, "MAX_UNIT_ROWS", 1)
    rows = [json.loads(line) for line in (golden_small / "manifest.jsonl").read_text(encoding="utf-8").splitlines()]
    many = [rows[n % 8] | {"id": str(n), "audio": str(golden_small / rows[n % 8]["audio"])} for n in range(80)]
    manifest = tmp_path / "manifest.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in many), encoding="utf-8")
    with caplog.at_level(logging.INFO, logger="hfprep"):
        summary = small_build(golden_small, tmp_path / "out", engine="ray", manifest=manifest, num_processes=1)
    assert summary.accepted == 80
    assert caplog.text.count("models loaded on") == 1


@pytest.mark.slow
def test_a_cluster_started_here_cannot_be_reached_from_elsewhere(tmp_path: Path) -> None:
    """What listens does so on a loopback address."""
    code = (
        "from hfprep.pipeline.engines.ray import _join; import ray\n"
        "_join(None); print(ray.nodes()[0]['NodeManagerAddress']); ray.shutdown()"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY, timeout=200)
    assert found.stdout.split()[-1].startswith("127."), found.stderr


@pytest.mark.parametrize(
    "error",
    [
        ray.exceptions.ActorDiedError(),
        ray.exceptions.ActorUnavailableError("no answer", b"x" * 16),
        ray.exceptions.ObjectLostError("00" * 28, None, ""),
        ray.exceptions.OutOfMemoryError("the node is low on memory"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_message_that_cannot_be_fetched_is_the_end_of_its_worker(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray says in several ways that a node or a process is gone; the worker is ended where it is not."""

    def fails(_: object) -> None:
        raise error

    call, ended = SimpleNamespace(remote=lambda *_: object()), list[Any]()
    actor = SimpleNamespace(tell=call, next_message=call)
    kind = SimpleNamespace(options=lambda **_: SimpleNamespace(remote=lambda *_: actor))
    monkeypatch.setattr(ray, "remote", lambda _: kind)
    monkeypatch.setattr(ray, "wait", lambda requests, **_: (requests, []))
    monkeypatch.setattr(ray, "get", fails)
    monkeypatch.setattr(ray, "kill", ended.append)
    staging: Any = SimpleNamespace(open=lambda _: None)
    spec: Any = SimpleNamespace(staging=staging)
    plan: Any = None
    crew = ray_engine.RayCrew(spec, plan, tmp_path, num_cpus=1, num_gpus=0.0)
    worker = crew.start(0, prove=False)
    assert crew.wait() == [(worker, Died(f"node ?: {type(error).__name__}"))]
    assert ended == [actor]


def test_a_node_that_does_not_see_the_audio_ends_the_run(golden_small: Path, tmp_path: Path) -> None:
    """A file that is here and was missed elsewhere: the node sees another file system, the sample is not at fault."""
    here = str(golden_small / "manifest.jsonl")
    rows = pa.table({"line": [3, 5], "path": [here, f"{here}-gone"]})
    with pa.ipc.new_stream(tmp_path / "plan", rows.schema) as stream:
        stream.write(rows)
    spec: Any = SimpleNamespace(staging=NpyStaging())
    crew = ray_engine.RayCrew(spec, Plan(tmp_path / "plan"), golden_small, num_cpus=1, num_gpus=0.0)
    worker = ray_engine._Handle(None, None, "far")
    with pytest.raises(ConfigError, match="exists here, but not on node far"):
        crew.check(worker, Rejection(3, "a", Reason.AUDIO_MISSING, "no such file"))
    crew.check(worker, Rejection(5, "b", Reason.AUDIO_MISSING, "no such file"))
    crew.check(worker, Rejection(3, "a", Reason.AUDIO_EMPTY, "empty"))
    crew.end()


def test_a_node_without_the_models_says_so() -> None:
    failed = ray_engine.RayCrew._explained(Failed(CheckpointError("gpt.pth is missing"), fatal=True), "far")
    assert isinstance(failed.error, CheckpointError)
    assert "on node far: gpt.pth is missing (every node needs the models" in str(failed.error)


@pytest.mark.parametrize(
    ("share", "workers", "resources", "expected"),
    [
        (0.5, 0, {"GPU": 1.0, "CPU": 8.0}, (0.5, 2)),
        (None, 0, {"GPU": 3.0, "CPU": 8.0}, (1.0, 3)),
        (None, 0, {"CPU": 8.0}, (0.0, 7)),
        (0.25, 3, {"GPU": 1.0, "CPU": 8.0}, (0.25, 3)),
        (None, 0, {"CPU": 1.0}, (0.0, 1)),
    ],
)
def test_what_was_left_open_is_taken_from_the_cluster(
    share: float | None, workers: int, resources: dict[str, float], expected: tuple[float, int]
) -> None:
    assert ray_engine.workers_for(share, workers, 1, resources) == expected


# On two nodes


@pytest.mark.slow
def test_two_nodes_make_the_tree_of_one_process(
    cluster: Cluster, demo: DemoDataset, golden_small: Path, whole: Path, tmp_path: Path
) -> None:
    assert on_ray(cluster, demo, golden_small, tmp_path / "out").wait(timeout=300) == 0
    assert tree(tmp_path / "out") == tree(whole)
    assert not (tmp_path / "out" / ".hfprep" / "work").exists()


@pytest.mark.slow
def test_a_node_killed_in_the_middle_costs_nothing(
    cluster: Cluster, demo: DemoDataset, golden_small: Path, whole: Path, tmp_path: Path
) -> None:
    driver = on_ray(cluster, demo, golden_small, tmp_path / "out")
    progress = tmp_path / "out" / ".preprocessing_progress.txt"
    wait_for_progress(driver, progress)
    second = cluster.second
    assert second is not None
    wait_until(lambda: actors(second), driver)
    done = len(progress.read_bytes().splitlines())
    end(second)
    assert done < len(demo.accepted_ids)
    assert driver.wait(timeout=300) == 0
    assert tree(tmp_path / "out") == tree(whole)


@pytest.mark.slow
def test_a_driver_killed_in_the_middle_is_gone_on_from_here(
    cluster: Cluster, demo: DemoDataset, golden_small: Path, whole: Path, tmp_path: Path
) -> None:
    """Begun on the cluster, finished without it."""
    output = tmp_path / "out"
    driver = on_ray(cluster, demo, golden_small, output)
    wait_for_progress(driver, output / ".preprocessing_progress.txt")
    driver.kill()
    driver.wait()
    config = hfprep.BuildConfig(
        manifest=demo.manifest,
        models=golden_small / "checkpoints",
        output_dir=output,
        val_ratio=0.3,
        num_processes=1,
        batch_size=1,
    )
    summary = hfprep.build(config)
    assert summary.reused >= 3
    assert json.loads((output / "stats.json").read_text())["accepted"] == len(demo.accepted_ids)
    assert [set(tree(output))] == [set(tree(whole))]


def test_a_cluster_that_is_not_there_is_said_so(
    demo: DemoDataset, golden_small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**_options: object) -> None:
        raise ConnectionError("Failed to connect to Ray cluster at 127.0.0.1:1")

    monkeypatch.setattr("ray.init", refuse)
    config = hfprep.BuildConfig(
        manifest=demo.manifest, output_dir=tmp_path / "out", models=golden_small / "checkpoints", engine="ray",
        ray_address="127.0.0.1:1",
    )  # fmt: skip
    with pytest.raises(hfprep.ConfigError, match=r"'127\.0\.0\.1:1', but the cluster cannot be joined or started"):
        hfprep.build(config)


@pytest.mark.slow
def test_two_actors_share_one_gpu(demo: DemoDataset, golden_small: Path, whole: Path, tmp_path: Path) -> None:
    """A GPU in name only: Ray counts it, the models stay on the CPU."""
    with nodes("--num-cpus=3", "--num-gpus=1", second_later=True) as cluster:
        driver = on_ray(
            cluster, demo, golden_small, tmp_path / "out", "--num-gpus-per-worker", "0.5", "--device", "cpu"
        )
        wait_until(lambda: len(actors(cluster.head)) == 2, driver)
        assert driver.wait(timeout=300) == 0
    assert tree(tmp_path / "out") == tree(whole)


@pytest.mark.slow
def test_the_pool_grows_when_a_node_joins(golden_small: Path, tmp_path: Path) -> None:
    demo = make_dataset(tmp_path / "demo", num_samples=160, max_seconds=12.0)
    with nodes(second_later=True) as cluster:
        driver = on_ray(cluster, demo, golden_small, tmp_path / "out")
        wait_for_progress(driver, tmp_path / "out" / ".preprocessing_progress.txt", samples=2)
        assert len(actors(cluster.head)) == 1
        second = cluster.start_second()
        wait_until(lambda: actors(second), driver)
        assert driver.wait(timeout=400) == 0
    assert json.loads((tmp_path / "out" / "stats.json").read_text())["accepted"] == len(demo.accepted_ids)


@pytest.mark.slow
def test_two_nodes_from_s3_to_s3(demo: DemoDataset, golden_small: Path, whole: Path, tmp_path: Path) -> None:
    with s3_server() as server, nodes(environment=server.environment) as cluster:
        server.put_folder(demo.manifest.parent, "in")
        driver = subprocess.Popen(
            [
                *command(demo, golden_small, Path("unused"))[:4], "--manifest", server.url("in/manifest.jsonl"),
                "--output-dir", server.url("out"), "--work-dir", str(tmp_path / "here"), "--val-ratio", "0.3",
                "--models", str(golden_small / "checkpoints"), "--engine", "ray", "--ray-address", cluster.address,
                "--num-processes", "2", "--batch-size", "1", "--format", "arrow",
            ],
            env=cluster.environment, cwd=REPOSITORY,
        )  # fmt: skip
        assert driver.wait(timeout=300) == 0
        there = server.download("out", tmp_path / "copy")
    for split in SPLITS:
        assert samples_of(there, split) == samples_of(whole, split)
    assert (there / PROGRESS).read_bytes() == (whole / PROGRESS).read_bytes()
    counts = [json.loads((folder / "stats.json").read_bytes()) for folder in (there, whole)]
    counts[1]["rejected"]["audio_missing"] += 1  # there are no folders in object storage
    counts[1]["rejected"]["audio_unreadable"] -= 1
    for name in ("total", "accepted", "rejected", "hours", "codebook"):
        assert counts[0][name] == counts[1][name], name
    lines = [
        [json.loads(line)["line"] for line in (folder / "rejected.jsonl").read_bytes().splitlines()]
        for folder in (there, whole)
    ]
    assert lines[0] == lines[1]  # messages name the files, which are elsewhere
