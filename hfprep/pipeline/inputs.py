"""The model files of a build: found, checked and identified, not yet loaded.

Takes a BuildConfig; returns `Inputs`, which determines the settings that features depend on. Reads no weights.
"""

from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path

from hfprep.errors import CheckpointError, ConfigError
from hfprep.io.file_hashes import FileHashes, FileIdentity
from hfprep.pipeline.config import BuildConfig
from hfprep.recipes.base import ModelSet, Recipe, TextEncoder
from hfprep.recipes.options import ModelOptions
from hfprep.recipes.registry import absent, choose_recipe, download_command
from hfprep.schema import Schema
from hfprep.store.layout import OutputFolder


@dataclass(frozen=True)
class Inputs:
    """The models of a build, found and identified, not yet loaded; `seen` are the files' identities before hashing."""

    models: ModelSet
    sha256: dict[str, str]
    seen: dict[Path, FileIdentity]

    @property
    def schema(self) -> Schema:
        """The schema of the samples."""
        return self.models.schema

    @cached_property
    def text_encoder(self) -> TextEncoder | None:
        """The tokenizer, opened once; None if there is none."""
        return self.models.text_encoder()

    def settings(self, config: BuildConfig) -> dict[str, dict[str, str]]:
        """What the features depend on besides rows, audio and hfprep itself, by group."""
        return self.models.settings(self.sha256, precision=config.precision, audio_sr=config.resample_via)


def find_inputs(config: BuildConfig, folder: OutputFolder) -> Inputs:
    """Find and check all model files, without loading weights.

    Raises ConfigError and CheckpointError.
    """
    chosen = choose_recipe(config.recipe, config)
    try:
        models = chosen.find(config)
    except (ConfigError, CheckpointError) as error:
        if lacks := _lacking(config, chosen):
            raise type(error)(lacks) from error
        raise
    seen = {path: FileIdentity.of(path) for path in models.files.values()}
    models.check()
    return Inputs(models, FileHashes(folder.private / "sha256.json").sha256(dict(models.files)), seen)


def _lacking(config: BuildConfig, chosen: Recipe) -> str:
    """Which files the models folder lacks, if all files should come from there; else ""."""
    given = [item for item in fields(ModelOptions) if getattr(config, item.name) != item.default]
    models = config.models
    if models is None or not models.is_dir() or len(given) > 1 or not chosen.downloads:
        return ""
    lacks = absent(models, chosen)
    return f"{models} lacks {', '.join(lacks)}; {download_command(models, chosen)} fetches them" if lacks else ""
