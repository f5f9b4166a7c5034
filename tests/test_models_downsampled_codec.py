"""IndexTTS-2.5's codec against a plain one, whatever the length's parity; what padding would do."""

from pathlib import Path

import pytest
import torch
from torch import nn

from hfprep.models.downsampled_codec import DownsampledCodec, halved, num_codes
from hfprep.models.masking import FrameMask
from hfprep.recipes.indextts25.checkpoints import load_codec
from hfprep.recipes.indextts25.config import Config
from scripts.benchmark import plain_models as plain

WIDTH = 12
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def codec(golden25_small: Path) -> DownsampledCodec:
    checkpoints = golden25_small / "checkpoints"
    return load_codec(checkpoints / "codec.pth", Config.read(checkpoints / "config.yaml")).eval()


@pytest.fixture(scope="module")
def tensors(golden25_small: Path) -> plain.Tensors:
    values: plain.Tensors = torch.load(golden25_small / "checkpoints/codec.pth", weights_only=True)["model"]
    return values


@pytest.mark.parametrize("frames", [1, 2, 3, 6, 7, 200, 201])
def test_equals_the_plain_codec(codec: DownsampledCodec, tensors: plain.Tensors, frames: int) -> None:
    semantic = torch.randn(frames, WIDTH)
    with torch.inference_mode():
        got = codec(semantic[None], FrameMask.from_lengths(torch.tensor([frames]), frames, CPU))[0]
    scores = plain.codec_scores25(tensors, semantic)
    assert len(got) == len(scores) == (frames + 1) // 2
    # Where two rows are as near as rounding can tell, either is right.
    assert (scores.max(dim=-1).values - scores.gather(1, got[:, None])[:, 0]).max() < 1e-6


@pytest.mark.parametrize("packed", [True, False])
def test_a_batch_gives_what_its_clips_give_and_stays_as_it_is(codec: DownsampledCodec, packed: bool) -> None:
    lengths = torch.tensor([9, 10, 1, 40])
    clips = [torch.randn(length, WIDTH) for length in lengths.tolist()]
    singles = [
        codec(clip[None], FrameMask.from_lengths(torch.tensor([len(clip)]), len(clip), CPU))[0] for clip in clips
    ]
    if packed:
        batch = torch.cat(clips)[None]
        codes = codec(batch, FrameMask.of_packed(lengths, CPU))[0].split(num_codes(lengths).tolist())
    else:
        batch = 30 * torch.randn(4, 43, WIDTH)
        for row, clip in zip(batch, clips, strict=True):
            row[: len(clip)] = clip
        before = batch.clone()
        codes = codec(batch, FrameMask.from_lengths(lengths, 43, CPU))
        assert torch.equal(batch, before)
    for got, wanted in zip(codes, singles, strict=True):
        assert torch.equal(got[: len(wanted)], wanted)


def test_a_code_stands_for_two_frames_the_last_of_an_odd_number_for_one() -> None:
    lengths = torch.tensor([1, 2, 3, 4])
    assert num_codes(lengths).tolist() == [1, 1, 2, 2]
    assert halved(FrameMask.of_packed(lengths, CPU), CPU).lengths.tolist() == [1, 1, 2, 2]
    mask = halved(FrameMask.from_lengths(lengths, 5, CPU), CPU)
    assert (mask.lengths.tolist(), mask.num_frames) == ([1, 1, 2, 2], 3)


def test_both_masks_ahead_of_the_first_blocks_are_sites(codec: DownsampledCodec) -> None:
    assert isinstance(codec.time_mask, nn.Module)
    sites = [name for name, _ in codec.named_modules() if name.endswith("time_mask")]
    assert sites == ["time_mask", "codec.time_mask", "codec.blocks.0.time_mask", "codec.blocks.1.time_mask"]
