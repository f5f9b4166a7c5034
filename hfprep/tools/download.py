"""Fetches the published model files into one folder that `--models` takes, and checks them against the hub's hashes.

Gives `download`. What is there already is not fetched again, and a fetch that was cut off goes on where it stopped:
both are the hub library's doing. Knows the repositories by the names that `models/locate.py` has for them.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from hfprep.errors import CheckpointError
from hfprep.io.file_hashes import sha256_file
from hfprep.recipes.finding import CONFIG_FILE, SEMANTIC_FOLDER, SEMANTIC_MODEL
from hfprep.recipes.indextts2.config import ModelConfig
from hfprep.recipes.indextts2.locate import CODEC_FILE, GPT_FILE, SEMANTIC_CODEC, ModelFiles, locate

GPT_REPOSITORY = "IndexTeam/IndexTTS-2"
TOKENIZER_FILE = "bpe.model"
STATISTICS_FILE = "wav2vec2bert_stats.pt"


@dataclass(frozen=True, slots=True)
class Source:
    """A hub repository, the files wanted of it, and the folder below the target that they go to."""

    repository: str
    patterns: tuple[str, ...]
    folder: str = "."


SOURCES = (
    Source(GPT_REPOSITORY, (CONFIG_FILE, TOKENIZER_FILE, STATISTICS_FILE, GPT_FILE)),
    Source(SEMANTIC_MODEL, ("config.json", "preprocessor_config.json", "model.safetensors"), SEMANTIC_FOLDER),
    Source(SEMANTIC_CODEC, (CODEC_FILE,)),
)


def download(target: Path, *, report: Callable[[str], None] = lambda _: None) -> ModelFiles:
    """Fetch every file that a build needs into `target`; gives where each lies.

    `report` is called with a line for each step. Raises CheckpointError where a repository cannot be reached, lacks a
    file, or a file is not the one that the hub has by its SHA-256.
    """
    target.mkdir(parents=True, exist_ok=True)
    for source in SOURCES:
        report(f"{source.repository}: {', '.join(source.patterns)}")
        try:
            hashes = _fetch(source, target / source.folder)
        except Exception as error:  # whichever network library the hub's own uses, its errors come through
            first = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise CheckpointError(
                f"{source.repository} could not be fetched: {first}; check the network (and HF_ENDPOINT, HF_TOKEN), "
                "then run the same command again: what has arrived is kept"
            ) from error
        _check(source, target / source.folder, hashes)
    report("checking that a build finds everything")
    ModelConfig.read(target / CONFIG_FILE)
    return locate(models=target)


def _fetch(source: Source, folder: Path) -> Mapping[str, str]:
    """Fetch the files of one repository; gives the SHA-256 of those for which the hub has one."""
    import huggingface_hub

    info = huggingface_hub.HfApi().model_info(source.repository, files_metadata=True)
    huggingface_hub.snapshot_download(
        source.repository, revision=info.sha, allow_patterns=list(source.patterns), local_dir=folder
    )
    return {item.rfilename: item.lfs.sha256 for item in info.siblings or () if item.lfs is not None}


def _check(source: Source, folder: Path, hashes: Mapping[str, str]) -> None:
    for name in source.patterns:
        path = folder / name
        if not path.is_file():
            raise CheckpointError(f"the hub repository {source.repository} has no file {name}")
        if name in hashes and (found := sha256_file(path)) != hashes[name]:
            raise CheckpointError(
                f"{path} has the SHA-256 {found}, but the hub's file has {hashes[name]}; delete it and run the same "
                "command again"
            )
