"""The random model set: the published layouts, the same bytes for a seed, its label, and numbers worth looking at."""

import hashlib
import json
import zipfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from hfprep.models.input_features import check_preprocessor, extract_input_features
from hfprep.recipes.indextts2.checkpoints import CONDITIONER_PREFIXES
from hfprep.recipes.indextts2.config import ModelConfig
from hfprep.recipes.indextts2.feature_model import FeatureModel
from hfprep.recipes.indextts2.recipe import locate
from hfprep.recipes.networks import EMOTION_PREFIXES
from hfprep.recipes.options import ModelOptions
from hfprep.tools.demo import model_set
from hfprep.tools.demo.model_set import SIZES, make_model_set
from hfprep.tools.demo.random_weights import random_pieces, write_safetensors, write_torch_file
from hfprep.tools.demo.sentences import SENTENCES
from hfprep.tools.demo.voice import SPEAKERS, speak
from tests.test_models_checkpoints import unknown_names

FILES = [
    "README.md", "RANDOM.json", "bpe.model", "config.yaml", "gpt.pth", "semantic_codec/model.safetensors",
    "w2v-bert-2.0/config.json", "w2v-bert-2.0/model.safetensors", "w2v-bert-2.0/preprocessor_config.json",
    "wav2vec2bert_stats.pt",
]  # fmt: skip


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model_set(tmp_path_factory.mktemp("models"))


def contents(folder: Path) -> dict[str, str]:
    return {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in FILES}


def shapes_of(path: Path) -> dict[str, list[int]]:
    with safe_open(path, "pt") as file:
        return {name: list(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118


def test_a_seed_gives_the_same_bytes_at_any_number_of_threads(tmp_path: Path, models: Path) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        again = make_model_set(tmp_path / "again")
    finally:
        torch.set_num_threads(threads)
    assert contents(again) == contents(models)
    other = contents(make_model_set(tmp_path / "other", seed=1))
    same = {"bpe.model", "config.yaml", "w2v-bert-2.0/config.json", "w2v-bert-2.0/preprocessor_config.json"}
    assert {name for name in FILES if other[name] == contents(models)[name]} == same


def test_a_complete_set_is_left_alone_and_a_broken_one_made_again(tmp_path: Path) -> None:
    folder = make_model_set(tmp_path)
    before = contents(folder)
    times = {name: (folder / name).stat().st_mtime_ns for name in FILES}
    make_model_set(folder)
    assert {name: (folder / name).stat().st_mtime_ns for name in FILES} == times
    (folder / "RANDOM.json").unlink()  # it is written last
    (folder / "gpt.pth").write_bytes(b"half")
    make_model_set(folder)
    assert contents(folder) == before


def test_it_says_that_it_is_random_wherever_it_can(models: Path) -> None:
    assert json.loads((models / "RANDOM.json").read_text()) == {
        "random": True,
        "seed": 0,
        "size": "small",
        "version": 2,
    }
    assert "RANDOM" in (models / "README.md").read_text().splitlines()[0]
    assert (models / "config.yaml").read_text().startswith("# RANDOM")
    assert "random: true" in (models / "config.yaml").read_text()
    for name in ("config.json", "preprocessor_config.json"):
        assert json.loads((models / "w2v-bert-2.0" / name).read_text())["random"] is True
    for name in ("semantic_codec/model.safetensors", "w2v-bert-2.0/model.safetensors"):
        with safe_open(models / name, "pt") as file:
            assert file.metadata()["random"] == "true"


def test_an_unknown_size_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"size is 'huge'.*small, published"):
        make_model_set(tmp_path, size="huge")  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def test_loading_has_to_skip_what_the_published_files_have_too(models: Path) -> None:
    gpt = torch.load(models / "gpt.pth", weights_only=True, mmap=True)
    assert {"gpt.h.0.attn.c_attn.weight", "text_embedding.weight", "mel_head.weight", "speed_emb.weight"} <= set(gpt)
    codec = shapes_of(models / "semantic_codec/model.safetensors")
    assert {"decoder.0.convnext.0.gamma", "quantizer.quantizers.0.out_project.weight_g"} <= set(codec)
    encoder = shapes_of(models / "w2v-bert-2.0/model.safetensors")
    assert {"masked_spec_embed", "encoder.layers.17.ffn1.output_dense.bias"} <= set(encoder)
    assert not [name for name in encoder if name.startswith("encoder.layers.18.")]


def test_every_name_is_one_of_the_published_ones(models: Path, golden_small: Path) -> None:
    """golden-small has the published names; it is of other depths, so layer numbers are left out."""
    for name in ("semantic_codec/model.safetensors", "w2v-bert-2.0/model.safetensors"):
        assert _kinds(shapes_of(models / name)) <= _kinds(shapes_of(golden_small / "checkpoints" / name))
    mine, golden = (
        torch.load(folder / "gpt.pth", weights_only=True, mmap=True)
        for folder in (models, golden_small / "checkpoints")
    )
    assert _kinds(mine) == _kinds(golden)


def _kinds(names: Mapping[str, Any]) -> set[str]:
    return {".".join("#" if part.isdigit() else part for part in name.split(".")) for name in names}


def test_the_published_size_has_the_published_shapes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the numbers: what would be written is held against the listing of the published files."""
    listing_path = Path(__file__).resolve().parent / "data" / "checkpoint_keys.json"
    listing = json.loads(listing_path.read_text())
    written: dict[str, Mapping[str, tuple[int, ...]]] = {}

    def note(path: Path, shapes: Mapping[str, tuple[int, ...]], *, seed: int, holes: Collection[str] = ()) -> None:
        written[str(path.relative_to(tmp_path))] = shapes
        assert not [name for name in holes if name.startswith(CONDITIONER_PREFIXES + EMOTION_PREFIXES)]

    monkeypatch.setattr(model_set, "write_torch_file", note)
    monkeypatch.setattr(model_set, "write_safetensors", note)
    monkeypatch.setattr(model_set, "write_statistics", lambda *_: None)
    make_model_set(tmp_path, size="published")
    assert set(written) == set(listing)
    for file, shapes in written.items():
        for name, shape in shapes.items():
            assert list(shape) == listing[file].get(name, listing[file].get(_first_layer(name))), name
        left_out = [name for name in listing[file] if name not in shapes]
        assert not unknown_names(left_out, {}, file)  # all of them are tensors that hfprep ignores
    gpt_values = sum(int(np.prod(shape)) for shape in written["gpt.pth"].values())
    assert round(gpt_values / 1e6, 1) == 871.1  # 344.0 of the conditioners, 527.1 of the GPT
    assert len({name.split(".")[2] for name in written["w2v-bert-2.0/model.safetensors"] if ".layers." in name}) == 24


def _first_layer(name: str) -> str:
    """The listing has one layer of some repeated stacks."""
    return ".".join("0" if part.isdigit() and before in ("layers", "h") else part for before, part in _pairs(name))


def _pairs(name: str) -> list[tuple[str, str]]:
    parts = name.split(".")
    return list(zip(["", *parts], parts, strict=False))


def test_the_tokenizer_knows_every_language_and_falls_back_to_bytes(models: Path) -> None:
    tokenizer = sentencepiece.SentencePieceProcessor(model_file=str(models / "bpe.model"))
    assert (tokenizer.bos_id(), tokenizer.eos_id(), tokenizer.unk_id()) == (0, 1, 2)
    assert len(tokenizer) <= ModelConfig.read(models / "config.yaml").number_text_tokens
    for sentences in SENTENCES.values():
        for sentence in sentences:
            ids = tokenizer.encode(sentence.upper())
            assert 2 not in ids
            assert len(ids) < 2 * len(sentence)
    assert tokenizer.decode(tokenizer.encode("ZÜRICH 猫 ЖУК 🐝")) == "ZÜRICH 猫 ЖУК 🐝"
    raw = (models / "bpe.model").read_bytes()
    assert b"/tmp" not in raw


def test_the_preprocessor_is_ours(models: Path) -> None:
    check_preprocessor(models / "w2v-bert-2.0" / "preprocessor_config.json")


def test_features_and_codes_vary_with_the_sound(models: Path) -> None:
    files = locate(ModelOptions(models=models))
    model = FeatureModel.load(files, ModelConfig.read(files.config))
    codes, conditions, emotions = [], [], []
    for number, speaker in enumerate(SPEAKERS):
        sound = speak(speaker, 3.0, 16_000, np.random.default_rng(100 + number)).astype(np.float32)
        features = torch.from_numpy(extract_input_features(sound))[None]
        with torch.inference_mode():
            found = model(features, torch.tensor([features.shape[1]]))
        codes.append(found["codes"][0].numpy())
        conditions.append(found["condition"][0].numpy().ravel())
        emotions.append(found["emo_vec"][0].numpy())
    every = np.concatenate(codes)
    assert len(set(every.tolist())) > 100  # of 256
    assert np.mean([(np.diff(one) != 0).mean() for one in codes]) > 0.5
    for vectors in (np.array(conditions), np.array(emotions)):
        assert np.isfinite(vectors).all()
        size = np.linalg.norm(vectors, axis=1).mean()
        apart = np.linalg.norm(vectors - vectors.mean(axis=0), axis=1).mean()
        assert 0.05 * size < apart < size
    statistics = torch.load(models / "wav2vec2bert_stats.pt", weights_only=True)
    assert (statistics["var"] > 0).all()


SHAPES = {
    "layer.norm.weight": (7,),
    "layer.weight": (30, 50),
    "layer.bias": (30,),
    "embed.pos_enc.pe": (1, 6, 4),
    "none": (0, 3),
}


def test_both_writers_write_what_their_libraries_read(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "a.safetensors", SHAPES, seed=3)
    write_torch_file(tmp_path / "a.pth", SHAPES, seed=3)
    mapped = torch.load(tmp_path / "a.pth", weights_only=True, mmap=True)
    for tensors in (load_file(tmp_path / "a.safetensors"), torch.load(tmp_path / "a.pth", weights_only=True), mapped):
        assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == SHAPES
        for name, shape in SHAPES.items():
            expected = np.concatenate([np.empty(0, np.float32), *random_pieces(name, shape, seed=3)]).reshape(shape)
            np.testing.assert_array_equal(tensors[name].numpy(), expected)
    assert zipfile.is_zipfile(tmp_path / "a.pth")


def test_large_tensors_are_written_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hfprep.tools.demo.random_weights.PIECE_VALUES", 100)
    sizes = [len(piece) for piece in random_pieces("layer.weight", (30, 50), seed=0)]
    assert sizes == [100] * 15
    write_torch_file(tmp_path / "a.pth", {"layer.weight": (30, 50)}, seed=0)
    weight = torch.load(tmp_path / "a.pth", weights_only=True)["layer.weight"]
    assert len(weight.unique()) > 1_400  # no piece is another one again


def test_values_are_scaled_by_what_they_are_for() -> None:
    def spread(name: str, *shape: int) -> tuple[float, float]:
        values = np.concatenate(list(random_pieces(name, shape, seed=0)))
        return float(values.mean()), float(values.std())

    assert spread("a.weight", 400, 100) == pytest.approx((0, 0.1), abs=0.003)
    assert spread("a.weight", 400, 4, 25) == pytest.approx((0, 0.1), abs=0.003)
    assert spread("a.norm.weight", 40_000) == pytest.approx((1, 0.1), abs=0.003)
    assert spread("a.norm.bias", 40_000) == pytest.approx((0, 0.05), abs=0.003)
    assert spread("perceiver_encoder.latents", 32, 1_280) == pytest.approx((0, 1), abs=0.02)
    assert spread("encoder.layers.3.ffn1.output_dense.weight", 400, 100) == pytest.approx((0, 0.05), abs=0.003)


def test_positions_are_sines_and_cosines() -> None:
    table = np.concatenate(list(random_pieces("embed.pos_enc.pe", (1, 3, 4), seed=5))).reshape(3, 4)
    expected = [[np.sin(p), np.cos(p), np.sin(p / 100), np.cos(p / 100)] for p in range(3)]
    np.testing.assert_allclose(table, expected, rtol=1e-6)


def test_small_is_small(models: Path) -> None:
    assert sum((models / name).stat().st_size for name in FILES) < 10 << 20
    assert set(SIZES) == {"small", "published"}
