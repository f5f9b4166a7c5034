"""IndexTTS-2: text ids, semantic codes, conditioning latents, emotion vectors."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hfprep.errors import ConfigError
from hfprep.inputs.text.tokenizer import TextTokenizer
from hfprep.io.digest import digest
from hfprep.models.input_features import check_preprocessor
from hfprep.recipes.base import Download, Outline, Recipe
from hfprep.recipes.finding import (
    CONFIG_FILE,
    GPT_FILE,
    SEMANTIC_DOWNLOAD,
    STATISTICS_FILE,
    TOKENIZER_FILE,
    Missing,
    ModelFiles,
    find_file,
    find_semantic_model,
    given_path,
    models_folder,
    remedy,
)
from hfprep.recipes.indextts import (
    MAX_FRAMES,
    MIN_FRAMES,
    SemanticAudio,
    SemanticModelSet,
    semantic_files,
    semantic_settings,
    warn_of_larger,
)
from hfprep.recipes.indextts2 import config as configs
from hfprep.recipes.indextts2.config import CODEC_FILE, SEMANTIC_CODEC, ModelConfig
from hfprep.recipes.indextts2.schema import CODES, LATENTS, NAME, PUBLISHED, TEXT, schema_of
from hfprep.recipes.options import ModelOptions
from hfprep.schema import Schema

if TYPE_CHECKING:
    import torch

    from hfprep.recipes.indextts2.feature_model import FeatureModel


@dataclass(frozen=True)
class IndexTTS2Models(SemanticModelSet):
    """The files of an IndexTTS-2 model, found and checked."""

    located: ModelFiles
    tokenizer: Path
    config: ModelConfig
    audio = SemanticAudio()

    @cached_property
    def schema(self) -> Schema:
        return schema_of(self.config)

    @cached_property
    def files(self) -> Mapping[str, Path]:
        located = self.located
        return {
            "tokenizer": self.tokenizer,
            "config": located.config,
            "gpt_checkpoint": located.gpt_checkpoint,
            "w2v_stat": located.w2v_stat,
            "semantic_codec": located.semantic_codec,
        } | semantic_files(located)

    def settings(self, sha256: Mapping[str, str], *, precision: str, audio_sr: int) -> dict[str, dict[str, str]]:
        semantic = semantic_settings(sha256, precision=precision, audio_sr=audio_sr)
        branches = (self.config.condition, self.config.emotion)
        architecture = "".join(digest(dataclasses.asdict(branch)).hex() for branch in branches)
        return {
            TEXT: {"tokenizer": sha256["tokenizer"], "normalizer": self.text_encoder().normalizer.fingerprint()},
            CODES: semantic | {"semantic_codec": sha256["semantic_codec"]},
            LATENTS: semantic | {"gpt_checkpoint": sha256["gpt_checkpoint"], "conditioners": architecture},
        }

    def check(self) -> None:
        check_preprocessor(self.located.preprocessor_config)
        size, known = self.text_encoder().vocab_size, self.config.number_text_tokens
        warn_of_larger(self.tokenizer, size, self.located.gpt_checkpoint, known)

    def text_encoder(self) -> TextTokenizer:
        return TextTokenizer(self.tokenizer)

    def num_codes(self, num_frames: int) -> int:
        return num_frames

    def load(self, device: torch.device, precision: str) -> FeatureModel:
        from hfprep.recipes.indextts2.feature_model import FeatureModel

        return FeatureModel.load(self.located, self.config, device=device, precision=precision)

    def reference(self) -> Callable[[np.ndarray], Mapping[str, np.ndarray]]:
        from hfprep.recipes.indextts2.reference import library_codes

        return library_codes(self.located, self.config)


class IndexTTS2(Recipe):
    """The recipe."""

    name = NAME
    published = PUBLISHED
    downloads = (
        Download("IndexTeam/IndexTTS-2", (CONFIG_FILE, TOKENIZER_FILE, STATISTICS_FILE, GPT_FILE), 3_480_000_000),
        SEMANTIC_DOWNLOAD,
        Download(SEMANTIC_CODEC, (CODEC_FILE,), 177_000_000),
    )

    def recognises(self, options: ModelOptions) -> bool:
        """Always true, as the last resort: its error messages then say what is missing."""
        del options
        return True

    def find(self, options: ModelOptions, *, fetch: bool = True) -> IndexTTS2Models:
        located = locate(options, fetch=fetch)
        return IndexTTS2Models(located, tokenizer_path(options), ModelConfig.read(located.config))

    def outline(self, options: ModelOptions) -> Outline:
        config = _config(options)
        named = options.tokenizer is not None or options.models is not None
        encoder = TextTokenizer(tokenizer_path(options)) if named else None
        if encoder is not None:
            _compare_sizes(encoder, options, config)
        return Outline(schema_of(config), SemanticAudio(), int, encoder, MIN_FRAMES, MAX_FRAMES)


def locate(options: ModelOptions, *, fetch: bool = True) -> ModelFiles:
    """Find every model file. Models given by hub id, or not given, come from the hub's cache or the hub.

    If not `fetch`, files that are not on this machine count as missing.

    `models` is a folder with config.yaml, gpt.pth (or the name that the config gives), the statistics, w2v-bert-2.0/
    and semantic_codec/model.safetensors; the other options override single files of it. `semantic_model` is a folder
    or hub id, `semantic_codec` a file, a folder or a hub id. Raises ConfigError if a required option is missing or
    config.yaml is not valid, and CheckpointError with a list of missing files and the commands that get them.
    """
    folder = models_folder(options.models)
    config_path = given_path(options.config, folder, CONFIG_FILE, "--config")
    model_config = ModelConfig.read(config_path)
    missing = Missing(fetch)
    gpt = given_path(options.gpt_checkpoint, folder, model_config.gpt_checkpoint or GPT_FILE, "--gpt-checkpoint")
    if not gpt.is_file():
        missing.add(str(gpt), f"the GPT checkpoint: {remedy(folder, 'give its path with --gpt-checkpoint')}")
    statistics = config_path.parent / model_config.w2v_stat
    if not statistics.is_file():
        advice = remedy(folder, f"put the file beside {config_path}")
        missing.add(str(statistics), f"the statistics that w2v_stat names: {advice}")
    semantic = find_semantic_model(options.semantic_model, folder, missing)
    wanted = "the semantic codec: give a .safetensors file or a hub id with --semantic-codec"
    codec = find_file(options.semantic_codec, folder, (CODEC_FILE,), SEMANTIC_CODEC, missing, wanted)
    missing.raise_any()
    assert semantic is not None  # otherwise raise_any has raised
    assert codec is not None
    return ModelFiles(
        config=config_path,
        gpt_checkpoint=gpt,
        w2v_stat=statistics,
        semantic_model=semantic[0],
        semantic_weights=semantic[1],
        semantic_codec=codec,
    )


def tokenizer_path(options: ModelOptions) -> Path:
    """The tokenizer's path: `tokenizer`, or else bpe.model in the folder `models`."""
    if options.tokenizer is not None:
        return options.tokenizer
    if options.models is None:
        raise ConfigError("--tokenizer is missing: give it, or a folder with all model files as --models DIR")
    return options.models / TOKENIZER_FILE


def _config(options: ModelOptions) -> ModelConfig:
    """The config.yaml in the options, or that of the published model if there is none."""
    if options.config is not None:
        return ModelConfig.read(options.config)
    folder = models_folder(options.models)
    return configs.PUBLISHED if folder is None else ModelConfig.read(folder / CONFIG_FILE)


def _compare_sizes(encoder: TextTokenizer, options: ModelOptions, config: ModelConfig) -> None:
    """Warn if the tokenizer is larger than the checkpoint, if the checkpoint is present."""
    checkpoint = options.gpt_checkpoint
    if checkpoint is None and options.models is not None:
        checkpoint = options.models / (config.gpt_checkpoint or GPT_FILE)
    if checkpoint is not None and checkpoint.is_file():
        warn_of_larger(encoder.model_path, encoder.vocab_size, checkpoint, config.number_text_tokens)


RECIPE = IndexTTS2()
