"""Weights that a process holds only while it uses them: which, when, and that no number depends on it."""

import mmap
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from hfprep.models import mapped_weights
from hfprep.models.mapped_weights import hold_weights
from hfprep.recipes.indextts2.config import ModelConfig
from hfprep.recipes.indextts2.feature_model import FeatureModel
from hfprep.recipes.indextts2.locate import locate
from scripts.benchmark.measuring import _status_bytes

GOLDEN = Path(__file__).resolve().parent / "golden-small"
STATUS = Path("/proc/self/status")
MIB = 1 << 20

pytestmark = pytest.mark.skipif(not STATUS.exists(), reason="what is mapped is read from /proc")


class Sums(nn.Module):
    """Adds up its weights."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)

    def forward(self, _x: Tensor) -> float:
        return float(self.weight.sum())


class OnDevice(nn.Parameter):
    """A weight whose address on a device is one that a file has here."""

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return torch.device("cuda")

    def detach(self) -> Tensor:
        return self


def mapped_bytes() -> int:
    """What this process holds of files."""
    held = _status_bytes("RssFile")
    assert held is not None
    return held


@pytest.fixture
def parts(tmp_path: Path) -> nn.ModuleList:
    """Parts of 16, 64 and 32 MiB in one mapped file, and one of 64 MiB in memory."""
    weights = {str(size): torch.full((size * MIB // 4,), float(size)) for size in (16, 64, 32)}
    torch.save(weights, tmp_path / "weights.pth")
    mapped = torch.load(tmp_path / "weights.pth", mmap=True)
    return nn.ModuleList(map(Sums, [*mapped.values(), torch.ones(16 * MIB)]))


@pytest.fixture(autouse=True)
def two_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)


def hidden(frames: int) -> Tensor:
    return torch.zeros(1, frames, 1)


def system_maps_ahead() -> bool:
    with mmap.mmap(-1, mmap.PAGESIZE) as memory:
        try:
            memory.madvise(mapped_weights.MADV_POPULATE_READ)
        except OSError:
            return False
    return True


@pytest.mark.skipif(not system_maps_ahead(), reason="needs Linux 5.14")
def test_weights_are_mapped_ahead_of_their_use(parts: nn.ModuleList, monkeypatch: pytest.MonkeyPatch) -> None:
    large = parts[1]
    monkeypatch.setattr(mapped_weights, "RESIDENT_BYTES", 50 * MIB)
    before = mapped_bytes()
    assert hold_weights(parts, list(parts)) == [large]
    assert 47 * MIB < mapped_bytes() - before < 50 * MIB
    large.register_forward_pre_hook(lambda *_: held.append(mapped_bytes() - before))
    held: list[int] = []
    for _ in range(2):
        large(hidden(2000))
    assert all(111 * MIB < size < 114 * MIB for size in held)
    assert mapped_bytes() - before < 50 * MIB


def test_the_largest_mapped_parts_are_streamed_until_the_rest_is_small_enough(
    parts: nn.ModuleList, monkeypatch: pytest.MonkeyPatch
) -> None:
    small, large, medium, _in_memory = parts
    assert hold_weights(parts, list(parts)) == []  # 112 MiB are few
    for most, expected in {112: [], 111: [large], 48: [large], 47: [large, medium], 0: [large, medium, small]}.items():
        monkeypatch.setattr(mapped_weights, "RESIDENT_BYTES", most * MIB)
        assert hold_weights(parts, list(parts)) == expected
    monkeypatch.setattr(mapped_weights, "RESIDENT_BYTES", 50 * MIB)
    assert hold_weights(parts, [small]) == [small]  # of those that were named


def test_weights_on_a_device_are_left_alone(parts: nn.ModuleList, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mapped_weights, "RESIDENT_BYTES", 0)
    for part in parts[:3]:
        part.weight = OnDevice(part.get_parameter("weight"), requires_grad=False)
    before = mapped_bytes()
    assert hold_weights(parts, list(parts)) == []
    assert mapped_bytes() - before < MIB


def test_streamed_weights_leave_memory_after_use_and_come_back(
    parts: nn.ModuleList, monkeypatch: pytest.MonkeyPatch
) -> None:
    _small, large, _medium, in_memory = parts
    total = [part(hidden(1)) for part in parts][1]
    held = mapped_bytes()
    monkeypatch.setattr(mapped_weights, "RESIDENT_BYTES", 100 * MIB)
    assert hold_weights(parts, list(parts)) == [large]
    for _ in range(2):
        assert large(hidden(2000)) == total == 64 * 16 * MIB
        assert mapped_bytes() < held - 60 * MIB
    assert in_memory(hidden(2000)) == 16 * MIB


def test_nothing_is_given_back_while_batches_are_short_on_average(
    parts: nn.ModuleList, monkeypatch: pytest.MonkeyPatch
) -> None:
    large = parts[1]
    for part in list(parts):
        part(hidden(1))
    held = mapped_bytes()
    monkeypatch.setattr(mapped_weights, "RESIDENT_BYTES", 100 * MIB)
    hold_weights(parts, list(parts))
    given_back = []
    for frames in (999, 1001, 990, 2000, 500, 100):
        large(hidden(frames))
        given_back.append(mapped_bytes() < held - 60 * MIB)
    assert given_back == [False, True, False, True, True, False]


def test_streamed_weights_stay_while_another_thread_uses_them(
    parts: nn.ModuleList, monkeypatch: pytest.MonkeyPatch
) -> None:
    large, entered, leave = parts[1], threading.Semaphore(0), threading.Event()
    [part(hidden(1)) for part in parts]
    held = mapped_bytes()
    monkeypatch.setattr(mapped_weights, "RESIDENT_BYTES", 100 * MIB)
    hold_weights(parts, list(parts))

    def dwell(_part: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        entered.release()
        if inputs[0].shape[1] == 2500:
            leave.wait(60)
            raise ValueError("a failure is an end of the use, too")

    large.register_forward_pre_hook(dwell)
    with ThreadPoolExecutor() as pool:
        slow = pool.submit(large, hidden(2500))
        entered.acquire()
        large(hidden(2000))
        assert mapped_bytes() > held - 5 * MIB
        leave.set()
        assert isinstance(slow.exception(), ValueError)
    assert mapped_bytes() < held - 60 * MIB


def test_no_number_depends_on_streaming(monkeypatch: pytest.MonkeyPatch) -> None:
    files = locate(models=GOLDEN / "checkpoints")
    config = ModelConfig.read(files.config)
    features, lengths = torch.randn(3, 90, 160), torch.tensor([90, 41, 7])
    wanted = FeatureModel.load(files, config)(features, lengths)
    streamed: list[nn.Module] = []
    monkeypatch.setattr(mapped_weights, "RESIDENT_BYTES", 0)
    monkeypatch.setattr(mapped_weights, "FRAMES_PER_THREAD", 0)
    monkeypatch.setattr(
        "hfprep.recipes.indextts2.feature_model.hold_weights",
        lambda model, parts: streamed.extend(hold_weights(model, parts)),
    )
    model = FeatureModel.load(files, config)
    assert len(streamed) == 19  # the layers and two subsamplings
    for _ in range(2):
        got = model(features, lengths)
        assert got.codes is not None
        assert wanted.codes is not None
        assert torch.equal(got.codes, wanted.codes)
        for name in ("condition", "emo_vec"):
            assert torch.equal(getattr(got, name), getattr(wanted, name))
