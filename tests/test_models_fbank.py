"""CAM++'s log mel energies: the published numbers, Kaldi's own in torchaudio, and one clip beside others."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torchaudio.compliance import kaldi

from hfprep.inputs.audio.decode import load_waveform
from hfprep.models.batch_input_features import batch_fbank, num_fbank_frames

TESTS = Path(__file__).resolve().parent
GOLDEN = [folder for folder in (TESTS / "golden25-small", TESTS.parent.parent / "shared/golden25") if folder.is_dir()]


UPSAMPLED = "synth5"  # the one golden clip below 16 kHz


def clips(golden: Path) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Ids, waveforms (num_samples,) and what the published code computes from them, (F, 80)."""
    for line in (golden / "manifest.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        with np.load(golden / f"expected/{row['id']}.npz") as expected:
            fbank = torch.from_numpy(expected["fbank"])
        yield row["id"], torch.from_numpy(load_waveform(golden / row["audio"]).samples), fbank


def alone(waveform: Tensor) -> Tensor:
    return batch_fbank(waveform[None], torch.tensor([len(waveform)]))[0]


def kaldi_fbank(waveform: Tensor) -> Tensor:
    """What the published code computes here from a waveform (num_samples,): (F, 80), less the mean of the frames."""
    energies: Tensor = kaldi.fbank(waveform[None], num_mel_bins=80, dither=0.0, sample_frequency=16000.0)
    return energies - energies.mean(0, keepdim=True)


@pytest.mark.parametrize("golden", GOLDEN, ids=lambda folder: folder.name)
def test_equals_the_published_code(golden: Path) -> None:
    for sample_id, waveform, wanted in clips(golden):
        got, published = alone(waveform), kaldi_fbank(waveform)
        assert got.shape == wanted.shape
        assert (got - published).abs().max() < 1e-3  # the logarithm of an energy in float32
        assert (got - published).abs().mean() < 2e-5
        # Above an upsampled clip's sound there is rounding noise, which differs between processors: for it, the
        # published code, run above on this one, is the reference.
        if sample_id != UPSAMPLED:
            assert (got - wanted).abs().max() < 1e-3
            assert (got - wanted).abs().mean() < 2e-5


@pytest.mark.parametrize("num_samples", [400, 559, 560, 16_123])
def test_equals_torchaudio(num_samples: int) -> None:
    waveform = 0.3 * torch.randn(1, num_samples) + 0.05
    waveform[:, num_samples // 2 :] *= 1e-4  # some energies are below the floor
    assert (alone(waveform[0]) - kaldi_fbank(waveform[0])).abs().max() < 1e-3


def test_scale_matters_where_energies_reach_the_floor() -> None:
    """So the energies of the input features, at 2^15 times the scale, are no short cut."""
    waveform = 1e-4 * torch.randn(16_000)
    assert (alone(waveform) - alone(waveform * 2**15)).abs().max() > 0.1


def test_a_clip_does_not_depend_on_what_is_beside_it(golden25_small: Path) -> None:
    waveforms = [waveform for _, waveform, _ in clips(golden25_small)]
    lengths = torch.tensor([len(waveform) for waveform in waveforms])
    batch = torch.full((len(waveforms), int(lengths.max()) + 1000), 0.7)
    for row, waveform in zip(batch, waveforms, strict=True):
        row[: len(waveform)] = waveform
    found = batch_fbank(batch, lengths)
    assert found.shape == (len(waveforms), int(num_fbank_frames(lengths).max()), 80)
    for row, waveform, frames in zip(found, waveforms, num_fbank_frames(lengths).tolist(), strict=True):
        assert torch.equal(row[:frames], alone(waveform))
        assert not row[frames:].any()


def test_number_of_frames() -> None:
    lengths = torch.tensor([0, 399, 400, 559, 560, 16_000])
    assert num_fbank_frames(lengths).tolist() == [0, 0, 1, 1, 2, 98]
