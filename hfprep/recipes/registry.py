"""The recipes by name, each imported on first use."""

import importlib
from pathlib import Path
from typing import Any

from hfprep.errors import ConfigError
from hfprep.recipes.base import Download, Recipe

MODULES = {
    "indextts-2": "hfprep.recipes.indextts2.recipe",
    "indextts-2.5": "hfprep.recipes.indextts25.recipe",
    "codec": "hfprep.recipes.codec.recipe",
}
NAMES = tuple(MODULES)
DEFAULT = NAMES[0]


def recipe(name: str) -> Recipe:
    """The recipe of that name; raises ConfigError for an unknown one."""
    if name not in MODULES:
        raise ConfigError(f"--recipe is {name!r}; it must be {' or '.join(NAMES)}")
    return importlib.import_module(MODULES[name]).RECIPE


def choose_recipe(name: str | None, options: Any) -> Recipe:
    """The recipe `name`, or the one that recognises the files in `options`, or else the default."""
    if name is not None:
        return recipe(name)
    return next((found for found in map(recipe, reversed(NAMES)) if found.recognises(options)), recipe(DEFAULT))


def downloads(chosen: Recipe) -> tuple[Download, ...]:
    """A recipe's model files on the hub; raises ConfigError if it has none."""
    if chosen.downloads:
        return chosen.downloads
    raise ConfigError(
        f"--recipe {chosen.name} has no default models to download; give the ones you want to `build` "
        "(for codec, --codec-model takes a folder or a Hugging Face Hub id)"
    )


def absent(models: Path, chosen: Recipe) -> list[str]:
    """The files of a recipe's published models that are missing from a models folder."""
    return [
        (Path(source.folder) / file).as_posix()
        for source in downloads(chosen)
        for file in source.files
        if not (models / source.folder / file).is_file()
    ]


def download_command(models: Path, chosen: Recipe) -> str:
    """The command that downloads a recipe's models to a folder."""
    return f"python -m hfprep download {models}" + ("" if chosen.name == DEFAULT else f" --recipe {chosen.name}")
