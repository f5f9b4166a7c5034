"""The input features equal the library's, for every length, and the golden ones."""

import json
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import soundfile
import torch
import torchaudio

from hfprep.errors import ConfigError, Reason, RejectedSample
from hfprep.inputs.audio.decode import load_waveform
from hfprep.models import input_features
from hfprep.models.input_features import (
    FEATURE_DIM,
    HOP_LENGTH,
    MIN_SAMPLES,
    WINDOW_LENGTH,
    check_preprocessor,
    extract_input_features,
    mel_filters,
    num_input_frames,
)

if TYPE_CHECKING:
    from transformers import SeamlessM4TFeatureExtractor

UPSAMPLED = "synth5"  # the one golden clip below 16 kHz
LARGER_GOLDEN = Path(__file__).resolve().parent.parent.parent / "shared" / "golden"
GOLDENS = [Path(__file__).parent / "golden-small", *([LARGER_GOLDEN] if LARGER_GOLDEN.is_dir() else [])]
GOLDEN_CASES = [
    (golden, row, expected)
    for golden in GOLDENS
    for row in map(json.loads, (golden / "manifest.jsonl").read_text().splitlines())
    for expected in sorted((golden / "expected").glob(f"{row['id']}*.npz"))
    if expected.stem in {row["id"], f"{row['id']}@24k"}
]


@pytest.fixture(scope="module")
def extractor() -> "SeamlessM4TFeatureExtractor":
    from transformers import SeamlessM4TFeatureExtractor  # takes seconds

    return SeamlessM4TFeatureExtractor(padding_value=1)


def library_features(extractor: "SeamlessM4TFeatureExtractor", waveform: np.ndarray) -> np.ndarray:
    """The library's frames that its own mask calls valid."""
    found = extractor(waveform, sampling_rate=16_000, return_tensors="np")
    features: np.ndarray = found["input_features"][0][found["attention_mask"][0].astype(bool)]
    return features


def published_waveform(path: Path, via: int | None) -> np.ndarray:
    """The mean of the channels, resampled by torchaudio with its defaults (by way of `via` Hz), at 16 kHz."""
    samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    waveform = torch.from_numpy(samples).mean(dim=1)
    for target in (via, 16_000):
        if target:
            waveform = torchaudio.functional.resample(waveform, rate, target)
            rate = target
    return np.asarray(waveform.numpy())


def noise(num_samples: int, level: float = 0.1) -> np.ndarray:
    generator = np.random.default_rng(num_samples)
    return (level * generator.standard_normal(num_samples)).astype(np.float32)


@pytest.mark.parametrize(
    ("golden", "row", "expected"), GOLDEN_CASES, ids=[f"{c[0].name}-{c[2].stem}" for c in GOLDEN_CASES]
)
def test_golden(golden: Path, row: dict[str, Any], expected: Path, extractor: "SeamlessM4TFeatureExtractor") -> None:
    via = 24_000 if expected.stem.endswith("@24k") else None
    features = extract_input_features(load_waveform(golden / row["audio"], via=via).samples)
    published = library_features(extractor, published_waveform(golden / row["audio"], via))
    np.testing.assert_allclose(features, published, rtol=0, atol=2e-6)
    with np.load(expected) as values:
        mask = values["attention_mask"].astype(bool)
        assert features.shape == (mask.sum(), FEATURE_DIM)
        # The published code's numbers, bit for bit on this library version; 1e-5 is where codes would begin to flip.
        # The bands above an upsampled clip's sound hold rounding noise, whose logarithm differs between processors: the
        # published code, run above on this one, is the reference there.
        golden_features = values["input_features"][mask]
        here = np.abs(published - golden_features)
        if Path(row["audio"]).stem != UPSAMPLED:
            assert here.max() <= 2e-6
        assert here.max() < 1e-3
        assert (np.abs(features - golden_features) <= here + 2e-6).all()


def test_filters_and_window_are_the_librarys() -> None:
    from transformers.audio_utils import mel_filter_bank, window_function

    filters = mel_filter_bank(257, 80, 20, 8000, 16_000, norm=None, mel_scale="kaldi", triangularize_in_mel_space=True)
    np.testing.assert_allclose(mel_filters(), filters, rtol=0, atol=1e-14)
    np.testing.assert_allclose(input_features.povey_window(), window_function(400, "povey", periodic=False), rtol=1e-14)


# One mel frame more at a time: odd counts leave a half pair, which is padded and masked out; 63 to 65 cross the
# frames that are worked on together, 511 to 513 those whose spectra are.
EDGE_FRAMES = [2, 3, 4, 5, 63, 64, 65, 66, 127, 128, 129, 511, 512, 513, 514]


@pytest.mark.parametrize("mel_frames", EDGE_FRAMES)
@pytest.mark.parametrize("beyond", [0, 1, HOP_LENGTH - 1])
def test_every_edge_equals_the_library(extractor: "SeamlessM4TFeatureExtractor", mel_frames: int, beyond: int) -> None:
    waveform = noise(WINDOW_LENGTH + (mel_frames - 1) * HOP_LENGTH + beyond)
    features = extract_input_features(waveform)
    assert features.dtype == np.float32
    assert features.shape == (mel_frames // 2, FEATURE_DIM) == (num_input_frames(len(waveform)), FEATURE_DIM)
    np.testing.assert_allclose(features, library_features(extractor, waveform), rtol=0, atol=2e-6)


def test_random_lengths_and_levels_equal_the_library(extractor: "SeamlessM4TFeatureExtractor") -> None:
    generator = np.random.default_rng(7)
    differing = total = 0
    for _ in range(60):
        waveform = noise(int(generator.integers(MIN_SAMPLES, 24_000)), level=10 ** generator.uniform(-5, 0))
        waveform[len(waveform) // 3 : len(waveform) // 2] = 0.0  # digital silence inside
        expected, got = library_features(extractor, waveform), extract_input_features(waveform)
        np.testing.assert_allclose(got, expected, rtol=0, atol=2e-6)
        differing += int((got != expected).sum())
        total += got.size
    assert differing <= total * 1e-4  # float32 roundings that fell the other way


def test_silence_is_flat_and_equals_the_library(extractor: "SeamlessM4TFeatureExtractor") -> None:
    waveform = np.zeros(16_000, np.float32)
    features = extract_input_features(waveform)
    np.testing.assert_array_equal(features, library_features(extractor, waveform))
    assert np.ptp(features) < 0.01


def test_a_hand_computed_normalisation() -> None:
    """Each bin of the mel frames has mean 0 and variance 1 (n - 1 in the denominator) over an even number of frames."""
    features = extract_input_features(noise(WINDOW_LENGTH + 99 * HOP_LENGTH)).reshape(100, 80)
    np.testing.assert_allclose(features.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(features.var(axis=0, ddof=1), 1, atol=1e-5)


@pytest.mark.parametrize("num_samples", [0, 1, WINDOW_LENGTH - 1, WINDOW_LENGTH, MIN_SAMPLES - 1])
def test_less_than_a_frame_is_too_short(num_samples: int) -> None:
    assert num_input_frames(num_samples) == 0
    with pytest.raises(RejectedSample, match=f"{num_samples} samples") as caught:
        extract_input_features(noise(num_samples))
    assert caught.value.reason == Reason.AUDIO_TOO_SHORT


def test_the_shortest_clip_has_one_frame() -> None:
    assert num_input_frames(MIN_SAMPLES) == 1
    assert extract_input_features(noise(MIN_SAMPLES)).shape == (1, FEATURE_DIM)


@pytest.mark.parametrize("level", [1e33, 3e38])
def test_overflowing_energy_is_rejected(level: float) -> None:
    waveform = np.full(2_000, level, np.float32)
    waveform[::2] *= -1
    with pytest.raises(RejectedSample, match="overflow") as caught, np.errstate(over="ignore", invalid="ignore"):
        extract_input_features(waveform)
    assert caught.value.reason == Reason.AUDIO_NOT_FINITE


def test_threads_do_not_disturb_each_other() -> None:
    waveforms = [noise(20_000 + 37 * n) for n in range(8)]
    expected = [extract_input_features(waveform) for waveform in waveforms]
    got: list[np.ndarray | None] = [None] * len(waveforms)

    def work(index: int) -> None:
        for _ in range(5):
            got[index] = extract_input_features(waveforms[index])

    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(waveforms))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for mine, alone in zip(got, expected, strict=True):
        assert mine is not None
        np.testing.assert_array_equal(mine, alone)


def test_it_is_faster_than_the_library(extractor: "SeamlessM4TFeatureExtractor") -> None:
    """About five times; half of that is asked for, in processor time, so that a busy machine does not fail it."""
    waveform = noise(160_000)
    ours = min(_processor_seconds(lambda: extract_input_features(waveform)) for _ in range(5))
    theirs = min(_processor_seconds(lambda: library_features(extractor, waveform)) for _ in range(5))
    assert ours * 2 < theirs


def _processor_seconds(work: Any) -> float:
    started = time.thread_time()
    work()
    return time.thread_time() - started


def test_published_preprocessors_pass(golden_small: Path, tmp_path: Path) -> None:
    check_preprocessor(golden_small / "checkpoints" / "w2v-bert-2.0" / "preprocessor_config.json")
    bare = tmp_path / "preprocessor_config.json"
    bare.write_text("{}")  # the library's defaults
    check_preprocessor(bare)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("num_mel_bins", 128),
        ("feature_size", 128),
        ("sampling_rate", 24_000),
        ("stride", 4),
        ("padding_side", "left"),
        ("feature_extractor_type", "Wav2Vec2FeatureExtractor"),
    ],
)
def test_another_preprocessor_is_refused_by_name(tmp_path: Path, key: str, value: object) -> None:
    path = tmp_path / "preprocessor_config.json"
    path.write_text(json.dumps({"padding_value": 0, key: value}))
    with pytest.raises(ConfigError) as caught:
        check_preprocessor(path)
    message = str(caught.value)
    assert all(part in message for part in (str(path), key, repr(value)))
    assert "padding_value" not in message


@pytest.mark.parametrize("content", [None, "", "[1]", "{", "\xff"])
def test_an_unreadable_preprocessor_is_refused(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "preprocessor_config.json"
    if content is not None:
        path.write_bytes(content.encode("latin-1"))
    with pytest.raises(ConfigError, match="preprocessor_config"):
        check_preprocessor(path)
