"""Input features of a batch equal those of its clips one by one, and those that a CPU computes."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from hfprep.models import batch_input_features as input_features
from hfprep.models.batch_input_features import batch_input_features
from hfprep.models.input_features import HOP_LENGTH, MIN_SAMPLES, WINDOW_LENGTH, extract_input_features

# The even and the odd count of mel frames, with samples to spare and without; the shortest; more than one piece below.
LENGTHS = [MIN_SAMPLES, MIN_SAMPLES + HOP_LENGTH, WINDOW_LENGTH + 100 * HOP_LENGTH, 20_000, 33_333, 8_000]


def clips() -> list[np.ndarray]:
    """Noise of many levels with digital silence inside."""
    draw = np.random.default_rng(11)
    found = []
    for number, length in enumerate(LENGTHS):
        clip = (10.0 ** (-number) * draw.standard_normal(length)).astype(np.float32)
        clip[length // 2 : length // 2 + 2 * WINDOW_LENGTH] = 0.0
        found.append(clip)
    return found


def batched(waveforms: Sequence[np.ndarray], device: str = "cpu") -> torch.Tensor:
    tensors = [torch.from_numpy(waveform) for waveform in waveforms]
    padded = torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True).to(device)
    return batch_input_features(padded, torch.tensor(list(map(len, waveforms))))


@pytest.mark.parametrize("piece", [1, 100, 1 << 15])
def test_a_batch_equals_what_a_cpu_computes(piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(input_features, "PIECE_FRAMES", piece)
    waveforms = clips()
    expected = [extract_input_features(waveform) for waveform in waveforms]
    found = batched(waveforms).numpy()
    assert found.dtype == np.float32
    assert found.shape == (len(waveforms), max(map(len, expected)), 160)
    for row, wanted in zip(found, expected, strict=True):
        np.testing.assert_allclose(row[: len(wanted)], wanted, rtol=0, atol=2e-6)  # the bound of the library's numbers
        assert not row[len(wanted) :].any()


def test_a_clip_does_not_depend_on_its_batch() -> None:
    waveforms = clips()
    for row, waveform in zip(batched(waveforms), waveforms, strict=True):
        alone = batched([waveform])[0]
        torch.testing.assert_close(row[: len(alone)], alone, rtol=0, atol=2e-7)


def test_silence_is_flat() -> None:
    """Its variance is nothing but the rounding of its mean, which float32 sums on a CPU leave at 0.003."""
    silence = np.zeros(16_000, np.float32)
    found = batched([silence, clips()[3]])[0, : len(extract_input_features(silence))].numpy()
    assert not found.any()
    np.testing.assert_allclose(extract_input_features(silence), found, rtol=0, atol=0.004)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_computes_the_same_and_nobody_waits_for_it() -> None:
    waveforms = clips()
    expected = batched(waveforms)
    batched(waveforms, "cuda")  # the constants are uploaded once
    padded = torch.nn.utils.rnn.pad_sequence(list(map(torch.from_numpy, waveforms)), batch_first=True).to("cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = batch_input_features(padded, torch.tensor(LENGTHS))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(found.cpu(), expected, rtol=0, atol=2e-6)
