"""Two streams of a CPU: the clips of a batch in two parts, computed beside each other by half the threads each.

Threads that share one computation wait for each other at every step, and all of them move memory at once and compute at
once; of two streams one can compute while the other moves memory. Gives `Streams`. Knows nothing of models.
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
LEAST_FRAMES = 500  # of a stream and thread: with fewer a second one gains nothing
UNEVEN = 1.05  # how much longer than with even parts the longest stream may take

Result = TypeVar("Result")


class Cancelled(Exception):
    """Another stream has failed, or whoever waits has been interrupted."""


class Streams:
    """Runs the parts of a batch in threads of its own, which stay."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(STREAMS, "hfprep-stream")
        self._cancelled = threading.Event()

    def parts(self, frames: Sequence[int]) -> list[list[int]]:
        """Which clips, of so many frames each, go into which stream: one stream where two would be no faster."""
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
        """What the function makes of each part; of several, each in a stream, with its share of this thread's threads.

        Raises what the first one raises that fails; the others then end where `ends_with` lets them.
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

    def ends_with(self, module: nn.Module) -> None:
        """Where calls of this module begin, a stream ends once it is not wanted any more."""

        def check(*_: object) -> None:
            if self._cancelled.is_set():
                raise Cancelled

        module.register_forward_pre_hook(check)


def join_parts(parts: Sequence[Mapping[str, Tensor]], clips: Sequence[Sequence[int]]) -> dict[str, Tensor]:
    """The columns of clips 0, 1, ... of a batch, from those of parts of it.

    parts: by name the columns of each part, a row for a clip; clips: the numbers of each part's clips. Rows of `codes`
    are padded with 0 to the longest.
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
    """How many threads each stream has."""
    return [(threads + stream) // STREAMS for stream in range(STREAMS)]
