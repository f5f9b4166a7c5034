"""How many CPU cores a process may use, and how much of a GPU."""

import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from hfprep.pipeline.devices import choose_workers, cpu_count, device_memory


@pytest.fixture(autouse=True)
def sixteen_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)))


def group(root: Path, line: str, **files: str) -> Path:
    """A root folder in which this process is in one control group, with its files by path."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(line + "\n")
    for name, content in files.items():
        path = root / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content + "\n")
    return root


def test_without_a_quota_it_is_the_cores_that_the_process_may_run_on(tmp_path: Path) -> None:
    assert cpu_count(tmp_path) == 16  # no control groups at all
    assert cpu_count(group(tmp_path, "0::/a", **{"a/cpu.max": "max 100000"})) == 16
    assert choose_workers(3) == 3


@pytest.mark.parametrize(
    ("quota", "cores"), [("400000 100000", 4), ("250000 100000", 3), ("5000 100000", 1), ("9999999 100000", 16)]
)
def test_a_quota_of_version_2_counts_as_cores(tmp_path: Path, quota: str, cores: int) -> None:
    assert cpu_count(group(tmp_path, "0::/pod/container", **{"pod/container/cpu.max": quota})) == cores


def test_the_quota_of_a_group_around_it_holds_too(tmp_path: Path) -> None:
    """In a container its own group is the root of what it sees."""
    around = {"cpu.max": "200000 100000", "pod/cpu.max": "800000 100000", "pod/c/cpu.max": "max 100000"}
    assert cpu_count(group(tmp_path, "0::/pod/c", **around)) == 2
    assert cpu_count(group(tmp_path / "inside", "0::/", **{"cpu.max": "300000 100000"})) == 3


def test_a_quota_of_version_1_counts_as_cores(tmp_path: Path) -> None:
    quota = {"cpu,cpuacct/job/cpu.cfs_quota_us": "600000", "cpu,cpuacct/job/cpu.cfs_period_us": "100000"}
    assert cpu_count(group(tmp_path, "4:cpu,cpuacct:/job", **quota)) == 6
    none = {"cpu,cpuacct/job/cpu.cfs_quota_us": "-1", "cpu,cpuacct/job/cpu.cfs_period_us": "100000"}
    assert cpu_count(group(tmp_path / "none", "4:cpu,cpuacct:/job", **none)) == 16


def test_workers_that_share_a_gpu_share_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    card = SimpleNamespace(total_memory=80 << 30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: card)
    assert device_memory(torch.device("cuda:0")) == 80 << 30
    assert device_memory(torch.device("cuda:0"), 4) == 20 << 30
    assert device_memory(torch.device("cpu"), 4) is None
