"""Measures seconds by stage, the device's matmul rate, and the memory of this process.

Provides `Stopwatch`, `matrix_rate`, `peak_memory` and `PrivateMemory`.
"""

import contextlib
import resource
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hfprep.models.operators import linear

MATRIX_SIDES = {"cpu": 2048, "cuda": 8192}  # large enough for full speed
MATRIX_SECONDS = 1.0
MATRIX_LEAST = 5  # minimum number of matmuls
PRIVATE_MEMORY_SECONDS = 0.05
KIB = 1 << 10


Clock = Callable[[], float]


def clock_for(threads: int) -> Clock:
    """Wall time, or with one thread its CPU time, which other programs affect less."""
    return time.thread_time if threads == 1 else time.perf_counter


class Stopwatch:
    """Adds up the time of each stage. Thread-safe; the seconds of parallel threads are summed."""

    def __init__(self, device: torch.device, clock: Clock = time.perf_counter) -> None:
        self.clock = clock
        self._cuda = device.type == "cuda"
        self._lock = threading.Lock()
        self._seconds: dict[str, float] = defaultdict(float)
        self._events: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []
        self._running: Counter[str] = Counter()
        self._seen = 0.0

    def add(self, stage: str, seconds: float) -> None:
        with self._lock:
            self._seconds[stage] += seconds

    @contextlib.contextmanager
    def measuring(self, stage: str) -> Iterator[None]:
        """Time a block."""
        started = self.clock()
        try:
            yield
        finally:
            self.add(stage, self.clock() - started)

    def timed(self, stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, timed."""

        def call(*args: Any, **options: Any) -> Any:
            with self.measuring(stage):
                return function(*args, **options)

        return call

    def watch(self, stage: str, module: nn.Module) -> None:
        """Time every call of a module; on a GPU with events in its stream, without synchronising.

        On a CPU, simultaneous calls share the time, so that the watched stages add up to the elapsed time.
        """
        begun: list[Any] = []
        module.register_forward_pre_hook(lambda *_: begun.append(self._begin(stage)))
        module.register_forward_hook(lambda *_: self._end(stage, begun.pop()), always_call=True)

    def watched(self, stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, timed like a module in `watch`."""

        def call(*args: Any, **options: Any) -> Any:
            begun = self._begin(stage)
            try:
                return function(*args, **options)
            finally:
                self._end(stage, begun)

        return call

    def _begin(self, stage: str) -> Any:
        if self._cuda:
            return self._event()
        self._go_on(stage, 1)
        return None

    def _end(self, stage: str, begun: Any) -> None:
        if self._cuda:
            self._events.append((stage, begun, self._event()))
        else:
            self._go_on(stage, -1)

    def _event(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _go_on(self, stage: str, calls: int) -> None:
        """Divide the time since the last start or end of a call among the running calls, then update their number."""
        with self._lock:
            now, total = self.clock(), self._running.total()
            for running, count in self._running.items():
                self._seconds[running] += (now - self._seen) * count / max(1, total)
            self._seen = now
            self._running[stage] += calls

    def seconds(self) -> dict[str, float]:
        """Seconds by stage so far; synchronises with the GPU."""
        if self._events:
            torch.cuda.synchronize()
        for stage, start, end in self._events:
            self.add(stage, start.elapsed_time(end) / 1000)
        self._events.clear()
        return dict(self._seconds)


def matrix_rate(device: torch.device, clock: Clock, dtype: torch.dtype = torch.float32) -> float:
    """Operations per second of the fastest of several square matmuls, with torch.mm and the models' `linear`."""
    side = MATRIX_SIDES[device.type]
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    best, count, begun = float("inf"), 0, time.perf_counter()
    while count < 2 * MATRIX_LEAST or time.perf_counter() - begun < MATRIX_SECONDS:
        product = (torch.mm, linear)[count % 2]
        _wait(device)
        started = clock()
        product(left, right)
        _wait(device)
        best, count = min(best, clock() - started), count + 1
    return 2 * side**3 / best


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_memory() -> int:
    """The peak memory of this process in bytes, including memory-mapped weights that it has read."""
    # Preferred to getrusage, whose value survives exec and so includes the parent's.
    return _status_bytes("VmHWM") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * KIB


def _status_bytes(name: str) -> int | None:
    """A value in bytes from /proc/self/status; None if it is missing."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
        return next(int(line.split()[1]) * KIB for line in lines if line.startswith(f"{name}:"))
    except (OSError, StopIteration):
        return None


class PrivateMemory:
    """The peak private memory of this process in bytes during a `with` block, sampled twenty times per second.

    Memory-mapped files are not included: processes share them, and the system can evict them.
    """

    def __init__(self) -> None:
        self.peak: int | None = None
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "PrivateMemory":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        over = False
        while not over:
            over = self._over.wait(PRIVATE_MEMORY_SECONDS)
            held = _status_bytes("RssAnon")
            if held is None:
                return
            self.peak = max(self.peak or 0, held)
