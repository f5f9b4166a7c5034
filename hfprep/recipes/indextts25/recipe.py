"""IndexTTS-2.5: text ids, semantic codes at 25 Hz, speaker and emotion vectors."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from hfprep.errors import ConfigError
from hfprep.io.digest import digest
from hfprep.models.input_features import check_preprocessor
from hfprep.recipes import finding
from hfprep.recipes.base import Download, Outline, Recipe, resampling
from hfprep.recipes.finding import (
    CACHE_FOLDER,
    CONFIG_FILE,
    GPT_FILE,
    SEMANTIC_DOWNLOAD,
    STATISTICS_FILE,
    Missing,
    find_file,
    find_semantic_model,
    given_path,
    models_folder,
)
from hfprep.recipes.indextts import (
    MAX_FRAMES,
    MIN_FRAMES,
    SemanticAudio,
    SemanticModelSet,
    semantic_files,
    semantic_settings,
)
from hfprep.recipes.indextts25 import glossary
from hfprep.recipes.indextts25.config import (
    CAMPPLUS_FILE,
    CODEC_FILE,
    VOCABULARY_FILE,
    Config,
    is_indextts25,
    named_file,
    names_indextts25,
)
from hfprep.recipes.indextts25.schema import CODES, EMOTION, NAME, PUBLISHED, SPEAKER, TEXT, schema_of
from hfprep.recipes.indextts25.text import TextEncoder
from hfprep.recipes.options import ModelOptions
from hfprep.schema import Schema

if TYPE_CHECKING:
    import torch

    from hfprep.recipes.indextts25.feature_model import FeatureModel

REPOSITORY = "IndexTeam/IndexTTS-2.5"
CAMPPLUS = "funasr/campplus"
CAMPPLUS_PLACES = (CAMPPLUS_FILE, f"{CACHE_FOLDER}/{CAMPPLUS_FILE}")  # in a models folder
VOCABULARY_SUFFIX = ".tiktoken"


@dataclass(frozen=True, kw_only=True)
class ModelFiles(finding.ModelFiles):
    """The local path of every model file. All exist; only the glossary is optional."""

    vocabulary: Path
    campplus: Path
    glossary: Path | None


@dataclass(frozen=True)
class IndexTTS25Models(SemanticModelSet):
    """The files of an IndexTTS-2.5 model, found and checked."""

    located: ModelFiles
    config: Config
    reference_seconds: float = 0.0
    audio = SemanticAudio(samples_only=True)

    @cached_property
    def schema(self) -> Schema:
        return schema_of(self.config, self.located.campplus)

    @cached_property
    def files(self) -> Mapping[str, Path]:
        located = self.located
        found = {
            "tokenizer": located.vocabulary,
            "config": located.config,
            "gpt_checkpoint": located.gpt_checkpoint,
            "w2v_stat": located.w2v_stat,
            "semantic_codec": located.semantic_codec,
            "campplus": located.campplus,
        } | semantic_files(located)
        return found if located.glossary is None else found | {"glossary": located.glossary}

    def settings(self, sha256: Mapping[str, str], *, precision: str, audio_sr: int) -> dict[str, dict[str, str]]:
        semantic = semantic_settings(sha256, precision=precision, audio_sr=audio_sr)
        reference = {"reference_seconds": f"{self.reference_seconds:g}"} if self.reference_seconds else {}
        architecture = digest(dataclasses.asdict(self.config.emotion)).hex()
        emotion = {"gpt_checkpoint": sha256["gpt_checkpoint"], "emotion": architecture}
        return {
            TEXT: {"tokenizer": sha256["tokenizer"], "normalizer": self.text_encoder().fingerprint()},
            CODES: semantic | {"semantic_codec": sha256["semantic_codec"]},
            # Always float32, so precision is not part of it.
            SPEAKER: {"campplus": sha256["campplus"], "audio_sr": resampling(audio_sr)} | reference,
            EMOTION: semantic | emotion | reference,
        }

    def check(self) -> None:
        check_preprocessor(self.located.preprocessor_config)
        size, known = self.text_encoder().vocab_size, self.config.number_text_tokens
        if size > known:
            raise ConfigError(
                f"--tokenizer {str(self.located.vocabulary)!r} has {size} tokens, but the checkpoint has only {known} "
                f"(gpt.number_text_tokens in {self.config.path}); use the vocabulary it was trained with: in a larger "
                "one all special tokens have other ids"
            )

    def text_encoder(self) -> TextEncoder:
        return TextEncoder(self.located.vocabulary, glossary=self.located.glossary)

    @staticmethod
    def num_codes(num_frames: int) -> int:
        return (num_frames + 1) // 2

    def load(self, device: torch.device, precision: str) -> FeatureModel:
        from hfprep.recipes.indextts25.feature_model import FeatureModel

        return FeatureModel.load(
            self.located,
            self.config,
            device=device,
            precision=precision,
            reference_seconds=self.reference_seconds,
        )


class IndexTTS25(Recipe):
    """The recipe."""

    name = NAME
    published = PUBLISHED
    downloads = (
        Download(REPOSITORY, (CONFIG_FILE, GPT_FILE, CODEC_FILE, STATISTICS_FILE, VOCABULARY_FILE)),
        SEMANTIC_DOWNLOAD,
        Download(CAMPPLUS, (CAMPPLUS_FILE,)),
    )

    def recognises(self, options: ModelOptions) -> bool:
        """By the vocabulary size in config.yaml, or else by the tensors of gpt.pth; never by the version."""
        folder = options.models
        config = options.config or (folder / CONFIG_FILE if folder else None)
        if config is None or not config.is_file():
            return False
        try:
            if names_indextts25(config):
                return True
            if not self._looks_like_it(options):
                return False
            named = Config.read(config).gpt_checkpoint
        except ConfigError:
            return False
        gpt = options.gpt_checkpoint or (named_file(folder, named, GPT_FILE) if folder else None)
        return gpt is not None and gpt.is_file() and is_indextts25(gpt)

    def find(self, options: ModelOptions, *, fetch: bool = True) -> IndexTTS25Models:
        if not 0 <= options.reference_seconds < float("inf"):
            raise ConfigError(
                f"--reference-seconds is {options.reference_seconds!r}; it must be a number of seconds, or 0 for the "
                "whole clip"
            )
        located = locate(options, fetch=fetch)
        return IndexTTS25Models(located, Config.read(located.config), options.reference_seconds)

    def outline(self, options: ModelOptions) -> Outline:
        folder = options.models
        config = options.config or (folder / CONFIG_FILE if folder else None)
        vocabulary = options.tokenizer or (folder / VOCABULARY_FILE if folder else None)
        schema = PUBLISHED if config is None else schema_of(Config.read(config), _speaker_network(options))
        terms = folder / glossary.FILE if folder else None
        encoder = None
        if vocabulary is not None:
            encoder = TextEncoder(vocabulary, glossary=terms if terms and terms.is_file() else None)
        return Outline(schema, IndexTTS25Models.audio, IndexTTS25Models.num_codes, encoder, MIN_FRAMES, MAX_FRAMES)

    @staticmethod
    def _looks_like_it(options: ModelOptions) -> bool:
        vocabulary = options.tokenizer is not None and options.tokenizer.suffix == VOCABULARY_SUFFIX
        return vocabulary or (options.models is not None and (options.models / CODEC_FILE).is_file())


def locate(options: ModelOptions, *, fetch: bool = True) -> ModelFiles:
    """Find every model file; if not `fetch`, files that are not on this machine count as missing.

    `models` is a folder with config.yaml, gpt.pth, codec.pth, the statistics, the vocabulary, and, in it or its
    hf_cache/, w2v-bert-2.0/ and campplus_cn_common.bin; the other options override single files of it.
    `semantic_model` is a folder or hub id, `campplus` a file, a folder or a hub id; both come from the hub if they are
    not found. Raises ConfigError if a required option is missing or config.yaml is not valid, and CheckpointError with
    a list of missing files and the commands that get them.
    """
    folder = models_folder(options.models)
    config_path = given_path(options.config, folder, CONFIG_FILE, "--config")
    missing = Missing(fetch)
    gpt, statistics = _named_files(config_path, folder, options.gpt_checkpoint, missing)
    codec = given_path(options.semantic_codec, folder, CODEC_FILE, "--semantic-codec")
    tokens = given_path(options.tokenizer, folder, VOCABULARY_FILE, "--tokenizer")
    _note(missing, codec, CODEC_FILE, "the semantic codec: give its path with --semantic-codec")
    _note(missing, tokens, VOCABULARY_FILE, "the vocabulary: give its path with --tokenizer")
    semantic = find_semantic_model(options.semantic_model, folder, missing)
    wanted = "the speaker network: give its file or a hub id with --campplus"
    speaker = find_file(options.campplus, folder, CAMPPLUS_PLACES, CAMPPLUS, missing, wanted)
    missing.raise_any()
    assert semantic is not None  # otherwise raise_any has raised
    assert speaker is not None
    terms = (folder or config_path.parent) / glossary.FILE
    return ModelFiles(
        config=config_path,
        gpt_checkpoint=gpt,
        w2v_stat=statistics,
        vocabulary=tokens,
        semantic_model=semantic[0],
        semantic_weights=semantic[1],
        semantic_codec=codec,
        campplus=speaker,
        glossary=terms if terms.is_file() else None,
    )


def _named_files(
    config_path: Path, folder: Path | None, gpt_checkpoint: str | Path | None, missing: Missing
) -> tuple[Path, Path]:
    """The GPT checkpoint and the statistics named in config.yaml."""
    config = Config.read(config_path)
    if gpt_checkpoint is None and folder is not None:
        gpt_checkpoint = named_file(folder, config.gpt_checkpoint, GPT_FILE)
    gpt = given_path(gpt_checkpoint, folder, GPT_FILE, "--gpt-checkpoint")
    statistics = named_file(config_path.parent, config.w2v_stat, STATISTICS_FILE)
    _note(missing, gpt, GPT_FILE, "the GPT checkpoint: give its path with --gpt-checkpoint")
    _note(missing, statistics, STATISTICS_FILE, f"the statistics: put the file beside {config_path}")
    return gpt, statistics


def _note(missing: Missing, path: Path, name: str, remedy: str) -> None:
    if not path.is_file():
        missing.add(str(path), f"{remedy}, or get it with: hf download {REPOSITORY} {name}")


def _speaker_network(options: ModelOptions) -> Path | None:
    """The file of the speaker network, if it is present."""
    folder = options.models
    places = () if folder is None else [folder / place for place in CAMPPLUS_PLACES]
    named = () if options.campplus is None else (Path(options.campplus),)
    return next((path for path in (*named, *places) if path.is_file()), None)


RECIPE = IndexTTS25()
