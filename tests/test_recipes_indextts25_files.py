"""IndexTTS-2.5's files: how they are told and found, and what is refused by name."""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from hfprep.errors import CheckpointError, ConfigError
from hfprep.models.configs import ConditionConfig, SemanticCodecConfig, SemanticEncoderConfig
from hfprep.recipes.indextts25.checkpoints import expected_shapes, load_codec, load_emotion
from hfprep.recipes.indextts25.config import Config, is_indextts25, named_file, names_indextts25
from hfprep.recipes.indextts25.recipe import ModelFiles, locate
from hfprep.recipes.options import ModelOptions

SHARED = Path(__file__).resolve().parent.parent.parent / "shared"
PUBLISHED = Config(
    path=Path("config.yaml"),
    model_dim=1280,
    max_mel_tokens=1815,
    max_text_tokens=600,
    number_text_tokens=60_509,
    emotion=ConditionConfig(output_size=512, linear_units=1024, attention_heads=4, num_blocks=4, perceiver_mult=2),
    semantic_codec=SemanticCodecConfig(
        codebook_size=8192,
        hidden_size=1024,
        codebook_dim=8,
        vocos_dim=384,
        vocos_intermediate_dim=2048,
        vocos_num_layers=12,
    ),
)


@pytest.fixture
def checkpoints(golden25_small: Path) -> Path:
    return golden25_small / "checkpoints"


@pytest.fixture
def models(checkpoints: Path, tmp_path: Path) -> Path:
    """A copy of the small model set that a test may change; its large files are links."""
    folder = tmp_path / "models"
    folder.mkdir()
    for source in checkpoints.iterdir():
        if source.suffix in {".yaml", ".pth", ".pt"}:
            shutil.copy(source, folder)
        else:
            (folder / source.name).symlink_to(source)
    return folder


def change(path: Path, section: str | None, **values: Any) -> None:
    """Set keys of a config.yaml; None takes one away."""
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    target = content if section is None else content[section]
    for key, value in values.items():
        target.pop(key, None)
        if value is not None:
            target[key] = value
    path.write_text(yaml.safe_dump(content), encoding="utf-8")


# config.yaml


def test_reads_the_small_config(checkpoints: Path) -> None:
    config = Config.read(checkpoints / "config.yaml")
    assert (config.model_dim, config.max_mel_tokens, config.max_text_tokens) == (8, 200, 100)
    assert config.number_text_tokens == 60_509
    assert config.semantic_codec.codebook_size == 64
    assert config.emotion.num_blocks == 1


@pytest.mark.parametrize("key", ["downsample_scale", "num_quantizers"])
@pytest.mark.parametrize("value", [2, 1, 4, "two"])
def test_other_codecs_are_refused_by_name(models: Path, key: str, value: Any) -> None:
    change(models / "config.yaml", "semantic_codec", **{key: value})
    if value == {"downsample_scale": 2, "num_quantizers": 1}[key]:
        assert Config.read(models / "config.yaml")
        return
    with pytest.raises(ConfigError, match=rf"config\.yaml: semantic_codec\.{key} is {value!r}"):
        Config.read(models / "config.yaml")


@pytest.mark.parametrize(
    ("section", "values", "message"),
    [
        ("gpt", {"condition_type": "perceiver"}, "gpt.condition_type is 'perceiver'"),
        ("gpt", {"number_text_tokens": None}, "gpt.number_text_tokens is missing"),
        ("gpt", {"emo_condition_module": None}, "gpt.emo_condition_module is missing"),
        (None, {"semantic_codec": None}, "semantic_codec is missing"),
        (None, {"w2v_stat": 5}, "w2v_stat is 5"),
    ],
)
def test_what_is_missing_or_wrong_is_named(
    models: Path, section: str | None, values: Mapping[str, Any], message: str
) -> None:
    change(models / "config.yaml", section, **values)
    with pytest.raises(ConfigError, match=message):
        Config.read(models / "config.yaml")


def test_what_is_not_computed_from_may_be_anything(models: Path) -> None:
    before = Config.read(models / "config.yaml")
    change(models / "config.yaml", "gpt", condition_module=None)
    change(models / "config.yaml", None, version="2.0", dataset={"bpe_model": "bpe.model"}, s2mel=None)
    assert Config.read(models / "config.yaml") == before


# telling the family


def test_the_family_is_told_by_vocabulary_and_tensors_never_by_the_version(models: Path, golden_small: Path) -> None:
    for version in (2.0, 2.5, None):
        change(models / "config.yaml", None, version=version)
        assert names_indextts25(models / "config.yaml")
    change(models / "config.yaml", "gpt", number_text_tokens=12_000)
    change(models / "config.yaml", None, version=2.5)
    assert not names_indextts25(models / "config.yaml")
    assert is_indextts25(models / "gpt.pth")
    other = golden_small / "checkpoints"
    assert not names_indextts25(other / "config.yaml")
    assert not is_indextts25(other / "gpt.pth")


def test_a_checkpoint_with_parts_of_both_is_not_taken_for_it(models: Path) -> None:
    tensors = torch.load(models / "gpt.pth", weights_only=True)
    tensors["conditioning_encoder.after_norm.weight"] = torch.ones(3)
    torch.save(tensors, models / "gpt.pth")
    assert not is_indextts25(models / "gpt.pth")


# finding the files


def test_finds_everything_in_a_models_folder(models: Path) -> None:
    files = locate(ModelOptions(models=models), fetch=False)
    assert files == ModelFiles(
        config=models / "config.yaml",
        gpt_checkpoint=models / "gpt.pth",
        w2v_stat=models / "wav2vec2bert_stats.pt",
        vocabulary=models / "multilingual_zh_ja_yue_char_del.tiktoken",
        semantic_model=models / "w2v-bert-2.0",
        semantic_weights=(models / "w2v-bert-2.0/model.safetensors",),
        semantic_codec=models / "codec.pth",
        campplus=models / "campplus_cn_common.bin",
        glossary=None,
    )
    (models / "glossary.yaml").write_text("")
    assert locate(ModelOptions(models=models), fetch=False).glossary == models / "glossary.yaml"


def test_names_of_another_machine_are_looked_for_beside_the_config(models: Path) -> None:
    change(models / "config.yaml", None, gpt_checkpoint="/cubefs/a/checkpoint_5000.pth", w2v_stat="/cubefs/b/stats.pt")
    files = locate(ModelOptions(models=models), fetch=False)
    assert (files.gpt_checkpoint.name, files.w2v_stat.name) == ("gpt.pth", "wav2vec2bert_stats.pt")
    (models / "checkpoint_5000.pth").symlink_to(models / "gpt.pth")
    (models / "stats.pt").symlink_to(models / "wav2vec2bert_stats.pt")
    files = locate(ModelOptions(models=models), fetch=False)
    assert (files.gpt_checkpoint.name, files.w2v_stat.name) == ("checkpoint_5000.pth", "stats.pt")


def test_a_named_file_may_be_anywhere(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/a.pt").touch()
    (tmp_path / "set").mkdir()
    assert named_file(tmp_path, "sub/a.pt", "b.pt") == tmp_path / "sub/a.pt"
    assert named_file(tmp_path / "set", str(tmp_path / "sub/a.pt"), "b.pt") == tmp_path / "sub/a.pt"
    assert named_file(tmp_path / "set", None, "b.pt") == tmp_path / "set/b.pt"


def test_the_layout_of_the_published_code_with_a_cache_inside(models: Path) -> None:
    (models / "hf_cache").mkdir()
    for name in ("w2v-bert-2.0", "campplus_cn_common.bin"):
        (models / name).rename(models / "hf_cache" / name)
    files = locate(ModelOptions(models=models), fetch=False)
    assert files.campplus == models / "hf_cache/campplus_cn_common.bin"
    assert files.semantic_model == models / "hf_cache/w2v-bert-2.0"


def test_single_paths_take_the_place_of_the_folders(models: Path, tmp_path: Path) -> None:
    moved: dict[str, Any] = {}
    for option, name in (
        ("config", "config.yaml"),
        ("gpt_checkpoint", "gpt.pth"),
        ("tokenizer", "multilingual_zh_ja_yue_char_del.tiktoken"),
        ("semantic_codec", "codec.pth"),
        ("campplus", "campplus_cn_common.bin"),
        ("semantic_model", "w2v-bert-2.0"),
    ):
        moved[option] = tmp_path / f"my-{name}"
        os.rename(models / name, moved[option])
    os.rename(models / "wav2vec2bert_stats.pt", tmp_path / "wav2vec2bert_stats.pt")
    files = locate(ModelOptions(**moved), fetch=False)
    assert files.vocabulary == moved.pop("tokenizer")
    assert {option: getattr(files, option) for option in moved} == moved
    assert files.w2v_stat == tmp_path / "wav2vec2bert_stats.pt"


def test_everything_that_is_missing_is_named_with_its_command(models: Path) -> None:
    for name in ("gpt.pth", "codec.pth", "campplus_cn_common.bin", "wav2vec2bert_stats.pt", "w2v-bert-2.0"):
        (models / name).unlink()
    (models / "multilingual_zh_ja_yue_char_del.tiktoken").unlink()
    with pytest.raises(CheckpointError) as error:
        locate(ModelOptions(models=models))
    message = str(error.value)
    for repository, name in (
        ("IndexTeam/IndexTTS-2.5", "gpt.pth"),
        ("IndexTeam/IndexTTS-2.5", "codec.pth"),
        ("IndexTeam/IndexTTS-2.5", "wav2vec2bert_stats.pt"),
        ("IndexTeam/IndexTTS-2.5", "multilingual_zh_ja_yue_char_del.tiktoken"),
        ("funasr/campplus", "campplus_cn_common.bin"),
        ("facebook/w2v-bert-2.0", "config.json"),
    ):
        assert f"hf download {repository} {name}" in message


@pytest.mark.parametrize("value", ["nowhere/campplus.bin", "/nowhere"])
def test_a_speaker_network_that_is_nowhere(models: Path, value: str) -> None:
    with pytest.raises(CheckpointError, match="give its file or a hub id with --campplus"):
        locate(ModelOptions(models=models, campplus=value))


def test_no_folder_and_no_option(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="the folder does not exist"):
        locate(ModelOptions(models=tmp_path / "none"))
    with pytest.raises(ConfigError, match="--config is not given"):
        locate(ModelOptions())


# what is in them


def saved(path: Path, tensors: Mapping[str, Tensor]) -> Path:
    torch.save({"model": dict(tensors), "optimizer": {"step": 5}}, path)
    return path


def test_codec_and_gpt_may_be_under_model_or_flat(models: Path) -> None:
    config = Config.read(models / "config.yaml")
    codec = torch.load(models / "codec.pth", weights_only=True)["model"]
    torch.save(codec, models / "flat.pth")
    flat, under = load_codec(models / "flat.pth", config), load_codec(models / "codec.pth", config)
    assert all(torch.equal(one, other) for one, other in zip(flat.parameters(), under.parameters(), strict=True))
    gpt = torch.load(models / "gpt.pth", weights_only=True)
    nested = load_emotion(saved(models / "nested.pth", gpt), config, semantic_size=12)
    plain = load_emotion(models / "gpt.pth", config, semantic_size=12)
    assert all(torch.equal(one, other) for one, other in zip(nested.parameters(), plain.parameters(), strict=True))


@pytest.mark.parametrize("name", ["down.weight", "encoder.1.bias", "quantizer.quantizers.0.in_project.weight_g"])
def test_a_codec_that_misses_a_tensor_is_refused(models: Path, name: str) -> None:
    tensors = torch.load(models / "codec.pth", weights_only=True)["model"]
    del tensors[name]
    with pytest.raises(CheckpointError, match=rf"missing \(1\):\n    {name}"):
        load_codec(saved(models / "codec.pth", tensors), Config.read(models / "config.yaml"))


def test_a_codec_with_two_quantizers_is_refused(models: Path) -> None:
    tensors = torch.load(models / "codec.pth", weights_only=True)["model"]
    tensors["quantizer.quantizers.1.codebook.weight"] = torch.zeros(64, 8)
    with pytest.raises(CheckpointError, match=r"unexpected \(1\):\n    quantizer\.quantizers\.1"):
        load_codec(saved(models / "codec.pth", tensors), Config.read(models / "config.yaml"))


def test_a_gpt_of_another_shape_is_refused(models: Path) -> None:
    tensors = torch.load(models / "gpt.pth", weights_only=True)
    tensors["emovec_layer.weight"] = torch.zeros(8, 13)
    del tensors["emo_layer.bias"]
    with pytest.raises(CheckpointError) as error:
        load_emotion(saved(models / "gpt.pth", tensors), Config.read(models / "config.yaml"), semantic_size=12)
    assert "emovec_layer.weight is [8, 13], not [8, 12]" in str(error.value)
    assert "missing (1):\n    emo_layer.bias [8]" in str(error.value)


def test_every_published_tensor_is_accounted_for() -> None:
    published = SHARED / "design/checkpoint_keys_25.json"
    if not published.is_file():
        pytest.skip("the published shapes do not lie beside this checkout")
    found = json.loads(published.read_text())
    needed = expected_shapes(PUBLISHED, SemanticEncoderConfig())
    codec = {name: shape for name, shape in needed["codec.pth"].items() if name in found["codec.pth"]}
    assert {name: tuple(found["codec.pth"][name]) for name in codec} == needed["codec.pth"]
    gpt = needed["gpt.pth"]
    layers = [name for name in gpt if name not in found["gpt.pth"]]
    assert all(tuple(found["gpt.pth"][name]) == gpt[name] for name in gpt if name not in layers)
    assert all(".encoders." in name for name in layers)  # one layer of each repeated stack is listed
