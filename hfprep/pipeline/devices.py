"""Which device computes, how much memory it has, and how many threads decode."""

import os

import torch

from hfprep.errors import ConfigError


def choose_device(name: str) -> torch.device:
    """The device for `--device`: "auto" is the first GPU where there is one. ConfigError where it is not there."""
    if name == "auto":
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda":
        count = torch.cuda.device_count()
        if (device.index or 0) >= count:
            raise ConfigError(
                f"--device is {name!r}, but torch sees {count} CUDA devices; use --device cpu, or see to the driver"
            )
        return torch.device("cuda", device.index or 0)
    return device


def device_memory(device: torch.device) -> int | None:
    """Bytes of memory of a GPU; None for the CPU."""
    return torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else None


def choose_workers(workers: int) -> int:
    """Threads for `--workers`: 0 is one for each CPU core this process may use."""
    return workers or len(os.sched_getaffinity(0))
