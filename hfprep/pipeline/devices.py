"""Which device computes, how much memory it has, and how many threads decode."""

import contextlib
import math
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from hfprep.errors import ConfigError

if TYPE_CHECKING:
    import torch

# Of NVIDIA's driver, of a Jetson's, of Windows' below Linux, of AMD's: without any of these there is no GPU.
GPU_FILES = ("/dev/nvidiactl", "/dev/nvmap", "/dev/dxg", "/dev/kfd")


def gpu_count() -> int:
    """GPUs that torch sees. torch, which takes seconds to import, is not asked where there can be none."""
    if "torch" not in sys.modules and not any(map(os.path.exists, GPU_FILES)):
        return 0
    import torch

    return torch.cuda.device_count()


def choose_device(name: str) -> "torch.device":
    """The device for `--device`: "auto" is the first GPU where there is one. ConfigError where it is not there."""
    import torch

    if name == "auto":
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda":
        count = torch.cuda.device_count()
        if (device.index or 0) >= count:
            raise ConfigError(
                f"--device is {name!r}, but torch sees {count} CUDA devices; use --device cpu, or check the driver"
            )
        return torch.device("cuda", device.index or 0)
    return device


def device_memory(device: "torch.device", tenants: int = 1) -> int | None:
    """Bytes of memory of a GPU for each of so many workers that share it; None for the CPU."""
    if device.type != "cuda":
        return None
    import torch

    return int(torch.cuda.get_device_properties(device).total_memory) // max(1, tenants)


def cpu_count(root: Path = Path("/")) -> int:
    """CPU cores that this process may use: those it may run on, or fewer where its control group has a quota."""
    quotas = _quotas(root)
    return max(1, min([len(os.sched_getaffinity(0)), *(math.ceil(quota) for quota in quotas)]))


def _quotas(root: Path) -> list[float]:
    """The CPU quotas, in cores, of this process's control groups and of those that they are in (version 1 or 2)."""
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        mount = root / "sys/fs/cgroup" / controllers
        own = mount / path.lstrip("/")
        for folder in (own, *own.parents):
            if folder.is_relative_to(mount):
                found.append(_quota(folder))
    return [quota for quota in found if quota is not None]


def _quota(folder: Path) -> float | None:
    """The quota of one control group; None where it has none."""
    try:
        if (folder / "cpu.max").is_file():
            quota, period = (folder / "cpu.max").read_text(encoding="utf-8").split()
        else:
            quota, period = (
                (folder / f"cpu.cfs_{name}_us").read_text(encoding="utf-8") for name in ("quota", "period")
            )
        return float(quota) / float(period) if float(quota) > 0 else None
    except (OSError, ValueError):  # no such file, or the word max
        return None


def choose_workers(workers: int) -> int:
    """Threads for `--workers`: 0 is one for each CPU core this process may use."""
    return workers or cpu_count()


@contextlib.contextmanager
def torch_threads_kept() -> Iterator[None]:
    """Leave this process with as many threads for torch as before.

    A number that any thread sets becomes that of all threads which start later.
    """
    import torch

    number = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(number)
