"""Two streams on a CPU: half of the clips of a batch in each, computed in parallel by half of the threads each.

Threads of one computation wait for each other at every step, and all are limited by memory or by arithmetic at the same
time. With two streams, one can compute while the other waits for memory. Provides `Streams`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

STREAMS = 2
LEAST_FRAMES = 500  # per thread of a stream: with fewer, a second stream gains nothing
UNEVEN = 1.05  # the longest stream may take this many times longer than with equal parts

Result = TypeVar("Result")


class Cancelled(Exception):
    """Another stream failed, or the caller was interrupted."""


class Streams:
    """Runs the parts of a batch in a persistent thread pool."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(STREAMS, "hfprep-stream")
        self._cancelled = threading.Event()

    def parts(self, frames: Sequence[int]) -> list[list[int]]:
        """Assign clips with these lengths to streams; one stream if two would not be faster."""
        everything, threads = [list(range(len(frames)))], _shares(torch.get_num_threads())
        if not all(threads):
            return everything
        parts: list[list[int]] = [[] for _ in threads]
        held = [0] * len(threads)
        for clip in sorted(range(len(frames)), key=lambda clip: -frames[clip]):
            stream = min(range(len(threads)), key=lambda stream: (held[stream] + frames[clip]) / threads[stream])
            parts[stream].append(clip)
            held[stream] += frames[clip]
        of_thread = [count / share for count, share in zip(held, threads, strict=True)]
        if min(of_thread) < LEAST_FRAMES or max(of_thread) > UNEVEN * sum(held) / sum(threads):
            return everything
        return [sorted(part) for part in parts]

    def run(self, function: Callable[[list[int]], Result], parts: Sequence[list[int]]) -> list[Result]:
        """Apply the function to each part; several parts run in streams, which share this thread's threads.

        Raises the exception of the first stream that fails; the others are then cancelled (see `cancellable_at`).
        """
        self._cancelled.clear()
        if len(parts) == 1:
            return [function(parts[0])]

        def work(part: list[int], threads: int) -> Result:
            torch.set_num_threads(threads)
            return function(part)

        shares = _shares(torch.get_num_threads())
        running = [self._pool.submit(work, part, share) for part, share in zip(parts, shares, strict=True)]
        try:
            failed = [one for one in wait(running, return_when=FIRST_EXCEPTION).done if one.exception() is not None]
            if failed:
                failed[0].result()
            return [one.result() for one in running]
        except BaseException:
            self._cancelled.set()
            wait(running)
            raise

    def cancellable_at(self, module: nn.Module) -> None:
        """Stop cancelled streams when they call this module."""

        def check(*_: object) -> None:
            if self._cancelled.is_set():
                raise Cancelled

        module.register_forward_pre_hook(check)


def join_parts(parts: Sequence[Mapping[str, Tensor]], clips: Sequence[Sequence[int]]) -> dict[str, Tensor]:
    """Join the columns of a batch's parts, in the order of the batch's clips.

    parts: the columns of each part by name, with a row per clip; clips: the indices of each part's clips. `codes` are
    padded with 0 to the longest.
    """
    if len(parts) == 1:
        return dict(parts[0])
    places = torch.tensor([clip for part in clips for clip in part]).argsort()
    joined = {}
    for name in parts[0]:
        columns = [part[name] for part in parts]
        if name == "codes":
            column = pad_sequence([row for column in columns for row in column], batch_first=True)
        else:
            column = torch.cat(columns)
        joined[name] = column[places]
    return joined


def _shares(threads: int) -> list[int]:
    """The number of threads of each stream."""
    return [(threads + stream) // STREAMS for stream in range(STREAMS)]
