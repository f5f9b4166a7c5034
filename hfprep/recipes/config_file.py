"""The sections of config.yaml that model families share.

Provides `read_config`, `Section`, which checks values as they are read, and `GptConfig`, which the families extend.
Keys that hfprep does not use are ignored; unsupported values raise an error with the name of the key.
"""

from __future__ import annotations

import reprlib
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from hfprep.errors import ConfigError
from hfprep.models.configs import ConditionConfig, SemanticCodecConfig

CONDITION_TYPE, INPUT_LAYER = "conformer_perceiver", "conv2d2"
MAX_CONFIG_BYTES = 1 << 18
MAX_WIDTH = 1 << 20  # of a layer, vocabulary, codebook or position table
MAX_LAYERS = 1000
DEPTHS = ("num_blocks", "perceiver_mult", "vocos_num_layers")
SHOWN_LETTERS = 60


def read_config(path: Path) -> Section:
    """Read a config.yaml. Raises ConfigError if it cannot be read or is not a mapping."""
    return Section(path, "", _load_yaml(path))


@dataclass(frozen=True)
class Section:
    """A mapping in the file, with its name for messages."""

    path: Path
    name: str
    values: dict[str, Any]

    def error(self, key: str, problem: str) -> ConfigError:
        """The exception for a problem with a key."""
        return ConfigError(f"{self.path}: {self.name}{key} {problem}")

    def has(self, key: str) -> bool:
        """Whether the key has a value other than null."""
        return self.values.get(key) is not None

    def get(self, key: str, wanted: str) -> Any:
        """The value of a required key; `wanted` describes it in the error message."""
        if not self.has(key):
            raise self.error(key, f"is missing; it must be {wanted}")
        return self.values[key]

    def section(self, key: str) -> Section:
        """The mapping under a key."""
        value = self.get(key, "a mapping")
        if not isinstance(value, dict):
            raise self.error(key, f"is {_shown(value)}; it must be a mapping")
        return Section(self.path, f"{self.name}{key}.", value)

    def count(self, key: str, most: int = MAX_WIDTH) -> int:
        """An integer from 1 to `most`, so that no huge layer fills memory before the weights are checked."""
        value = self.get(key, f"a whole number from 1 to {most}")
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
            raise self.error(key, f"is {_shown(value)}; it must be a whole number from 1 to {most}")
        return value

    def counts(self, config: type) -> dict[str, int]:
        """An integer for each field of a dataclass."""
        names = [field.name for field in fields(config)]
        return {name: self.count(name, MAX_LAYERS if name in DEPTHS else MAX_WIDTH) for name in names}

    def text(self, key: str) -> str:
        """A file name."""
        value = self.get(key, "a file name")
        if not isinstance(value, str) or not value.strip():
            raise self.error(key, f"is {_shown(value)}; it must be a file name")
        return value

    def require(self, key: str, allowed: str) -> None:
        """Raise ConfigError unless the key has the only supported value."""
        value = self.get(key, repr(allowed))
        if value != allowed:
            raise self.error(key, f"is {_shown(value)}; hfprep supports {allowed!r} only")


@dataclass(frozen=True, kw_only=True)
class GptConfig:
    """The validated parts of config.yaml that features of every IndexTTS family depend on.

    `model_dim` is the width of the GPT; `max_mel_tokens` and `max_text_tokens` are its code and text positions;
    `number_text_tokens` bounds the vocabulary. `gpt_checkpoint` is a file name as in the config, which may lack it.
    """

    path: Path
    model_dim: int
    max_mel_tokens: int
    max_text_tokens: int
    number_text_tokens: int
    emotion: ConditionConfig
    semantic_codec: SemanticCodecConfig
    gpt_checkpoint: str | None = None


def gpt_config(root: Section) -> dict[str, Any]:
    """The fields of a `GptConfig`. Raises ConfigError with the file, the key, its value and what is allowed."""
    gpt = root.section("gpt")
    gpt.require("condition_type", CONDITION_TYPE)
    names = ("model_dim", "max_mel_tokens", "max_text_tokens", "number_text_tokens")
    return {
        "path": root.path,
        **{name: gpt.count(name) for name in names},
        "emotion": condition_config(gpt.section("emo_condition_module")),
        "semantic_codec": codec_config(root.section("semantic_codec")),
        "gpt_checkpoint": root.text("gpt_checkpoint") if root.has("gpt_checkpoint") else None,
    }


def condition_config(section: Section) -> ConditionConfig:
    """A Conformer and Perceiver branch. Raises ConfigError with the key, its value and what is allowed."""
    section.require("input_layer", INPUT_LAYER)
    config = ConditionConfig(**section.counts(ConditionConfig))
    if config.output_size % config.attention_heads:
        raise section.error(
            "attention_heads", f"is {config.attention_heads}; it must divide output_size ({config.output_size})"
        )
    return config


def codec_config(section: Section) -> SemanticCodecConfig:
    """The widths of `semantic_codec`; raises as `condition_config` does."""
    return SemanticCodecConfig(**section.counts(SemanticCodecConfig))


def _shown(value: Any) -> str:
    """A value, abbreviated for a message: YAML aliases can expand to billions of items."""
    short = reprlib.Repr()
    short.maxlevel, short.maxstring, short.maxother, short.maxlong = 2, SHOWN_LETTERS, SHOWN_LETTERS, SHOWN_LETTERS
    try:
        return short.repr(value)
    except ValueError:  # an integer with thousands of digits
        return f"a {type(value).__name__} too long to show"


@lru_cache(maxsize=4)
def _parsed(text: str) -> Any:
    """The values of a YAML text, not to be changed; a build asks for those of its config several times."""
    return yaml.safe_load(text)


def _load_yaml(path: Path) -> dict[str, Any]:
    try:
        with open(path, encoding="utf-8-sig") as stream:
            text = stream.read(MAX_CONFIG_BYTES + 1)
        if len(text) > MAX_CONFIG_BYTES:
            raise ValueError(f"it is larger than {MAX_CONFIG_BYTES} bytes")
        values = _parsed(text)
    except RecursionError:
        message = f"{path}: is not a config (nested too deeply); give the model's config.yaml with --config"
        raise ConfigError(message) from None
    except OSError as exc:
        raise ConfigError(
            f"{path}: cannot be read ({exc.strerror}); give the model's config.yaml with --config"
        ) from exc
    except (yaml.YAMLError, ValueError, TypeError, AttributeError, LookupError) as exc:
        # Besides its own errors, yaml raises Python's errors for invalid dates and numbers.
        raise ConfigError(f"{path}: is not a YAML file ({exc}); give the model's config.yaml with --config") from exc
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: contains a {type(values).__name__}, not a mapping; give the model's config.yaml")
    return values
