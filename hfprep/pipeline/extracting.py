"""Features of a `datasets.Dataset` through its `map` method, for notebooks and existing Dataset objects.

    extractor = hfprep.extractor(models="checkpoints")
    rows = rows.map(extractor, batched=True, features=extractor.features(rows.features))

A build does more: it can be resumed, reuses what is finished, and writes a format that trainers read.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets

from hfprep.errors import ConfigError
from hfprep.io.file_hashes import FileIdentity
from hfprep.pipeline.devices import choose_workers, torch_threads_kept
from hfprep.pipeline.engines.spec import ExtractorSpec
from hfprep.recipes.options import ModelOptions
from hfprep.recipes.registry import choose_recipe
from hfprep.schema import Schema


class DatasetExtractor:
    """A batched function for `datasets.Dataset.map`. Picklable: a copy loads the models again."""

    def __init__(self, options: dict[str, Any]) -> None:
        given = dict(options)
        recipe, workers = given.pop("recipe"), choose_workers(given.pop("workers"))
        spec_options = {name: given.pop(name) for name in ("device", "precision", "batch_size")}
        files = ModelOptions(**{name: _path(name, value) for name, value in given.items()})
        models = choose_recipe(recipe, files).find(files)
        models.check()
        seen = {name: FileIdentity.of(path) for name, path in sorted(models.files.items())}
        self.schema = models.schema
        self._extractor = ExtractorSpec(
            model_set=models,
            need=models.schema.all_groups,
            seen={models.files[name]: identity for name, identity in seen.items()},
            workers=workers,
            own_process=False,
            **spec_options,
        ).open()
        self._options = options
        # `datasets` names its cache by a hash of the pickled function: of options and file identities, not of weights.
        self._identity = tuple(seen.items())

    def __reduce__(self) -> tuple[Callable[..., "DatasetExtractor"], tuple[Any, ...]]:
        return _again, (self._options, self._identity)

    def __call__(self, columns: dict[str, list[Any]]) -> dict[str, list[Any]]:
        """See `FeatureExtractor`."""
        with torch_threads_kept():
            return self._extractor(columns)

    def close(self) -> None:
        """Stop the loading threads."""
        self._extractor.close()

    def features(self, columns: datasets.Features) -> datasets.Features:
        """The columns of a Dataset after `map`: the existing ones, those of the recipe, and `rejected`."""
        return map_schema(columns, self.schema)


def map_schema(columns: datasets.Features, schema: Schema) -> datasets.Features:
    """The columns of a Dataset after `map` with a `FeatureExtractor`: the existing ones, the features, `rejected`."""
    types = {column.name: nested(datasets.Value(column.dtype), column.ndim) for column in schema.columns}
    return datasets.Features({**columns, **types, "rejected": datasets.Value("string")})


def nested(value: datasets.Value, depth: int) -> datasets.Value | datasets.List:
    """The type of lists of a value, nested `depth` deep."""
    return nested(datasets.List(value), depth - 1) if depth else value


def _path(name: str, value: Any) -> Any:
    """An option's value; a string is converted to a Path if the option is one."""
    kind = ModelOptions.__dataclass_fields__[name].type
    return Path(value) if isinstance(value, str) and kind in (Path, Path | None) else value


def _again(options: dict[str, Any], identity: tuple[Any, ...]) -> DatasetExtractor:
    del identity
    return DatasetExtractor(options)


def extractor(
    *,
    recipe: str | None = None,
    device: str = "auto",
    precision: str = "fp32",
    batch_size: int = 0,
    workers: int = 0,
    **files: Any,
) -> DatasetExtractor:
    """A function for `rows.map(..., batched=True)` that adds features to rows with `id`, `text` and `audio` (a path).

    `files` are the options for model files, such as models="checkpoints"; the others are the same as in a build.
    `language` is an optional column of the rows. The result has the recipe's columns and `rejected`: None, or why a
    row has no features. A batch that runs out of memory is split, down to one clip. Raises ConfigError or
    CheckpointError if the models are missing or wrong.
    """
    known = ModelOptions.__dataclass_fields__
    unknown = sorted(files.keys() - known.keys())
    if unknown:
        raise ConfigError(f"extractor has no option {', '.join(unknown)}; it has {', '.join(known)}")
    options = {"recipe": recipe, "device": device, "precision": precision, "batch_size": batch_size, "workers": workers}
    return DatasetExtractor(options | files)
