"""Two streams on a CPU: which clips go where, the same features in the clips' order, and an end where one fails."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from hfprep.models import streams as streams_module
from hfprep.models.operators import Scratch
from hfprep.models.streams import Cancelled, Streams
from hfprep.recipes.indextts2.config import ModelConfig
from hfprep.recipes.indextts2.feature_model import FeatureModel
from hfprep.recipes.indextts2.recipe import locate
from hfprep.recipes.options import ModelOptions
from tests.quick import some_quick

GOLDEN = Path(__file__).resolve().parent / "golden-small"
LENGTHS = [29, 3, 88, 64, 4, 17, 101, 50]


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def any_batch_in_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams_module, "LEAST_FRAMES", 1)
    monkeypatch.setattr(streams_module, "UNEVEN", 9)


@pytest.mark.parametrize(
    ("threads", "frames", "expected"),
    [
        (2, [300] * 4, [[0, 2], [1, 3]]),
        (2, [300, 700, 500, 500], [[0, 1], [2, 3]]),
        (3, [300] * 6, [[3, 5], [0, 1, 2, 4]]),  # one thread and two
        (1, [300] * 4, [[0, 1, 2, 3]]),
        (2, [3000], [[0]]),
        (2, [1200, 600], [[0, 1]]),  # the shorter one would wait
        (2, [499, 499], [[0, 1]]),  # too few rows
        (4, [600, 600], [[0, 1]]),
    ],
)
def test_clips_are_spread_evenly_or_not_at_all(
    threads: int, frames: list[int], expected: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    parts = Streams().parts(frames)
    assert sorted(clip for part in parts for clip in part) == list(range(len(frames)))
    assert [sum(frames[clip] for clip in part) for part in parts] == [
        sum(frames[clip] for clip in part) for part in expected
    ]


@pytest.mark.parametrize("wanted", some_quick(["codes latents", "latents", "codes"], 3))
def test_features_are_those_of_one_stream_in_the_clips_order(
    wanted: str, any_batch_in_streams: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = locate(ModelOptions(models=GOLDEN / "checkpoints"))
    model = FeatureModel.load(files, ModelConfig.read(files.config))
    threads: dict[str, int] = {}

    def note(*_: object) -> None:
        threads[threading.current_thread().name] = torch.get_num_threads()

    model.semantic_encoder.register_forward_pre_hook(note)
    features, lengths = torch.randn(len(LENGTHS), max(LENGTHS), 160), torch.tensor(LENGTHS)
    got = model(features, lengths, frozenset(wanted.split()))
    assert threads == {"hfprep-stream_0": 1, "hfprep-stream_1": 1}
    assert torch.get_num_threads() == 2
    monkeypatch.setattr(streams_module, "LEAST_FRAMES", 10**9)
    alone = model(features, lengths, frozenset(wanted.split()))
    assert threads[threading.current_thread().name] == 2
    assert got.keys() == alone.keys()
    for name, one in got.items():
        other = alone[name]
        if name == "codes":
            assert one.shape == other.shape
            assert all(
                torch.equal(ours[:length], theirs[:length])
                for ours, theirs, length in zip(one, other, LENGTHS, strict=True)
            )
        else:
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def forever(module: nn.Module, ended: list[str]) -> None:
    """Work that ends where the module lets it, or after a minute."""
    began = time.monotonic()
    try:
        while time.monotonic() - began < 60:
            module(torch.zeros(1))
            time.sleep(0.01)
    except Cancelled:
        ended.append("cancelled")
        raise


def test_what_one_stream_raises_ends_the_other() -> None:
    streams, module, ended = Streams(), nn.Identity(), list[str]()
    streams.cancellable_at(module)

    def work(part: list[int]) -> None:
        if part == [1]:
            raise MemoryError("no room")
        forever(module, ended)

    with pytest.raises(MemoryError, match="no room"):
        streams.run(work, [[0], [1]])
    assert ended == ["cancelled"]
    assert streams.run(lambda part: float(module(torch.ones(1))) + part[0], [[5]]) == [6.0]
    assert streams.run(lambda part: float(module(torch.ones(1))) + part[0], [[0], [1]]) == [1.0, 2.0]


def test_a_batch_that_failed_in_streams_can_be_computed_in_one(
    any_batch_in_streams: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As its halves are, where memory ran out."""
    files = locate(ModelOptions(models=GOLDEN / "checkpoints"))
    model = FeatureModel.load(files, ModelConfig.read(files.config))
    features, lengths = torch.randn(len(LENGTHS), max(LENGTHS), 160), torch.tensor(LENGTHS)

    def fail(*_: object) -> None:
        raise MemoryError("no room")

    failing = model.semantic_codec.register_forward_pre_hook(fail)
    with pytest.raises(MemoryError, match="no room"):
        model(features, lengths)
    failing.remove()
    monkeypatch.setattr(streams_module, "LEAST_FRAMES", 10**9)
    assert "codes" in model(features, lengths)


def test_an_interrupt_ends_both() -> None:
    streams, module, ended = Streams(), nn.Identity(), list[str]()
    streams.cancellable_at(module)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
        with pytest.raises(KeyboardInterrupt):
            streams.run(lambda _part: forever(module, ended), [[0], [1]])
    finally:
        signal.signal(signal.SIGINT, before)
    assert ended == ["cancelled", "cancelled"]


def test_every_thread_has_room_of_its_own() -> None:
    scratch, rooms, both = Scratch(), dict[int, Tensor](), threading.Barrier(2)

    def work(part: list[int]) -> int:
        both.wait(30)
        rooms[part[0]] = scratch.take((4,), torch.zeros(1)).fill_(part[0])
        both.wait(30)
        return int(scratch.take((4,), torch.zeros(1)).sum())

    assert Streams().run(work, [[0], [1]]) == [0, 4]
    assert rooms[0].data_ptr() != rooms[1].data_ptr()
