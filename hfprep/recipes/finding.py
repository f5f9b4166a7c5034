"""Finds model files: in a models folder, by individual paths, or in the hub's cache.

Shared by the families' `locate` functions. Cached files are found without network access. Missing files are collected
and reported together, each with the command that gets it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hfprep.errors import CheckpointError, ConfigError
from hfprep.io.words import first_line
from hfprep.recipes.base import Download

SEMANTIC_MODEL = "facebook/w2v-bert-2.0"
SEMANTIC_FOLDER = "w2v-bert-2.0"
CACHE_FOLDER = "hf_cache"  # the published code's subfolder for models of other repositories
CONFIG_FILE, GPT_FILE, STATISTICS_FILE = "config.yaml", "gpt.pth", "wav2vec2bert_stats.pt"
TOKENIZER_FILE = "bpe.model"
SEMANTIC_CONFIGS = ("config.json", "preprocessor_config.json")

_WEIGHTS, _INDEX, _SHARDS = "model.safetensors", "model.safetensors.index.json", "model-*.safetensors"
SEMANTIC_FILE = f"{SEMANTIC_FOLDER}/{_WEIGHTS}"
WEIGHT_PATTERNS = (_WEIGHTS, _INDEX, _SHARDS)
SEMANTIC_DOWNLOAD = Download(SEMANTIC_MODEL, (*SEMANTIC_CONFIGS, _WEIGHTS), 2_320_000_000, SEMANTIC_FOLDER)
_WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


@dataclass(frozen=True, kw_only=True)
class ModelFiles:
    """The local path of every model file that is read: those of w2v-bert-2.0 and of the families. All exist."""

    config: Path
    gpt_checkpoint: Path
    semantic_codec: Path
    w2v_stat: Path
    semantic_model: Path
    semantic_weights: tuple[Path, ...]

    @property
    def semantic_config(self) -> Path:
        """The config.json with the model's sizes."""
        return self.semantic_model / SEMANTIC_CONFIGS[0]

    @property
    def preprocessor_config(self) -> Path:
        """The config of the feature extractor."""
        return self.semantic_model / SEMANTIC_CONFIGS[1]


@dataclass
class Missing:
    """Missing files and how to get each, raised together. With `fetch` they are downloaded from the hub if possible."""

    fetch: bool
    lines: list[str] = field(default_factory=list)

    def add(self, what: str, remedy: str) -> None:
        """Add a missing file and how to get it."""
        self.lines.append(f"  {what}\n    {remedy}")

    def raise_any(self) -> None:
        """Raise CheckpointError if anything is missing."""
        if self.lines:
            raise CheckpointError("model files are missing:\n" + "\n".join(self.lines))


def models_folder(models: str | Path | None) -> Path | None:
    """The models folder, or None; raises ConfigError if it does not exist."""
    if models is None:
        return None
    folder = Path(models)
    if not folder.is_dir():
        raise ConfigError(f"--models {folder}: the folder does not exist")
    return folder


def given_path(value: str | Path | None, folder: Path | None, name: str, option: str) -> Path:
    """The option's value, or else the file `name` in the models folder."""
    if value is not None:
        return Path(value)
    if folder is None:
        raise ConfigError(
            f"{option} is not given; give --models DIR, a folder with all model files (python -m hfprep download DIR "
            f"fetches them), or the path of {name} with {option}"
        )
    return folder / name


def remedy(folder: Path | None, otherwise: str) -> str:
    """How to get a missing file: download it, or the other advice."""
    return otherwise if folder is None else f"python -m hfprep download {folder}, or {otherwise}"


def find_semantic_model(
    value: str | Path | None, folder: Path | None, missing: Missing
) -> tuple[Path, tuple[Path, ...]] | None:
    """The folder and weight files of the semantic model; None if it is missing."""
    if value is None and folder is not None:
        places = (folder / SEMANTIC_FOLDER, folder / CACHE_FOLDER / SEMANTIC_FOLDER)
        value = next((place for place in places if place.is_dir()), None)
    lacking = folder if value is None else None
    wanted = "the semantic model: give a folder or a hub id with --semantic-model"
    copy = f"copy it from the hub repository {SEMANTIC_MODEL}"
    value = SEMANTIC_MODEL if value is None else value
    return find_model(value, SEMANTIC_CONFIGS, missing, wanted=wanted, copy=copy, lacking=lacking)


def find_model(
    value: str | Path,
    configs: tuple[str, ...],
    missing: Missing,
    *,
    wanted: str,
    copy: str,
    lacking: Path | None = None,
) -> tuple[Path, tuple[Path, ...]] | None:
    """The folder of a model for transformers, with its `configs`, and its weight files; None if it is missing.

    `value` is a folder or a hub id; `wanted` is the advice for a value that is neither, `copy` that for a missing file.
    """
    folder = _folder(value, (*configs, *WEIGHT_PATTERNS), missing, wanted, lacking)
    if folder is None:
        return None
    for name in configs:
        if not (folder / name).is_file():
            missing.add(str(folder / name), copy)
    weights, absent = weight_files(folder)
    for path in absent:
        missing.add(str(path), f"{copy} (only safetensors files are read as weights)")
    return folder, weights


def find_file(
    value: str | Path | None,
    folder: Path | None,
    places: tuple[str, ...],
    repository: str,
    missing: Missing,
    wanted: str,
) -> Path | None:
    """A file given by its path, in the models folder or in a hub repository; None if it is missing.

    `value` is the file, its folder, or a hub id; `places` are its possible paths in the models folder, of which the
    first is also its path in the repository. `wanted` is the advice for a value that is none of these.
    """
    if value is None and folder is not None:
        value = next((path for place in places if (path := folder / place).is_file()), None)
    lacking = folder if value is None else None
    value = repository if value is None else value
    if Path(value).is_file():
        return Path(value)
    name = places[0]
    found = _folder(value, (name,), missing, wanted, lacking)
    if found is None:
        return None
    for path in (found / name, found / Path(name).name):
        if path.is_file():
            return path
    missing.add(str(found / name), f"copy it from the hub repository {repository}")
    return None


def _folder(
    value: str | Path, names: tuple[str, ...], missing: Missing, wanted: str, lacking: Path | None
) -> Path | None:
    """A folder, or the snapshot of a hub repository with the files `names`; None if it is missing."""
    if Path(value).is_dir():
        return Path(value)
    if is_hub_id(value):
        return from_hub(str(value), names, missing, lacking)
    missing.add(str(value), wanted)
    return None


def is_hub_id(value: str | Path) -> bool:
    """Whether a value is a hub id and not a path."""
    return isinstance(value, str) and _HUB_ID.fullmatch(value) is not None and not value.endswith(_WEIGHT_SUFFIXES)


def weight_files(folder: Path) -> tuple[tuple[Path, ...], list[Path]]:
    """The weight files of a folder, and the shards missing from it; no weight files unless they are complete."""
    if (folder / _WEIGHTS).is_file():
        return (folder / _WEIGHTS,), []
    if not (folder / _INDEX).is_file():
        return (), [folder / _WEIGHTS]
    try:
        names = sorted(set(json.loads((folder / _INDEX).read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, TypeError) as exc:
        raise CheckpointError(f"{folder / _INDEX}: is not an index of safetensors shards ({exc!r})") from exc
    if any(Path(name).name != name for name in names):
        raise CheckpointError(f"{folder / _INDEX}: has shards outside its folder")
    absent = [folder / name for name in names if not (folder / name).is_file()]
    return (() if absent else tuple(folder / name for name in names)), absent


def is_complete(folder: Path, names: Sequence[str]) -> bool:
    """Whether a folder has the files `names`, of which `WEIGHT_PATTERNS` stand for all weight files."""
    others = [name for name in names if name not in WEIGHT_PATTERNS]
    return all((folder / name).is_file() for name in others) and (others == [*names] or bool(weight_files(folder)[0]))


def from_hub(repository: str, patterns: tuple[str, ...], missing: Missing, folder: Path | None) -> Path | None:
    """The snapshot folder of a hub repository with the files of `patterns`; downloaded only if it is not cached.

    `folder` is the models folder in which it was missing, if any, for the message.
    """
    import huggingface_hub
    from huggingface_hub import constants
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        cached = Path(
            huggingface_hub.snapshot_download(repository, allow_patterns=list(patterns), local_files_only=True)
        )
        if is_complete(cached, patterns):
            return cached
    except LocalEntryNotFoundError:
        pass  # not cached, or incomplete: download it
    needed = " ".join(pattern for pattern in patterns if pattern not in (_INDEX, _SHARDS))
    what, command = f"{repository} (hub)", f"hf download {repository} {needed}"
    if folder is not None:
        what = f"{what}, which {folder} lacks"
        command = f"python -m hfprep download {folder}, or into the hub's cache: {command}"
    if constants.HF_HUB_OFFLINE or not missing.fetch:
        offline, not_asked = "it is not cached and the hub is set offline", "it is not cached and the hub was not asked"
        missing.add(what, f"{offline if constants.HF_HUB_OFFLINE else not_asked}; get it with: {command}")
        return None
    try:
        fetched = Path(huggingface_hub.snapshot_download(repository, allow_patterns=list(patterns)))
    except Exception as exc:  # noqa: BLE001 - errors of whichever HTTP library is in use come through
        missing.add(what, f"it is not cached and could not be fetched ({first_line(exc)}); get it with: {command}")
        return None
    if not is_complete(fetched, patterns):
        missing.add(what, f"the repository does not have {', '.join(patterns)}")
        return None
    return fetched
