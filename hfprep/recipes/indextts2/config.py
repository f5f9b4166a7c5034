"""What hfprep needs to know of a model's config.yaml.

Gives `ModelConfig`, frozen and validated, with one section for each part that is computed. Takes the path of the
file. Knows nothing of tensors, of where the other model files lie, or of the options of a run. Keys that hfprep does
not compute from are ignored; values that it cannot compute are refused by name.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from hfprep.errors import ConfigError
from hfprep.models.configs import ConditionConfig, SemanticCodecConfig

CONDITION_TYPE = "conformer_perceiver"
INPUT_LAYER = "conv2d2"


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The parts of config.yaml from which features are computed, checked once.

    `model_dim` is the width of the latents; `max_mel_tokens` and `max_text_tokens` are the GPT's code and text
    positions; `number_text_tokens` bounds the tokenizer. `w2v_stat` and `gpt_checkpoint` are file names as they are
    written in the config, relative to its folder (`gpt_checkpoint` is None where the config names none).
    """

    path: Path
    model_dim: int
    max_mel_tokens: int
    max_text_tokens: int
    number_text_tokens: int
    condition: ConditionConfig
    emotion: ConditionConfig
    semantic_codec: SemanticCodecConfig
    w2v_stat: str
    gpt_checkpoint: str | None = None

    @classmethod
    def read(cls, path: str | Path) -> ModelConfig:
        """Read and check a config.yaml.

        Raises ConfigError that names the file, the key, its value and what is allowed.
        """
        path = Path(path)
        root = _Section(path, "", _load_yaml(path))
        gpt = root.section("gpt")
        gpt.require("condition_type", CONDITION_TYPE)
        return cls(
            path=path,
            model_dim=gpt.count("model_dim"),
            max_mel_tokens=gpt.count("max_mel_tokens"),
            max_text_tokens=gpt.count("max_text_tokens"),
            number_text_tokens=gpt.count("number_text_tokens"),
            condition=_condition_config(gpt.section("condition_module")),
            emotion=_condition_config(gpt.section("emo_condition_module")),
            semantic_codec=_semantic_codec_config(root.section("semantic_codec")),
            w2v_stat=root.text("w2v_stat"),
            gpt_checkpoint=root.text("gpt_checkpoint") if root.has("gpt_checkpoint") else None,
        )


@dataclass(frozen=True)
class _Section:
    """One mapping of the file, which knows its own name for the messages."""

    path: Path
    name: str
    values: dict[str, Any]

    def error(self, key: str, problem: str) -> ConfigError:
        return ConfigError(f"{self.path}: {self.name}{key} {problem}")

    def has(self, key: str) -> bool:
        return self.values.get(key) is not None

    def get(self, key: str, wanted: str) -> Any:
        if not self.has(key):
            raise self.error(key, f"is missing; it must be {wanted}")
        return self.values[key]

    def section(self, key: str) -> _Section:
        value = self.get(key, "a mapping")
        if not isinstance(value, dict):
            raise self.error(key, f"is {value!r}; it must be a mapping")
        return _Section(self.path, f"{self.name}{key}.", value)

    def count(self, key: str) -> int:
        value = self.get(key, "a whole number from 1")
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise self.error(key, f"is {value!r}; it must be a whole number from 1")
        return value

    def text(self, key: str) -> str:
        value = self.get(key, "a file name")
        if not isinstance(value, str) or not value.strip():
            raise self.error(key, f"is {value!r}; it must be a file name")
        return value

    def require(self, key: str, allowed: str) -> None:
        value = self.get(key, repr(allowed))
        if value != allowed:
            raise self.error(key, f"is {value!r}; hfprep computes {allowed!r} only")


def _condition_config(section: _Section) -> ConditionConfig:
    section.require("input_layer", INPUT_LAYER)
    config = ConditionConfig(
        output_size=section.count("output_size"),
        linear_units=section.count("linear_units"),
        attention_heads=section.count("attention_heads"),
        num_blocks=section.count("num_blocks"),
        perceiver_mult=section.count("perceiver_mult"),
    )
    if config.output_size % config.attention_heads:
        raise section.error(
            "attention_heads", f"is {config.attention_heads}; it must divide output_size ({config.output_size})"
        )
    return config


def _semantic_codec_config(section: _Section) -> SemanticCodecConfig:
    # The codec's own code downsamples only for values above 1, and no published IndexTTS-2 config has any.
    if section.values.get("downsample_scale") not in (None, 1):
        raise section.error(
            "downsample_scale",
            f"is {section.values['downsample_scale']!r}; hfprep computes codecs that do not downsample (1 or absent)",
        )
    return SemanticCodecConfig(
        codebook_size=section.count("codebook_size"),
        hidden_size=section.count("hidden_size"),
        codebook_dim=section.count("codebook_dim"),
        vocos_dim=section.count("vocos_dim"),
        vocos_intermediate_dim=section.count("vocos_intermediate_dim"),
        vocos_num_layers=section.count("vocos_num_layers"),
    )


def _load_yaml(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except OSError as exc:
        raise ConfigError(
            f"{path}: cannot be read ({exc.strerror}); give the model's config.yaml with --config"
        ) from exc
    except (yaml.YAMLError, UnicodeDecodeError) as exc:
        raise ConfigError(f"{path}: is not a YAML file ({exc}); give the model's config.yaml with --config") from exc
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: holds {type(values).__name__}, not a mapping; give the model's config.yaml")
    return values
