"""How an output was built: given paths, options, and the recipe of its samples."""

import dataclasses
from pathlib import Path
from typing import Any

from hfprep.errors import ConfigError
from hfprep.io.object_storage import url_of
from hfprep.pipeline.config import BuildConfig
from hfprep.recipes.options import ModelOptions
from hfprep.schema import Schema
from hfprep.store.fingerprints import parse_settings
from hfprep.store.state import State

SCHEMA = "schema"  # in the state
# Options that decide where and how features are computed, but do not change them.
ELSEWHERE = {
    "output_dir", "work_dir", "shard", "engine", "ray_address", "num_gpus_per_worker", "num_processes", "workers",
    "device", "skip_existing", "strict", "log_json", "on_change",
}  # fmt: skip


def options_in_force(config: BuildConfig) -> dict[str, Any]:
    """The options that affect the result of a run, as given, to repeat it."""
    values = {
        item.name: getattr(config, item.name) for item in dataclasses.fields(config) if item.name not in ELSEWHERE
    }
    values["audio_sr"] = config.resample_via
    return {name: str(value) if isinstance(value, Path) else value for name, value in values.items()}


def given_paths(config: BuildConfig, working_folder: str | None) -> dict[str, str | None]:
    """The inputs of this build as absolute paths, so that a verification finds them."""
    found: dict[str, Any] = {"manifest": config.manifest, "folder": working_folder or Path.cwd()}
    if config.audio_root is not None:
        found["audio_root"] = config.audio_root
    for item in dataclasses.fields(ModelOptions):
        value = getattr(config, item.name)
        found[item.name] = Path(value) if isinstance(value, str) and Path(value).exists() else value  # or a hub id
    return {
        name: url_of(value) or str(value.absolute()) if isinstance(value, Path) else value
        for name, value in found.items()
    }


def earlier_settings(state: State) -> list[dict[str, dict[str, str]]]:
    """All settings that samples may have been computed with: of the last complete run, and of interrupted ones."""
    last = state.get("settings", parse_settings)
    begun = state.get("settings_begun", lambda values: [parse_settings(value) for value in values])
    return [] if last is None else [last, *(begun or [])]


def check_recipe(state: State, schema: Schema) -> None:
    """Raise ConfigError if the output has samples of another recipe, or with other columns."""
    before = state.get(SCHEMA, lambda record: _outline(Schema.parse(record)))
    if before is not None:
        (recipe, held), (_, wanted) = before, _outline(schema)
        if recipe != schema.recipe:
            raise ConfigError(
                f"--output-dir contains samples of the recipe {recipe!r}, but these models are for "
                f"{schema.recipe!r}; give another folder"
            )
        if held != wanted:
            raise ConfigError(
                f"--output-dir contains samples with {_columns(held)}, but with these options they would have "
                f"{_columns(wanted)}; give another folder"
            )
    state.put(SCHEMA, schema.record())


def _outline(schema: Schema) -> tuple[str, dict[str, str]]:
    """The recipe of a schema, and the dtypes of its columns."""
    return schema.recipe, {column.name: column.dtype for column in schema.columns}


def _columns(dtypes: dict[str, str]) -> str:
    return ", ".join(f"{name} ({dtype})" for name, dtype in dtypes.items())
