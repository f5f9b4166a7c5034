"""The Ray engine over a cluster of two nodes on this machine: the tree that one process makes, whatever dies."""

import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import hfprep
from hfprep.demo.dataset import DemoDataset, make_dataset

pytest.importorskip("ray", reason="the extra hfprep[ray] is not installed")
pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).resolve().parent.parent


@dataclass
class Cluster:
    """A head and a second node, each a group of processes of its own."""

    address: str
    environment: dict[str, str]
    head: "subprocess.Popen[bytes]"
    second: "subprocess.Popen[bytes]"


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """Two nodes with one CPU each, so that two workers are on two nodes."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    folder = tempfile.mkdtemp(prefix="r")  # short: sockets lie in it
    environment = os.environ | {
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "1",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": "0",
        "OMP_NUM_THREADS": "1",
    }
    common = ["--node-ip-address=127.0.0.1", "--num-cpus=1", "--num-gpus=0", "--disable-usage-stats", "--block"]
    common += ["--object-store-memory=200000000"]
    started = []

    def start(*arguments: str) -> "subprocess.Popen[bytes]":
        command = [str(Path(sys.executable).parent / "ray"), "start", *common, *arguments]
        process = subprocess.Popen(
            command, env=environment, cwd=REPOSITORY, start_new_session=True, stdout=subprocess.DEVNULL
        )
        started.append(process)
        return process

    try:
        head = start("--head", f"--port={port}", "--include-dashboard=false", f"--temp-dir={folder}")
        deadline = time.monotonic() + 60
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                assert time.monotonic() < deadline, "the head does not answer"
                time.sleep(0.2)
        second = start(f"--address=127.0.0.1:{port}")
        yield Cluster(f"127.0.0.1:{port}", environment, head, second)
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
        "--models", str(models / "checkpoints"), "--val-ratio", "0.3", *arguments,
    ]  # fmt: skip


def tree(output: Path) -> dict[str, bytes]:
    """Every public file of an output and its bytes; of the statistics, what does not tell how often memory ran out."""
    return {
        path.relative_to(output).as_posix(): path.read_bytes()
        for path in sorted(output.rglob("*"))
        if path.is_file() and path.relative_to(output).parts[0] != ".hfprep"
    }


def on_ray(cluster: Cluster, demo: DemoDataset, models: Path, output: Path) -> "subprocess.Popen[bytes]":
    arguments = ["--engine", "ray", "--ray-address", cluster.address, "--num-processes", "2"]
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


def test_two_nodes_make_the_tree_of_one_process(
    cluster: Cluster, demo: DemoDataset, golden_small: Path, whole: Path, tmp_path: Path
) -> None:
    assert on_ray(cluster, demo, golden_small, tmp_path / "out").wait(timeout=300) == 0
    assert tree(tmp_path / "out") == tree(whole)
    assert not (tmp_path / "out" / ".hfprep" / "work").exists()


def test_a_node_killed_in_the_middle_costs_nothing(
    cluster: Cluster, demo: DemoDataset, golden_small: Path, whole: Path, tmp_path: Path
) -> None:
    driver = on_ray(cluster, demo, golden_small, tmp_path / "out")
    progress = tmp_path / "out" / ".preprocessing_progress.txt"
    wait_for_progress(driver, progress)
    work = tmp_path / "out" / ".hfprep" / "work" / "ray"
    deadline = time.monotonic() + 60
    while not any(descends(int(folder.name.split("-")[-2]), cluster.second.pid) for folder in work.iterdir()):
        assert driver.poll() is None, "no worker was on the node that is to die"
        assert time.monotonic() < deadline
        time.sleep(0.02)
    done = len(progress.read_bytes().splitlines())
    end(cluster.second)
    assert done < len(demo.accepted_ids)
    assert driver.wait(timeout=300) == 0
    assert tree(tmp_path / "out") == tree(whole)


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
        manifest=demo.manifest, models=golden_small / "checkpoints", output_dir=output, val_ratio=0.3, num_processes=1
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
    with pytest.raises(hfprep.ConfigError, match=r"'127\.0\.0\.1:1', and the cluster cannot be joined or started"):
        hfprep.build(config)
