"""Examines the machine: Python, packages, devices, disk, models; reports problems and what to do.

Provides `examine`, which returns a list of `Finding`. Writes only temporary files, to measure the disk.
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
LITTLE_SPACE = 10 * GIB
SLOW_DISK = 50 * MIB  # bytes per second
FEW_FILES = 50  # small files per second, each synced
DISK_PROBE_BYTES = 64 * MIB
DISK_PROBE_FILES = 50
HUB_SECONDS = 5.0  # timeout for the hub
LEAST_MEMORY = 6 * GIB  # the models in float32 and a long clip


class Level(IntEnum):
    """How bad a finding is; problems come first."""

    PROBLEM = 0
    WARNING = 1
    FINE = 2


@dataclass(frozen=True, slots=True)
class Finding:
    """A topic, what was found about it, and what to do if necessary."""

    level: Level
    topic: str
    found: str
    remedy: str = ""


def _judged(wrong: bool, topic: str, found: str, remedy: str) -> Finding:
    """A warning with its remedy if something is wrong, else a finding that all is fine."""
    return Finding(Level.WARNING, topic, found, remedy) if wrong else Finding(Level.FINE, topic, found)


def examine(*, folder: Path, models: Path | None = None, recipe_name: str | None = None) -> list[Finding]:
    """Examine the machine; `folder` is for the output of a build, `models` a folder with a recipe's model files."""
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
    """Whether every required package is installed and recent enough."""
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
    """Each GPU with its memory and the initial batch size of `--batch-size 0`, or that there is none."""
    count = torch.cuda.device_count()
    for index in range(count):
        device = torch.cuda.get_device_properties(index)
        size = batch_size_for_memory(device.total_memory)
        free = torch.cuda.mem_get_info(index)[0]
        found = (
            f"cuda:{index} {device.name}, {device.total_memory / GIB:.1f} GiB, {free / GIB:.1f} free, batch size {size}"
        )
        full = free < min(LEAST_MEMORY, device.total_memory / 2)
        yield _judged(full, "devices", found, "another process uses its memory: nvidia-smi shows which")
        reason = obstacle("exact", torch.device("cuda", index))
        if reason is not None:
            remedy = "all precisions except fp32 need it, and fp32 is many times slower"
            yield Finding(Level.WARNING, "devices", f"cuda:{index} supports --precision fp32 only: {reason}", remedy)
    if count:
        return
    found = (
        f"no GPU in use (torch {torch.__version__}); builds run on the CPU, batch size {batch_size_for_memory(None)}"
    )
    if shutil.which("nvidia-smi") or Path("/proc/driver/nvidia").exists():
        remedy = "torch does not see the GPU: install a torch build for the driver's CUDA version"
        yield Finding(Level.PROBLEM, "devices", found, remedy)
    else:
        yield Finding(Level.WARNING, "devices", found, "enough to try things out; a GPU is much faster")


def _threads() -> Finding:
    cores = len(os.sched_getaffinity(0))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    found = f"{cores} threads to decode audio, {torch.get_num_threads()} for torch, {memory / GIB:.0f} GiB of memory"
    remedy = f"the published models need {LEAST_MEMORY / GIB:.0f} GiB of memory"
    return _judged(memory < LEAST_MEMORY, "CPU", found, remedy)


def _disk(folder: Path) -> Iterator[Finding]:
    """Free space, and the speed for a large file and for many small ones, synced as in a build."""
    place = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.is_dir())
    room = shutil.disk_usage(place).free
    remedy = "python -m hfprep check MANIFEST shows how much a data set needs"
    yield _judged(room < LITTLE_SPACE, "disk", f"{place}: {room / GIB:.1f} GiB free", remedy)
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
    slow = bytes_per_second < SLOW_DISK or files_per_second < FEW_FILES
    remedy = "build on a local disk and copy the result: python -m hfprep export-webdataset makes few large files"
    yield _judged(slow, "disk", found, remedy)


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
    """The hub, its cache, and whether the published models are in the cache."""
    from huggingface_hub import constants

    unreachable = _unreachable(constants)
    where = f"{constants.HF_HUB_CACHE}; the hub {f'cannot be used: {unreachable}' if unreachable else 'is reachable'}"
    lacking = {source: lacks for source in downloads(recipe(name)) if (lacks := _not_cached(source))}
    yield _judged(bool(unreachable and lacking), "hub", where, "check the network, HF_ENDPOINT and HF_HUB_OFFLINE")
    remedy = "give a folder with the model files as --models DIR; python -m hfprep download DIR makes one"
    if unreachable:
        remedy += " on a machine with network access"
    for source in downloads(recipe(name)):
        if source not in lacking:
            yield Finding(Level.FINE, "models", f"{source.repository} is in the cache")
            continue
        about = f", about {size(source.num_bytes)}" if source.num_bytes else ""
        found = f"{source.repository} is not in the cache: {', '.join(lacking[source])}{about}"
        yield Finding(Level.PROBLEM if unreachable else Level.WARNING, "models", found, remedy)


def _unreachable(constants: Any) -> str | None:
    """Why the hub is unreachable; None if it responds with any status."""
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
    """Whether a folder has all files that a build reads, and they match each other."""
    options = ModelOptions(models=models)
    chosen = choose_recipe(name, options)
    try:
        found = chosen.find(options, fetch=False)
        found.check()
    except (ConfigError, CheckpointError) as error:
        lacks = absent(models, chosen)
        if lacks:
            remedy = f"{download_command(models, chosen)} downloads the missing files"
            yield Finding(Level.PROBLEM, "models", f"{models} lacks {', '.join(lacks)}", remedy)
        else:
            yield Finding(Level.PROBLEM, "models", str(error), "give the files of one published model")
        return
    yield Finding(Level.FINE, "models", f"{models}: {_described(found.schema)}")


def _described(schema: Schema) -> str:
    """A schema in one line: recipe, codebook sizes, code rate, widths."""
    codes = [f"codebook of {column.size}" for column in schema.of_kind("codes") if column.size is not None]
    rate = f" at {schema.code_rate:g} codes per second" if schema.code_rate else ""
    widths = [f"{column.name} {' x '.join(map(str, column.dims))}" for column in schema.of_kind("vector")]
    return f"{schema.recipe}, {', '.join(codes)}{rate}, {', '.join(widths)}"
