"""What of this machine a build stands on: Python, packages, devices, disk, models; problems with remedies.

Provides `examine`, a list of `Finding`. Changes nothing but for a short-lived file that measures the disk.
"""

import importlib.metadata
import os
import platform
import shutil
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any

import torch
from packaging.requirements import Requirement

from hfprep.errors import CheckpointError, ConfigError
from hfprep.io.words import size
from hfprep.models.precision import obstacle
from hfprep.pipeline.batching import batch_size_for_memory
from hfprep.recipes.base import Download
from hfprep.recipes.options import ModelOptions
from hfprep.recipes.registry import DEFAULT, absent, choose_recipe, download_command, downloads, recipe
from hfprep.schema import Schema

GIB, MIB = 1 << 30, 1 << 20
OLDEST_PYTHON, FIRST_UNTRIED_PYTHON = (3, 11), (3, 15)
LITTLE_ROOM = 10 * GIB
SLOW_DISK = 50 * MIB  # bytes a second
FEW_FILES = 50  # small files a second, each synced
DISK_PROBE_BYTES = 64 * MIB
DISK_PROBE_FILES = 50
HUB_SECONDS = 5.0  # that the hub may take to answer
LEAST_MEMORY = 6 * GIB  # the models in float32 and one long clip


class Level(IntEnum):
    """How bad a finding is; problems come first."""

    PROBLEM = 0
    WARNING = 1
    FINE = 2


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at, what was found, and what to do about it where that is needed."""

    level: Level
    topic: str
    found: str
    remedy: str = ""


def examine(*, folder: Path, models: Path | None = None, recipe_name: str | None = None) -> list[Finding]:
    """Look at everything; `folder` is where features will go, `models` a folder of model files of a recipe."""
    findings = [_python(), *_packages(), *_devices(), _threads(), *_disk(folder)]
    findings += _models_folder(models, recipe_name) if models is not None else _hub(recipe_name or DEFAULT)
    return sorted(findings, key=lambda finding: finding.level)


def _python() -> Finding:
    found = f"{platform.python_version()} at {sys.executable}, {platform.system()} {platform.machine()}"
    if not OLDEST_PYTHON <= sys.version_info[:2] < FIRST_UNTRIED_PYTHON:
        return Finding(Level.WARNING, "Python", found, "hfprep is tested with Python 3.11 to 3.14: scripts/setup")
    if platform.system() != "Linux":
        return Finding(Level.WARNING, "Python", found, "hfprep is tested on Linux")
    return Finding(Level.FINE, "Python", found)


def _packages() -> Iterator[Finding]:
    """Every package that hfprep asks for: there, and not too old."""
    found = []
    for line in importlib.metadata.requires("hfprep") or ():
        wanted = Requirement(line)
        if wanted.marker is not None and not wanted.marker.evaluate({"extra": ""}):
            continue
        remedy = f"pip install '{wanted.name}{wanted.specifier}'"
        try:
            version = importlib.metadata.version(wanted.name)
        except importlib.metadata.PackageNotFoundError:
            yield Finding(Level.PROBLEM, "packages", f"{wanted.name} is not installed", remedy)
            continue
        found.append(f"{wanted.name} {version}")
        if not wanted.specifier.contains(version, prereleases=True):
            yield Finding(Level.PROBLEM, "packages", f"{wanted.name} is {version}", remedy)
    yield Finding(Level.FINE, "packages", ", ".join(found))


def _devices() -> Iterator[Finding]:
    """Each GPU with its memory and the batch size that `--batch-size 0` starts from; or that there is none."""
    count = torch.cuda.device_count()
    for index in range(count):
        device = torch.cuda.get_device_properties(index)
        size = batch_size_for_memory(device.total_memory)
        free = torch.cuda.mem_get_info(index)[0]
        found = (
            f"cuda:{index} {device.name}, {device.total_memory / GIB:.1f} GiB, {free / GIB:.1f} free, batch size {size}"
        )
        if free < min(LEAST_MEMORY, device.total_memory / 2):
            yield Finding(Level.WARNING, "devices", found, "another process holds its memory: nvidia-smi shows which")
        else:
            yield Finding(Level.FINE, "devices", found)
        reason = obstacle("exact", torch.device("cuda", index))
        if reason is not None:
            remedy = "all precisions but fp32 need that, and fp32 is many times slower"
            yield Finding(Level.WARNING, "devices", f"cuda:{index} --precision fp32 alone: {reason}", remedy)
    if count:
        return
    found = f"no GPU in use (torch {torch.__version__}); the CPU computes, batch size {batch_size_for_memory(None)}"
    if shutil.which("nvidia-smi") or Path("/proc/driver/nvidia").exists():
        remedy = "torch does not see the GPU: install a torch build for the driver's CUDA version"
        yield Finding(Level.PROBLEM, "devices", found, remedy)
    else:
        yield Finding(Level.WARNING, "devices", found, "enough to try things out; a GPU is much faster")


def _threads() -> Finding:
    cores = len(os.sched_getaffinity(0))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    found = f"{cores} threads to decode audio, torch computes with {torch.get_num_threads()}, {memory / GIB:.0f} GiB"
    if memory < LEAST_MEMORY:
        return Finding(Level.WARNING, "CPU", found, f"the published models need {LEAST_MEMORY / GIB:.0f} GiB of memory")
    return Finding(Level.FINE, "CPU", found)


def _disk(folder: Path) -> Iterator[Finding]:
    """Room, and speed at one large file and at many small ones, synced as a build does it."""
    place = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.is_dir())
    room = shutil.disk_usage(place).free
    level, remedy = Level.FINE, ""
    if room < LITTLE_ROOM:
        level, remedy = Level.WARNING, "python -m hfprep check MANIFEST says how much a data set needs"
    yield Finding(level, "disk", f"{place}: {room / GIB:.1f} GiB free", remedy)
    probe = place / f".hfprep-doctor-{os.getpid()}"
    try:
        probe.mkdir()
        bytes_per_second, files_per_second = _disk_speed(probe)
    except OSError as error:
        remedy = "make the folder writable, or give another with --output-dir"
        yield Finding(Level.PROBLEM, "disk", f"{place} cannot be written: {error.strerror or error}", remedy)
        return
    finally:
        shutil.rmtree(probe, ignore_errors=True)
    found = f"{place}: {bytes_per_second / MIB:.0f} MiB/s, {files_per_second:.0f} small files/s, all synced"
    if bytes_per_second < SLOW_DISK or files_per_second < FEW_FILES:
        remedy = "build onto a local disk and copy the result: python -m hfprep export-webdataset makes few large files"
        yield Finding(Level.WARNING, "disk", found, remedy)
    else:
        yield Finding(Level.FINE, "disk", found)


def _disk_speed(folder: Path) -> tuple[float, float]:
    data = os.urandom(DISK_PROBE_BYTES)
    started = time.perf_counter()
    _write(folder / "large", data)
    large = time.perf_counter() - started
    started = time.perf_counter()
    for number in range(DISK_PROBE_FILES):
        _write(folder / str(number), data[:2048])
    return DISK_PROBE_BYTES / large, DISK_PROBE_FILES / (time.perf_counter() - started)


def _write(path: Path, data: bytes) -> None:
    with open(path, "wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())


def _hub(name: str) -> Iterator[Finding]:
    """The hub, its cache, and whether each published model is in it."""
    from huggingface_hub import constants

    unreachable = _unreachable(constants)
    where = f"{constants.HF_HUB_CACHE}; the hub {f'cannot be used: {unreachable}' if unreachable else 'is reachable'}"
    lacking = {source: lacks for source in downloads(recipe(name)) if (lacks := _not_cached(source))}
    if unreachable and lacking:
        yield Finding(Level.WARNING, "hub", where, "check the network, HF_ENDPOINT and HF_HUB_OFFLINE")
    else:
        yield Finding(Level.FINE, "hub", where)
    remedy = "give a folder with the model files as --models DIR; python -m hfprep download DIR makes one"
    if unreachable:
        remedy += ", where there is a network"
    for source in downloads(recipe(name)):
        if source not in lacking:
            yield Finding(Level.FINE, "models", f"{source.repository} is in the cache")
            continue
        about = f", about {size(source.num_bytes)}" if source.num_bytes else ""
        found = f"{source.repository} is not here: {', '.join(lacking[source])}{about}"
        yield Finding(Level.PROBLEM if unreachable else Level.WARNING, "models", found, remedy)


def _unreachable(constants: Any) -> str | None:
    """Why the hub cannot be asked now; None if it answers, whatever it says."""
    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    request = urllib.request.Request(constants.ENDPOINT, method="HEAD")
    try:
        with urllib.request.urlopen(request, timeout=HUB_SECONDS):
            return None
    except urllib.error.HTTPError:
        return None
    except (OSError, ValueError) as error:
        return f"{constants.ENDPOINT} does not answer ({error})"


def _not_cached(source: Download) -> list[str]:
    """The files of a repository that are not in the hub's cache."""
    import huggingface_hub

    cached = (huggingface_hub.try_to_load_from_cache(source.repository, name) for name in source.files)
    return [name for name, found in zip(source.files, cached, strict=True) if not isinstance(found, str)]


def _models_folder(models: Path, name: str | None) -> Iterator[Finding]:
    """Whether a folder holds every file that a build reads, and they belong together."""
    options = ModelOptions(models=models)
    chosen = choose_recipe(name, options)
    try:
        found = chosen.find(options, fetch=False)
        found.check()
    except (ConfigError, CheckpointError) as error:
        lacks = absent(models, chosen)
        if lacks:
            remedy = f"{download_command(models, chosen)} fetches what is missing"
            yield Finding(Level.PROBLEM, "models", f"{models} lacks {', '.join(lacks)}", remedy)
        else:
            yield Finding(Level.PROBLEM, "models", str(error), "give the files of one published model")
        return
    yield Finding(Level.FINE, "models", f"{models}: {_described(found.schema)}")


def _described(schema: Schema) -> str:
    """A recipe's samples in a line: 1280 wide, codebook of 8192 at 50 codes a second."""
    codes = [f"codebook of {column.size}" for column in schema.of_kind("codes") if column.size is not None]
    rate = f" at {schema.code_rate:g} codes a second" if schema.code_rate else ""
    widths = [f"{column.name} {' x '.join(map(str, column.dims))}" for column in schema.of_kind("vector")]
    return f"{schema.recipe}, {', '.join(codes)}{rate}, {', '.join(widths)}"
