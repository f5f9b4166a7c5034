"""Finds IndexTTS-2.5's files: in a models folder, by individual paths, or in the hub's cache.

Provides `ModelFiles`, the local path of every file that is read, and `locate`, which finds them and downloads what is
not on this machine. A copy of the published repository, with or without `hf_cache/`, is a valid models folder.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from hfprep.recipes import finding
from hfprep.recipes.finding import (
    CACHE_FOLDER,
    CONFIG_FILE,
    GPT_FILE,
    STATISTICS_FILE,
    Missing,
    find_file,
    find_semantic_model,
    given_path,
    models_folder,
)
from hfprep.recipes.indextts25 import glossary
from hfprep.recipes.indextts25.config import CAMPPLUS_FILE, CODEC_FILE, VOCABULARY_FILE, Config, named_file
from hfprep.recipes.options import ModelOptions

REPOSITORY = "IndexTeam/IndexTTS-2.5"
CAMPPLUS = "funasr/campplus"
CAMPPLUS_PLACES = (CAMPPLUS_FILE, f"{CACHE_FOLDER}/{CAMPPLUS_FILE}")  # in a models folder


@dataclass(frozen=True, kw_only=True)
class ModelFiles(finding.ModelFiles):
    """The local path of every model file. All exist; only the glossary is optional."""

    vocabulary: Path
    campplus: Path
    glossary: Path | None


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
