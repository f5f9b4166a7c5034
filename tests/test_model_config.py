"""config.yaml: what is read from it, and that each value that cannot be computed is refused by name."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from hfprep.errors import ConfigError
from hfprep.recipes.indextts2.config import ModelConfig


def written(path: Path, values: Any) -> Path:
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return path


@pytest.fixture
def values(golden_small: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((golden_small / "checkpoints/config.yaml").read_text())
    return loaded


def changed(values: dict[str, Any], key: str, value: Any) -> None:
    *sections, last = key.split(".")
    for section in sections:
        values = values[section]
    if value is KeyError:
        del values[last]
    else:
        values[last] = value


def test_reads_what_is_computed_from(golden_small: Path) -> None:
    config = ModelConfig.read(golden_small / "checkpoints/config.yaml")
    assert (config.model_dim, config.max_mel_tokens, config.max_text_tokens) == (40, 200, 100)
    assert config.number_text_tokens == 900
    assert (config.condition.output_size, config.condition.num_blocks) == (24, 2)
    assert (config.emotion.output_size, config.emotion.attention_heads) == (16, 1)
    assert (config.semantic_codec.codebook_size, config.semantic_codec.vocos_num_layers) == (128, 2)
    assert (config.w2v_stat, config.gpt_checkpoint) == ("wav2vec2bert_stats.pt", "gpt.pth")


def test_unknown_keys_and_a_byte_order_mark_are_tolerated(values: dict[str, Any], tmp_path: Path) -> None:
    values["s2mel"] = {"preprocess_params": {"sr": 22050}}
    values["gpt"]["surprise"] = [1, 2]
    values["semantic_codec"]["downsample_scale"] = 1
    del values["gpt_checkpoint"]
    path = tmp_path / "config.yaml"
    path.write_text("\ufeff" + yaml.safe_dump(values), encoding="utf-8")
    assert ModelConfig.read(path).gpt_checkpoint is None


@pytest.mark.parametrize(
    ("key", "value", "allowed"),
    [
        ("gpt.condition_type", "perceiver", "conformer_perceiver"),
        ("gpt.condition_type", KeyError, "conformer_perceiver"),
        ("gpt.condition_module.input_layer", "conv2d", "conv2d2"),
        ("gpt.emo_condition_module.input_layer", "linear", "conv2d2"),
        ("semantic_codec.downsample_scale", 2, "1 or absent"),
        ("semantic_codec.codebook_size", KeyError, "a whole number from 1"),
        ("semantic_codec", KeyError, "a mapping"),
        ("semantic_codec", 8192, "a mapping"),
        ("gpt.model_dim", "40", "a whole number from 1"),
        ("gpt.model_dim", True, "a whole number from 1"),
        ("gpt.number_text_tokens", 0, "a whole number from 1"),
        ("gpt.max_text_tokens", 1.5, "a whole number from 1"),
        ("gpt.condition_module.attention_heads", 5, "must divide output_size (24)"),
        ("gpt.condition_module", KeyError, "a mapping"),
        ("gpt", [1], "a mapping"),
        ("w2v_stat", KeyError, "a file name"),
        ("w2v_stat", 3, "a file name"),
    ],
)
def test_refuses_by_file_key_value_and_what_is_allowed(
    values: dict[str, Any], tmp_path: Path, key: str, value: Any, allowed: str
) -> None:
    changed(values, key, value)
    path = written(tmp_path / "config.yaml", values)
    with pytest.raises(ConfigError) as caught:
        ModelConfig.read(path)
    message = str(caught.value)
    assert str(path) in message
    assert f" {key} " in message
    assert allowed in message
    assert ("is missing" if value is KeyError else repr(value)) in message


@pytest.mark.parametrize("content", [b"gpt: [1,", b"\xff\xfe\x00", b"just text", b""])
def test_a_file_that_is_no_mapping_is_a_config_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "config.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"config\.yaml"):
        ModelConfig.read(path)


def test_a_missing_file_is_a_config_error_with_the_option(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--config"):
        ModelConfig.read(tmp_path / "config.yaml")
