"""Where the model files are: a models folder, single paths, or the hub's cache.

Gives `ModelFiles`, the local path of every file that is read, and `locate`, which finds them and fetches from the hub
what is not on this machine. What is cached is found without any network. Knows nothing of what the files hold, apart
from the file name that config.yaml gives for the statistics.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from hfprep.errors import CheckpointError, ConfigError
from hfprep.recipes.indextts2.config import ModelConfig

SEMANTIC_MODEL = "facebook/w2v-bert-2.0"
SEMANTIC_CODEC = "amphion/MaskGCT"
SEMANTIC_FOLDER = "w2v-bert-2.0"
CODEC_FILE = "semantic_codec/model.safetensors"
CONFIG_FILE = "config.yaml"
GPT_FILE = "gpt.pth"

_WEIGHTS, _INDEX, _SHARDS = "model.safetensors", "model.safetensors.index.json", "model-*.safetensors"
_SEMANTIC_CONFIGS = ("config.json", "preprocessor_config.json")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


@dataclass(frozen=True, kw_only=True)
class ModelFiles:
    """The local path of every model file; all exist."""

    config: Path
    gpt_checkpoint: Path
    w2v_stat: Path
    semantic_model: Path
    semantic_config: Path
    preprocessor_config: Path
    semantic_weights: tuple[Path, ...]
    semantic_codec: Path


@dataclass
class _Missing:
    """What was not found, each with its remedy; raised together. With `fetch` the hub is asked first."""

    fetch: bool
    lines: list[str] = field(default_factory=list)

    def add(self, what: str, remedy: str) -> None:
        self.lines.append(f"  {what}\n    {remedy}")

    def raise_any(self) -> None:
        if self.lines:
            raise CheckpointError("model files are missing:\n" + "\n".join(self.lines))


def locate(
    *,
    models: str | Path | None = None,
    config: str | Path | None = None,
    gpt_checkpoint: str | Path | None = None,
    semantic_model: str | Path | None = None,
    semantic_codec: str | Path | None = None,
    fetch: bool = True,
) -> ModelFiles:
    """Find every model file, from the hub's cache or the hub where a part is given as a hub id or not at all.

    Without `fetch` what is not on this machine is missing.

    `models` is a folder with config.yaml, gpt.pth (or the name that the config gives), the statistics, w2v-bert-2.0/
    and semantic_codec/model.safetensors; each other argument takes the place of one of them. `semantic_model` is a
    folder or hub id, `semantic_codec` a file, a folder or a hub id.
    Raises ConfigError where a needed option is not given or config.yaml is not valid, and CheckpointError that lists
    every missing file with the command that gets it.
    """
    folder = None if models is None else Path(models)
    if folder is not None and not folder.is_dir():
        raise ConfigError(f"--models {folder}: there is no such folder")
    config_path = _given(config, folder, CONFIG_FILE, "--config")
    model_config = ModelConfig.read(config_path)
    missing = _Missing(fetch)
    gpt = _given(gpt_checkpoint, folder, model_config.gpt_checkpoint or GPT_FILE, "--gpt-checkpoint")
    if not gpt.is_file():
        missing.add(str(gpt), "the GPT checkpoint: give its path with --gpt-checkpoint")
    statistics = config_path.parent / model_config.w2v_stat
    if not statistics.is_file():
        missing.add(str(statistics), f"the statistics that w2v_stat names: put the file beside {config_path}")
    semantic = _semantic_model(semantic_model, folder, missing)
    weights = _weights(semantic, missing) if semantic is not None else ()
    codec = _semantic_codec(semantic_codec, folder, missing)
    missing.raise_any()
    assert semantic is not None  # else it was missing
    assert codec is not None
    return ModelFiles(
        config=config_path,
        gpt_checkpoint=gpt,
        w2v_stat=statistics,
        semantic_model=semantic,
        semantic_config=semantic / _SEMANTIC_CONFIGS[0],
        preprocessor_config=semantic / _SEMANTIC_CONFIGS[1],
        semantic_weights=weights,
        semantic_codec=codec,
    )


def _given(value: str | Path | None, folder: Path | None, name: str, option: str) -> Path:
    if value is not None:
        return Path(value)
    if folder is None:
        raise ConfigError(f"{option} is not given; give it, or a folder that holds {name} with --models")
    return folder / name


def _semantic_model(value: str | Path | None, folder: Path | None, missing: _Missing) -> Path | None:
    """The semantic model's folder, or None where it is missing."""
    if value is None and folder is not None and (folder / SEMANTIC_FOLDER).is_dir():
        value = folder / SEMANTIC_FOLDER
    value = SEMANTIC_MODEL if value is None else value
    local = Path(value)
    if local.is_dir():
        absent = [name for name in _SEMANTIC_CONFIGS if not (local / name).is_file()]
        for name in absent:
            missing.add(str(local / name), f"copy it from the hub repository {SEMANTIC_MODEL}")
        return local
    if not _is_hub_id(value):
        missing.add(str(value), "the semantic model: give a folder or a hub id with --semantic-model")
        return None
    return _from_hub(
        str(value),
        (*_SEMANTIC_CONFIGS, _WEIGHTS, _INDEX, _SHARDS),
        lambda snapshot: all((snapshot / name).is_file() for name in _SEMANTIC_CONFIGS) and bool(_shards(snapshot)[0]),
        missing,
    )


def _semantic_codec(value: str | Path | None, folder: Path | None, missing: _Missing) -> Path | None:
    """The codec's file, or None where it is missing."""
    if value is None and folder is not None and (folder / CODEC_FILE).is_file():
        value = folder / CODEC_FILE
    value = SEMANTIC_CODEC if value is None else value
    local = Path(value)
    if local.is_file():
        return local
    if local.is_dir():
        for name in (CODEC_FILE, _WEIGHTS):
            if (local / name).is_file():
                return local / name
        missing.add(str(local / CODEC_FILE), f"copy it from the hub repository {SEMANTIC_CODEC}")
        return None
    if not _is_hub_id(value):
        missing.add(str(value), "the semantic codec: give a .safetensors file or a hub id with --semantic-codec")
        return None
    snapshot = _from_hub(str(value), (CODEC_FILE,), lambda found: (found / CODEC_FILE).is_file(), missing)
    return None if snapshot is None else snapshot / CODEC_FILE


def _is_hub_id(value: str | Path) -> bool:
    return isinstance(value, str) and _HUB_ID.fullmatch(value) is not None and not value.endswith(".safetensors")


def _shards(folder: Path) -> tuple[tuple[Path, ...], list[Path]]:
    """The weight files of a folder and those of its index that are absent; no weight files unless all are there."""
    if (folder / _WEIGHTS).is_file():
        return (folder / _WEIGHTS,), []
    if not (folder / _INDEX).is_file():
        return (), [folder / _WEIGHTS]
    try:
        names = sorted(set(json.loads((folder / _INDEX).read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, TypeError) as exc:
        raise CheckpointError(f"{folder / _INDEX}: is not an index of safetensors shards ({exc!r})") from exc
    if any(Path(name).name != name for name in names):
        raise CheckpointError(f"{folder / _INDEX}: names shards outside its folder")
    absent = [folder / name for name in names if not (folder / name).is_file()]
    return (() if absent else tuple(folder / name for name in names)), absent


def _weights(folder: Path, missing: _Missing) -> tuple[Path, ...]:
    found, absent = _shards(folder)
    for path in absent:
        missing.add(str(path), f"copy it from the hub repository {SEMANTIC_MODEL} (only safetensors files are read)")
    return found


def _from_hub(
    repository: str, patterns: tuple[str, ...], complete: Callable[[Path], bool], missing: _Missing
) -> Path | None:
    """The snapshot folder of a hub repository that holds what matches `patterns`; fetched only if not cached."""
    import huggingface_hub
    from huggingface_hub import constants
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        cached = Path(
            huggingface_hub.snapshot_download(repository, allow_patterns=list(patterns), local_files_only=True)
        )
        if complete(cached):
            return cached
    except LocalEntryNotFoundError:
        pass  # not cached, or not all of it: ask the hub
    command = f"hf download {repository} {_command_patterns(patterns)}"
    if constants.HF_HUB_OFFLINE or not missing.fetch:
        offline, not_asked = "it is not cached and the hub is set offline", "it is not cached and the hub was not asked"
        missing.add(
            f"{repository} (hub)", f"{offline if constants.HF_HUB_OFFLINE else not_asked}; get it with: {command}"
        )
        return None
    try:
        fetched = Path(huggingface_hub.snapshot_download(repository, allow_patterns=list(patterns)))
    except Exception as exc:  # noqa: BLE001 - whichever network library the hub's own uses, its errors come through
        missing.add(
            f"{repository} (hub)",
            f"it is not cached and could not be fetched ({_first_line(exc)}); get it with: {command}",
        )
        return None
    if not complete(fetched):
        missing.add(f"{repository} (hub)", f"the repository does not hold {', '.join(patterns)}")
        return None
    return fetched


def _command_patterns(patterns: tuple[str, ...]) -> str:
    names = [pattern for pattern in patterns if pattern not in (_INDEX, _SHARDS)]
    return " ".join(names)


def _first_line(exc: BaseException) -> str:
    return str(exc).strip().splitlines()[0] if str(exc).strip() else type(exc).__name__
