"""Worker processes and the driver killed at random, over and over: nothing lost, nothing twice."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import hfprep
from hfprep.tools.demo.dataset import DemoDataset, make_dataset

REPOSITORY = Path(__file__).resolve().parent.parent


def config_of(demo: DemoDataset, models: Path, output: Path) -> hfprep.BuildConfig:
    return hfprep.BuildConfig(
        manifest=demo.manifest, models=models / "checkpoints", output_dir=output, val_ratio=0.3, num_processes=1,
        batch_size=1,
    )  # fmt: skip


def build_process(demo: DemoDataset, models: Path, output: Path) -> "subprocess.Popen[bytes]":
    """A build with two worker processes, each with one thread."""
    command = [
        sys.executable, "-m", "hfprep", "build", "--manifest", str(demo.manifest), "--output-dir", str(output),
        "--models", str(models / "checkpoints"), "--val-ratio", "0.3", "--num-processes", "2", "--batch-size", "1",
    ]  # fmt: skip
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, cwd=REPOSITORY, env=environment, stdout=subprocess.DEVNULL)


def children_of(pid: int) -> list[int]:
    """The processes that a process has started."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except (FileNotFoundError, ProcessLookupError):
                continue
            if parent == pid:
                found.append(int(entry.name))
    return found


def records_of(output: Path) -> dict[str, dict[str, object]]:
    """All listed records by id; an id that is listed twice is an error."""
    records: dict[str, dict[str, object]] = {}
    for name in ("train_manifest.jsonl", "val_manifest.jsonl"):
        for line in (output / name).read_text(encoding="utf-8").splitlines():
            record = json.loads(line)
            assert record["id"] not in records, f"{record['id']} is listed twice"
            records[record["id"]] = record
    return records


def check_whole(demo: DemoDataset, output: Path) -> None:
    """Every good line is listed once with its artifacts, every bad line is rejected once, for its own reason."""
    records = records_of(output)
    assert sorted(records) == sorted(demo.accepted_ids)
    for record in records.values():
        for column in ("text_ids", "codes", "condition", "emo_vec"):
            assert (output / str(record[f"{column}_path"])).is_file()
    rejected = [json.loads(line) for line in (output / "rejected.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [(item["line"], item["reason"]) for item in rejected] == sorted(
        (line, reason.value) for line, reason in demo.rejected.items()
    )
    assert not (output / ".hfprep" / "work").exists()
    assert sorted(output.rglob("*.npy")) == sorted(
        output / f"{column}/{sample_id}.npy"
        for column in ("text_ids", "codes", "condition", "emo_vec")
        for sample_id in demo.accepted_ids
    )


def tree(output: Path) -> Iterator[tuple[str, bytes]]:
    """Every public file and its bytes."""
    for path in sorted(output.rglob("*")):
        if path.is_file() and path.relative_to(output).parts[0] != ".hfprep":
            yield path.relative_to(output).as_posix(), path.read_bytes()


@pytest.mark.slow
def test_two_hundred_samples_and_twenty_kills(golden_small: Path, tmp_path: Path) -> None:
    """Sixteen kills of a worker and four of the driver, at random moments of a run that is started again each time."""
    demo = make_dataset(tmp_path / "data", num_samples=200, max_seconds=4.0)
    generator = random.Random(1)
    output = tmp_path / "out"
    plan = [True] * 4 + [False] * 16
    generator.shuffle(plan)
    kills = {"driver": 0, "worker": 0}
    driver = build_process(demo, golden_small, output)
    progress = output / ".preprocessing_progress.txt"
    while plan and driver.poll() is None:
        before = len(progress.read_bytes()) if progress.exists() else 0
        deadline = time.monotonic() + 60
        while driver.poll() is None and time.monotonic() < deadline:  # kill only a run that gets on
            if progress.exists() and len(progress.read_bytes()) > before:
                break
            time.sleep(0.02)
        time.sleep(generator.uniform(0, 0.6))
        if plan[-1]:
            driver.kill()
            driver.wait()
            plan.pop()
            kills["driver"] += 1
            driver = build_process(demo, golden_small, output)
        elif workers := children_of(driver.pid):
            os.kill(generator.choice(workers), signal.SIGKILL)
            plan.pop()
            kills["worker"] += 1
    assert driver.wait(timeout=600) == 0
    assert kills == {"driver": 4, "worker": 16}, "the run ended before all kills; give it more samples"
    check_whole(demo, output)
    hfprep.build(config_of(demo, golden_small, tmp_path / "whole"))
    compare = REPOSITORY.parent / "shared" / "compare_builds.py"
    if compare.is_file():
        subprocess.run([sys.executable, str(compare), str(output), str(tmp_path / "whole")], check=True)
    differing = [
        name for (name, ours), (_, theirs) in zip(tree(output), tree(tmp_path / "whole"), strict=True) if ours != theirs
    ]
    assert [name for name in differing if not name.endswith(".npy")] == []


def test_a_worker_and_the_driver_killed_once_each(golden_small: Path, tmp_path: Path) -> None:
    """The real thing in small: a worker is killed once it has worked, later the driver; the next run finishes."""
    demo = make_dataset(tmp_path / "data", num_samples=24, max_seconds=3.0)
    output = tmp_path / "out"
    driver = build_process(demo, golden_small, output)
    progress = output / ".preprocessing_progress.txt"
    try:
        wait_for_samples(driver, progress, 2)
        os.kill(children_of(driver.pid)[0], signal.SIGKILL)
        wait_for_samples(driver, progress, 8)
        orphans = children_of(driver.pid)
    finally:
        driver.kill()
        driver.wait()
    deadline = time.monotonic() + 10
    while (alive := [pid for pid in orphans if is_running(pid)]) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert orphans
    assert not alive, "workers outlive their driver"
    done = len(progress.read_bytes().splitlines())
    summary = hfprep.build(config_of(demo, golden_small, output))
    assert summary.reused >= done - 1  # the last line may be half written
    check_whole(demo, output)
    hfprep.build(config_of(demo, golden_small, tmp_path / "whole"))
    check_same(output, tmp_path / "whole")


def check_same(output: Path, other: Path) -> None:
    """The same records and codes; latents but for the rounding that the number of threads makes."""
    assert records_of(output) == records_of(other)
    for record in records_of(output).values():
        for column in ("text_ids", "codes", "condition", "emo_vec"):
            ours, theirs = (
                np.load(output / str(record[f"{column}_path"])),
                np.load(other / str(record[f"{column}_path"])),
            )
            if column in ("text_ids", "codes"):
                assert np.array_equal(ours, theirs)
            else:
                assert np.linalg.norm(ours - theirs) <= 1e-5 * np.linalg.norm(theirs)


def wait_for_samples(driver: "subprocess.Popen[bytes]", progress: Path, samples: int) -> None:
    deadline = time.monotonic() + 120
    while not (progress.exists() and len(progress.read_bytes().splitlines()) >= samples):
        assert driver.poll() is None, f"the run ended with status {driver.returncode} before {samples} samples"
        assert time.monotonic() < deadline
        time.sleep(0.01)


def is_running(pid: int) -> bool:
    """Whether a process is there and not a zombie."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"
