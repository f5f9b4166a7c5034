"""The codec's encoder and quantizer against the plain ones."""

from pathlib import Path

import pytest
import torch

from hfprep.models import semantic_codec as module
from hfprep.models.configs import SemanticCodecConfig
from hfprep.models.masking import FrameMask
from hfprep.models.semantic_codec import Quantizer, SemanticCodec
from hfprep.recipes.indextts2.checkpoints import load_semantic_codec
from hfprep.recipes.indextts2.config import ModelConfig
from scripts.benchmark import plain_models as reference


@pytest.fixture(scope="module")
def checkpoints(golden_small: Path) -> Path:
    return golden_small / "checkpoints"


@pytest.fixture(scope="module")
def codec(checkpoints: Path) -> SemanticCodec:
    config = ModelConfig.read(checkpoints / "config.yaml")
    return load_semantic_codec(checkpoints / "semantic_codec/model.safetensors", config).eval()


@pytest.mark.parametrize("frames", [1, 3, 6, 200])
def test_equals_the_plain_codec(codec: SemanticCodec, checkpoints: Path, frames: int) -> None:
    semantic = torch.randn(frames, 32)
    tensors = reference.read_tensors(checkpoints / "semantic_codec/model.safetensors")
    mask = FrameMask.from_lengths(torch.tensor([frames]), frames, torch.device("cpu"))
    with torch.inference_mode():
        got = codec(semantic[None], mask)[0]
    scores = reference.codec_scores(tensors, semantic)
    # Where two rows are as near as rounding can tell, either is right.
    best = scores.max(dim=-1).values
    assert (best - scores.gather(1, got[:, None])[:, 0]).max() < 1e-6
    assert (got == scores.argmax(dim=-1)).float().mean() > 0.99


def test_leaves_the_callers_features_as_they_are(codec: SemanticCodec) -> None:
    semantic = torch.randn(2, 20, 32)
    before = semantic.clone()
    with torch.inference_mode():
        codec(semantic, FrameMask.from_lengths(torch.tensor([20, 7]), 20, semantic.device))
    assert torch.equal(semantic, before)


def quantizer() -> Quantizer:
    """Three rows at 0, 90 and 180 degrees, the first again at the end; latents are the features themselves."""
    config = SemanticCodecConfig(
        codebook_size=4, hidden_size=2, codebook_dim=2, vocos_dim=1, vocos_intermediate_dim=1, vocos_num_layers=1
    )
    quantizer = Quantizer(config)
    rows = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [1.0, 0.0]])
    quantizer.load_state_dict({"weight": torch.eye(2), "bias": torch.zeros(2), "codebook": rows})
    return quantizer


def test_code_is_the_nearest_row_whatever_the_length_and_the_lowest_of_equals() -> None:
    features = torch.tensor([[[5.0, 0.1], [0.1, 0.2], [-3.0, 2.9], [2.0, 2.0], [-1.0, 1.0]]])
    # (2, 2) is as near to row 0 and 3 as to row 1, (-1, 1) as near to row 1 as to row 2: the lowest index is taken.
    with torch.inference_mode():
        assert quantizer()(features).tolist() == [[0, 1, 2, 0, 1]]


def test_many_frames_are_scored_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    features = torch.randn(3, 41, 2)
    with torch.inference_mode():
        wanted = quantizer()(features)
        monkeypatch.setattr(module, "scores_piece", lambda _: 4 * 7)
        assert torch.equal(quantizer()(features), wanted)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_frame_that_is_not_finite_has_no_code(value: float) -> None:
    """Where only codes are computed nothing else would show it, and argmax would call it code 0."""
    frames = torch.tensor([[[2.0, 0.0], [value, 1.0], [0.0, 3.0]]])
    assert quantizer()(frames).tolist() == [[0, module.NO_CODE, 1]]
