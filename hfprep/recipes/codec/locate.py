"""Finds a codec's files in a folder, or by hub id in the hub's cache. Weights are read from safetensors files only."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from hfprep.errors import ConfigError
from hfprep.recipes.finding import WEIGHT_PATTERNS, Missing, from_hub, is_hub_id, weight_files

CONFIG = "config.json"
TOKENIZER_JSON, SENTENCEPIECE_NAMES = "tokenizer.json", ("tokenizer.model", "bpe.model", "spm.model")


@dataclass(frozen=True)
class CodecFiles:
    """The codec's config.json and weights, in one folder."""

    config: Path
    weights: tuple[Path, ...]


def locate(value: str | None, *, fetch: bool) -> CodecFiles:
    """Find a codec by a folder or a hub id.

    Raises ConfigError if none is given, CheckpointError with a list of missing files.
    """
    if not value:
        raise ConfigError("--codec-model is missing; give the folder or hub id of a codec, such as kyutai/mimi")
    missing = Missing(fetch)
    folder: Path | None = Path(value)
    if not Path(value).is_dir():
        if is_hub_id(value):
            folder = from_hub(value, (CONFIG, *WEIGHT_PATTERNS), _complete, missing)
        else:
            missing.add(value, "the codec: give a folder or a hub id with --codec-model")
    missing.raise_any()
    assert folder is not None
    found, absent = weight_files(folder)
    for path in [*([] if (folder / CONFIG).is_file() else [folder / CONFIG]), *absent]:
        missing.add(str(path), "copy it from the codec's repository (only safetensors files are read as weights)")
    missing.raise_any()
    return CodecFiles(folder / CONFIG, found)


def _complete(folder: Path) -> bool:
    return (folder / CONFIG).is_file() and bool(weight_files(folder)[0])


def tokenizer_file(value: Path) -> Path:
    """A tokenizer's file: `value` itself, or tokenizer.json or else a SentencePiece model in the folder `value`."""
    if not value.is_dir():
        return value
    for name in (TOKENIZER_JSON, *SENTENCEPIECE_NAMES):
        if (value / name).is_file():
            return value / name
    names = ", ".join((TOKENIZER_JSON, *SENTENCEPIECE_NAMES))
    raise ConfigError(f"--tokenizer {str(value)!r} is a folder without a tokenizer; it must contain one of {names}")
