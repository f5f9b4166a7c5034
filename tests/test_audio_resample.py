"""Resampling equals torchaudio's, bit for bit where there is a table, and to float32 precision where there is none."""

import time

import numpy as np
import pytest
import torch
import torchaudio

from hfprep.inputs.audio.resample import MAX_KERNEL_VALUES, _filters, _resample_directly, resample


def noise(num_samples: int) -> np.ndarray:
    return np.random.default_rng(num_samples).standard_normal(num_samples).astype(np.float32)


@pytest.mark.parametrize("target", [16_000, 24_000])
@pytest.mark.parametrize("source", [8_000, 11_025, 12_000, 22_050, 32_000, 44_100, 48_000, 96_000, 192_000])
def test_equals_torchaudio_bit_for_bit(source: int, target: int) -> None:
    for num_samples in (1, 2, 441, 10_007, 33_331, 50_000, 131_071):
        waveform = noise(num_samples)
        expected = torchaudio.functional.resample(torch.from_numpy(waveform), source, target).numpy()
        got = resample(waveform, source, target)
        assert got.dtype == np.float32
        np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize(("source", "target"), [(44_100, 16_000), (24_000, 16_000), (22_050, 24_000)])
def test_silence_stays_silent(source: int, target: int) -> None:
    waveform = noise(50_000)
    waveform[10_000:20_000] = 0
    expected = torchaudio.functional.resample(torch.from_numpy(waveform), source, target).numpy()
    got = resample(waveform, source, target)
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-20)


def test_where_products_add_up_in_another_order_it_convolves(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with as many taps as 192 kHz needs: the last bits decide codes."""
    added = 0

    def in_another_order(first: torch.Tensor, second: torch.Tensor, *, out: torch.Tensor) -> torch.Tensor:
        nonlocal added
        added += 1
        return out.copy_((first.double() @ second.double()).float())

    waveform = noise(40_000)
    expected = torchaudio.functional.resample(torch.from_numpy(waveform), 16_000, 11_000).numpy()
    monkeypatch.setattr(torch, "mm", in_another_order)
    np.testing.assert_array_equal(resample(waveform, 16_000, 11_000), expected)
    assert added == 1


def test_the_same_rate_is_left_alone() -> None:
    waveform = noise(100)
    assert resample(waveform, 16_000, 16_000) is waveform


def test_the_filters_are_made_once_for_each_pair_of_rates() -> None:
    resample(noise(10), 44_100, 16_000)
    before = _filters.cache_info()
    resample(noise(20), 44_100, 16_000)
    resample(noise(20), 88_200, 32_000)  # the same ratio
    after = _filters.cache_info()
    assert (after.hits, after.misses) == (before.hits + 2, before.misses)


@pytest.mark.parametrize(("source_step", "target_step", "half_width"), [(3, 1, 19), (1, 2, 7), (3, 2, 10)])
def test_the_direct_way_is_the_same_filter(source_step: int, target_step: int, half_width: int) -> None:
    waveform = noise(5_003)
    expected = torchaudio.functional.resample(torch.from_numpy(waveform).double(), source_step, target_step).numpy()
    got = _resample_directly(waveform, source_step, target_step, half_width)
    assert got.shape == expected.shape
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-6)


def test_rates_without_a_common_divisor_need_no_huge_table() -> None:
    source = 47_999  # a table for 48 kHz's neighbour would hold 16,000 filters of 48,000 values
    assert source * 16_000 > 100 * MAX_KERNEL_VALUES
    tone = np.sin(2 * np.pi * 440 * np.arange(2 * source) / source).astype(np.float32)
    started = time.perf_counter()
    got = resample(tone, source, 16_000)
    assert time.perf_counter() - started < 5
    expected = np.sin(2 * np.pi * 440 * np.arange(len(got)) / 16_000)
    assert len(got) == 32_000
    np.testing.assert_allclose(got[100:-100], expected[100:-100], atol=2e-3)
