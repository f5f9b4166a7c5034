"""The recipes there are, by name; each is imported when it is asked for."""

import importlib
from typing import Any

from hfprep.errors import ConfigError
from hfprep.recipes.base import Recipe

_MODULES = {
    "indextts-2": "hfprep.recipes.indextts2.recipe",
    "indextts-2.5": "hfprep.recipes.indextts25.recipe",
}
NAMES = tuple(_MODULES)
DEFAULT = NAMES[0]


def recipe(name: str) -> Recipe:
    """The recipe of that name; ConfigError where there is none."""
    if name not in _MODULES:
        raise ConfigError(f"--recipe is {name!r}; it must be {' or '.join(NAMES)}")
    found: Recipe = importlib.import_module(_MODULES[name]).RECIPE
    return found


def choose_recipe(name: str | None, options: Any) -> Recipe:
    """The recipe `name`, or the one whose files `options` name; the first where none recognises them."""
    if name is not None:
        return recipe(name)
    return next((found for found in map(recipe, reversed(NAMES)) if found.recognises(options)), recipe(DEFAULT))
