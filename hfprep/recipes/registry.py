"""The recipes there are, by name; each is imported when it is asked for."""

import importlib
from pathlib import Path
from typing import Any

from hfprep.errors import ConfigError
from hfprep.recipes.base import Download, Outline, Outlined, Published, Recipe

MODULES = {
    "indextts-2": "hfprep.recipes.indextts2.recipe",
    "indextts-2.5": "hfprep.recipes.indextts25.recipe",
    "codec": "hfprep.recipes.codec.recipe",
}
NAMES = tuple(MODULES)
DEFAULT = NAMES[0]


def recipe(name: str) -> Recipe:
    """The recipe of that name; ConfigError where there is none."""
    if name not in MODULES:
        raise ConfigError(f"--recipe is {name!r}; it must be {' or '.join(NAMES)}")
    found: Recipe = importlib.import_module(MODULES[name]).RECIPE
    return found


def choose_recipe(name: str | None, options: Any) -> Recipe:
    """The recipe `name`, or the one whose files `options` name; the first where none recognises them."""
    if name is not None:
        return recipe(name)
    return next((found for found in map(recipe, reversed(NAMES)) if found.recognises(options)), recipe(DEFAULT))


def outline(chosen: Recipe, options: Any) -> Outline:
    """What a recipe's models ask of a data set; from the model files themselves where it cannot say more.

    Raises ConfigError and CheckpointError as `Recipe.find` does.
    """
    if isinstance(chosen, Outlined):
        return chosen.outline(options)
    models = chosen.find(options, fetch=False)
    return Outline(models.schema, models.audio, models.num_codes, models.text_encoder())


def downloads(chosen: Recipe) -> tuple[Download, ...]:
    """What the hub has of a recipe's models; ConfigError where nothing is known of that."""
    if isinstance(chosen, Published):
        return chosen.downloads()
    raise ConfigError(
        f"--recipe {chosen.name} has no models of its own to download; name the ones you want in a build "
        "(for codec, --codec-model takes a folder or a Hugging Face Hub id)"
    )


def absent(models: Path, chosen: Recipe) -> list[str]:
    """The files of a recipe's published models that a models folder lacks."""
    return [
        (Path(source.folder) / file).as_posix()
        for source in downloads(chosen)
        for file in source.files
        if not (models / source.folder / file).is_file()
    ]


def download_command(models: Path, chosen: Recipe) -> str:
    """What fetches the files that a models folder lacks."""
    return f"python -m hfprep download {models}" + ("" if chosen.name == DEFAULT else f" --recipe {chosen.name}")
