"""Choice of the device, its memory, and the number of CPU threads."""

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

# Devices of NVIDIA, Jetson, WSL and AMD drivers: without any of these there is no GPU.
GPU_FILES = ("/dev/nvidiactl", "/dev/nvmap", "/dev/dxg", "/dev/kfd")


def gpu_count() -> int:
    """Number of GPUs that torch sees; torch, which takes seconds to import, is only imported if there may be any."""
    if "torch" not in sys.modules and not any(map(os.path.exists, GPU_FILES)):
        return 0
    import torch

    return torch.cuda.device_count()


def choose_device(name: str) -> "torch.device":
    """The device for `--device`: "auto" is the first GPU, else the CPU. Raises ConfigError if it does not exist."""
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
    """Bytes of GPU memory per worker if `tenants` workers share it; None for the CPU."""
    if device.type != "cuda":
        return None
    import torch

    return int(torch.cuda.get_device_properties(device).total_memory) // max(1, tenants)


def cpu_count(root: Path = Path("/")) -> int:
    """CPU cores that this process may use: those it may run on, or fewer if its control group has a quota."""
    return max(1, min([len(os.sched_getaffinity(0)), *map(math.ceil, _quotas(root))]))


def _quotas(root: Path) -> Iterator[float]:
    """The CPU quotas, in cores, of this process's control groups and their parents (version 1 or 2)."""
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        mount = root / "sys/fs/cgroup" / controllers
        own = mount / path.lstrip("/")
        for folder in (own, *own.parents):
            if folder.is_relative_to(mount) and (quota := _quota(folder)) is not None:
                yield quota


def _quota(folder: Path) -> float | None:
    """The quota of one control group; None if it has none."""
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
    """Threads for `--workers`: 0 is one per CPU core that this process may use."""
    return workers or cpu_count()


@contextlib.contextmanager
def torch_threads_kept() -> Iterator[None]:
    """Restore torch's number of threads at the end.

    A number that any thread sets also applies to threads that start later.
    """
    import torch

    number = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(number)
