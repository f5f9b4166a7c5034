"""The recipes with RANDOM demo models. Light to import, because the command line needs the names."""

from pathlib import Path
from typing import Any

from hfprep.errors import ConfigError

CODEC = "codec"
DEMOS = ("indextts-2", "indextts-2.5", CODEC)


def make_models(name: str, folder: Path) -> dict[str, Any]:
    """Write a model set of a recipe in `DEMOS` to `folder`; returns the build options to use it.

    Raises ConfigError if the folder has models of another recipe.
    """
    if name == CODEC:
        from hfprep.tools.demo.codec import make_codec

        make_codec(folder)
        return {"codec_model": str(folder)}
    from hfprep.recipes.options import ModelOptions
    from hfprep.recipes.registry import choose_recipe
    from hfprep.tools.demo.model_set import MARK_FILE, make_model_set
    from hfprep.tools.demo.model_set25 import make_model_set25

    options = ModelOptions(models=folder)
    if (folder / MARK_FILE).is_file() and (found := choose_recipe(None, options).name) != name:
        raise ConfigError(f"{folder} has models of {found}, not of {name}; give another folder for the demo")
    if name == DEMOS[0]:
        make_model_set(folder)
    else:
        make_model_set25(folder)
    return {"models": folder}
