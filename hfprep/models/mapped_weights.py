"""Weights in mapped files: read ahead of their first use, and held by a process only while it uses them, or for good.

Gives `hold_weights`. A page of a mapped file comes into a process's memory when it is first touched, one interruption
for a few pages; asked for by the GB they come ten times faster. Given back, they stay in the system's file cache, for
this and other processes to map again. Knows nothing of models but their modules.
"""

from __future__ import annotations

import ctypes
import mmap
import threading
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

RESIDENT_BYTES = 800_000_000  # of the 3.1 GB of the published models; a build then peaks at 3.3 GB
FRAMES_PER_THREAD = 500  # to give back and to map again takes the time of a few tens of them
MADV_POPULATE_READ = 22  # of Linux 5.14; Python has no name for it


def hold_weights(model: nn.Module, parts: Sequence[nn.Module]) -> list[nn.Module]:
    """Map a model's weights ahead of their use, for good up to `RESIDENT_BYTES`, and beyond that while they are used.

    The largest of its `parts` are those that are mapped before each use and given back after it. They are called with
    hidden states (B, T, ...) first, and give nothing back while the mean of their frames is below `FRAMES_PER_THREAD`
    a thread. Returns these parts: none where the weights are few, or not mapped. Nobody may write to the weights.
    """
    mappings = _file_mappings()
    resident = _MappedWeights(model.parameters(), mappings).num_bytes
    held = [(part, _MappedWeights(part.parameters(), mappings)) for part in parts]
    streamed: dict[nn.Module, _MappedWeights] = {}
    for part, weights in sorted(held, key=lambda item: -item[1].num_bytes):
        if resident > RESIDENT_BYTES:
            resident -= weights.num_bytes
            streamed[part] = weights
            part.register_forward_pre_hook(weights.before_use, prepend=True)
            part.register_forward_hook(weights.after_use, always_call=True)
    passing = {id(weight) for part in streamed for weight in part.parameters()}
    _MappedWeights((weight for weight in model.parameters() if id(weight) not in passing), mappings).map()
    return list(streamed)


class _MappedWeights:
    """Those of some weights that lie in mapped files, as whole pages that hold nothing else.

    Keeps the tensors, so that no other memory takes their place.
    """

    def __init__(self, weights: Iterable[Tensor], mappings: Sequence[range]) -> None:
        self._tensors = [weight.detach() for weight in weights if weight.is_contiguous()]
        self._pages = [pages for tensor in self._tensors if (pages := _pages_in(tensor, mappings))]
        self.num_bytes = sum(len(pages) for pages in self._pages)
        self._lock = threading.Lock()
        self._mapped = False
        self._users = self._uses = self._frames = 0

    def before_use(self, _part: nn.Module, _inputs: tuple[Any, ...]) -> None:
        """A forward pre-hook."""
        with self._lock:
            self._users += 1
            if not self._mapped:
                self.map()

    def after_use(self, _part: nn.Module, inputs: tuple[Any, ...], _output: Any) -> None:
        """A forward hook, called where the part fails, too (then without an output)."""
        batch, frames = inputs[0].shape[:2]
        with self._lock:
            self._users -= 1
            self._uses += 1
            self._frames += batch * frames
            if not self._users and self._frames >= self._uses * FRAMES_PER_THREAD * torch.get_num_threads():
                self.give_back()

    def map(self) -> None:
        """Bring them into this process's memory, where they would come page by page otherwise."""
        self._mapped = True
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            list(pool.map(lambda pages: _advise(pages, MADV_POPULATE_READ), self._pages))

    def give_back(self) -> None:
        """Take them out of this process's memory until they are read again."""
        self._mapped = False
        for pages in self._pages:
            _advise(pages, mmap.MADV_DONTNEED)


def _advise(pages: range, advice: int) -> None:
    # What it returns is of no interest: where the system does not know the advice, pages come and stay as ever.
    ctypes.CDLL(None).madvise(ctypes.c_void_p(pages.start), ctypes.c_size_t(len(pages)), advice)


def _file_mappings() -> list[range]:
    """The addresses of this process's memory that are files; none where the system does not list them."""
    try:
        lines = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    mappings = []
    for line in lines:
        addresses, _rights, _offset, _device, inode = line.split(maxsplit=5)[:5]
        if inode != "0":
            start, end = addresses.split("-")
            mappings.append(range(int(start, 16), int(end, 16)))
    return mappings


def _pages_in(tensor: Tensor, mappings: Sequence[range]) -> range:
    """The pages that hold nothing but this tensor, none where it lies outside of the mappings or on a device, whose
    addresses may be among those that a driver has mapped here.
    """
    start, stop, page = tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes, mmap.PAGESIZE
    on_device = tensor.device.type != "cpu"
    if on_device or not any(mapping.start <= start and stop <= mapping.stop for mapping in mappings):
        return range(0)
    return range(-(-start // page) * page, stop // page * page)
