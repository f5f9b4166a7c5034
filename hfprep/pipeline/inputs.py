"""The model files of a build: found, checked and identified, not yet loaded.

Takes a BuildConfig; gives `Inputs`, from which the settings that numbers depend on follow. Reads no weights. Imports
nothing heavy, so that `hashing_ahead` can begin before the packages of a build are imported.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from hfprep.errors import HfprepError
from hfprep.io.file_hashes import FileHashes, FileIdentity, Hashers
from hfprep.pipeline.config import BuildConfig
from hfprep.recipes.base import ModelSet, TextEncoder
from hfprep.recipes.registry import choose_recipe
from hfprep.schema import Schema
from hfprep.store.layout import OutputFolder
from hfprep.store.remote import open_folder


@dataclass(frozen=True)
class Inputs:
    """The models of a build, found and identified, not yet loaded; `seen` are the files as they were before hashing."""

    models: ModelSet
    sha256: dict[str, str]
    seen: dict[Path, FileIdentity]

    @property
    def schema(self) -> Schema:
        """What a sample consists of."""
        return self.models.schema

    @cached_property
    def text_encoder(self) -> TextEncoder | None:
        """The tokenizer, opened once; None where there is none."""
        return self.models.text_encoder()

    def settings(self, config: BuildConfig) -> dict[str, dict[str, str]]:
        """What the numbers depend on besides rows, audio and hfprep itself, by group."""
        return self.models.settings(self.sha256, precision=config.precision, audio_sr=config.audio_sr)


def _remembered(folder: OutputFolder, hashers: Hashers) -> FileHashes:
    return FileHashes(folder.private / "sha256.json", hashers)


@contextlib.contextmanager
def hashing_ahead(config: BuildConfig) -> Iterator[Hashers]:
    """Meanwhile hash the model files that are on this machine and new to the output; for `find_inputs`.

    What is missing or wrong is left for it to say.
    """
    with Hashers() as hashers:
        with contextlib.suppress(HfprepError):
            models = choose_recipe(config.recipe, config).find(config, fetch=False)
            _remembered(open_folder(config.output_dir, config.work_dir), hashers).begin(models.files.values())
        yield hashers


def find_inputs(config: BuildConfig, folder: OutputFolder, hashers: Hashers | None = None) -> Inputs:
    """Find and check everything but the weights themselves; `hashers` may have begun to hash them.

    Raises ConfigError and CheckpointError.
    """
    models = choose_recipe(config.recipe, config).find(config)
    seen = {path: FileIdentity.of(path) for path in models.files.values()}
    models.check()
    with contextlib.ExitStack() as stack:
        hashes = _remembered(folder, hashers or stack.enter_context(Hashers()))
        return Inputs(models, hashes.sha256(dict(models.files)), seen)
