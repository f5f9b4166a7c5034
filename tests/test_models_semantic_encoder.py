"""The semantic encoder against the library's own, and its positional bias against the definition."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hfprep.errors import CheckpointError
from hfprep.models import semantic_encoder as module
from hfprep.models.configs import SemanticEncoderConfig
from hfprep.models.masking import FrameMask
from hfprep.models.operators import Scratch
from hfprep.models.semantic_encoder import EncoderLayer, SemanticEncoder, relative_bias
from hfprep.recipes.networks import load_semantic_encoder
from scripts.benchmark import plain_models as reference


@pytest.fixture(scope="module")
def folder(golden_small: Path) -> Path:
    return golden_small / "checkpoints/w2v-bert-2.0"


@pytest.fixture(scope="module")
def encoder(folder: Path) -> SemanticEncoder:
    statistics = folder.parent / "wav2vec2bert_stats.pt"
    return load_semantic_encoder(folder / "config.json", [folder / "model.safetensors"], statistics).eval()


def whole(frames: int) -> FrameMask:
    return FrameMask.from_lengths(torch.tensor([frames]), frames, torch.device("cpu"))


class Scale(nn.Module):
    """A norm's place, for a fixed factor."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * x


def relative(got: Tensor, wanted: Tensor) -> float:
    return float((got - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("frames", [3, 8, 64, 73, 200])
def test_equals_the_library(encoder: SemanticEncoder, folder: Path, frames: int) -> None:
    input_features = torch.randn(frames, 160)
    statistics = reference.read_tensors(folder.parent / "wav2vec2bert_stats.pt")
    wanted = reference.semantic_features(folder, statistics, input_features)
    with torch.inference_mode():
        got = encoder(input_features[None], whole(frames))[0]
    assert relative(got, wanted) < 5e-6


@pytest.mark.parametrize("frames", [1, 5, 9, 66, 150])
@pytest.mark.parametrize("step", [1, 4, 150])
def test_relative_bias_is_the_clamped_distance_table(frames: int, step: int) -> None:
    left, right = 64, 8
    query, table = torch.randn(2, 3, frames, 4), torch.randn(left + right + 1, 4)
    distance = torch.arange(frames)[None, :] - torch.arange(frames)[:, None]  # key - query
    rows = table[distance.clamp(-left, right) + left]  # (T, T, 4)
    wanted = torch.einsum("bhqd,qkd->bhqk", query, rows)
    scratch = Scratch()
    scratch.take((1,), query).fill_(float("nan"))
    for first in range(0, frames, step):
        piece = query[:, :, first : first + step]
        got = relative_bias(piece @ table.t(), left=left, first=first, num_keys=frames, scratch=scratch)
        torch.testing.assert_close(got, wanted[:, :, first : first + step])


def test_relative_bias_by_hand() -> None:
    # One head of width 1, one key to the left and one to the right told apart: the table holds -1, 0 and +1.
    query = torch.tensor([1.0, 2.0, 3.0, 4.0]).view(1, 1, 4, 1)
    table = torch.tensor([[-1.0], [0.0], [1.0]])
    got = relative_bias(query @ table.t(), left=1, first=0, num_keys=4)[0, 0]
    assert got.tolist() == [[0, 1, 1, 1], [-2, 0, 2, 2], [-3, -3, 0, 3], [-4, -4, -4, 0]]


def test_long_clips_attend_in_pieces_with_the_same_result(
    encoder: SemanticEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    # One attention, so that what is seen is the pieces and not rounding that seventeen layers pass on; of hidden states
    # that are small next to what is added, so that their own rounding does not hide it.
    hidden = 0.01 * torch.randn(2, 150, 32)
    mask = FrameMask.from_lengths(torch.tensor([150, 97]), 150, hidden.device)
    layer = encoder.layers[3]
    assert isinstance(layer, EncoderLayer)

    def attended() -> Tensor:
        sums = hidden.clone()
        layer.self_attn.add_to(sums, Scale(100.0), mask, torch.empty(3, 2, 150, 32))
        return sums - hidden

    with torch.inference_mode():
        wanted = attended()
        monkeypatch.setattr(module, "bias_piece", lambda _: 7 * 2 * 150)
        monkeypatch.setattr(module, "LEAST_QUERIES", 1)
        got = attended()
    assert relative(got, wanted) < 5e-7


def test_the_normalisation_is_by_the_statistics(encoder: SemanticEncoder, folder: Path) -> None:
    statistics = reference.read_tensors(folder.parent / "wav2vec2bert_stats.pt")
    assert torch.equal(encoder.mean, statistics["mean"])
    assert torch.equal(encoder.std, statistics["var"].sqrt())


def test_has_seventeen_layers_whatever_the_file_has(encoder: SemanticEncoder) -> None:
    assert len(encoder.layers) == 17


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("position_embeddings_type", "rotary"),
        ("position_embeddings_type", None),
        ("add_adapter", True),
        ("use_intermediate_ffn_before_adapter", True),
        ("num_hidden_layers", 16),
        ("num_hidden_layers", "24"),
        ("hidden_act", "gelu"),
        ("model_type", "wav2vec2"),
        ("feature_projection_input_dim", 80),
        ("hidden_size", "1024"),
        ("hidden_size", -8),
        ("intermediate_size", True),
        ("num_attention_heads", 5),
        ("left_max_position_embeddings", None),
        ("layer_norm_eps", 0),
    ],
)
def test_refuses_what_it_does_not_compute(folder: Path, tmp_path: Path, key: str, value: Any) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads((folder / "config.json").read_text()), key: value}))
    with pytest.raises(CheckpointError, match=f"{key} is {value!r}") as caught:
        SemanticEncoderConfig.read(path)
    assert str(path) in str(caught.value)


def test_defaults_are_the_librarys() -> None:
    from transformers import Wav2Vec2BertConfig

    library = Wav2Vec2BertConfig()
    config = SemanticEncoderConfig.from_values({})
    assert dataclasses.asdict(config) == {name: getattr(library, name) for name in dataclasses.asdict(config)}
    assert SemanticEncoderConfig.from_values(library.to_dict()) == config


@pytest.mark.parametrize("content", ["{", "[]"])
def test_refuses_a_config_that_is_no_json_object(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        SemanticEncoderConfig.read(tmp_path / "config.json")
