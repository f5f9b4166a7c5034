"""`--dataset LANG=MANIFEST[=OUTPUT]`, given once for each of the data sets that one run builds.

Takes such options, gives a BuildConfig for each. Knows nothing of what is in them or of how they are built.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hfprep.errors import ConfigError
from hfprep.pipeline.config import INPUT, OUTPUT, BuildConfig, option

FORM = "LANG=MANIFEST or LANG=MANIFEST=OUTPUT, such as ja=ja/manifest.jsonl"


@dataclass(frozen=True, kw_only=True)
class ManyOptions:
    """What stands in place of --manifest and --output-dir where one run builds several data sets."""

    dataset: list[str] | None = option(
        None, f"{FORM}; once for each of several data sets, in place of --manifest.", INPUT
    )
    output_root: Path = option(Path(), "With --dataset: where unnamed outputs go, as LANG_processed_data.", OUTPUT)


def config_of_each(specs: Sequence[str], output_root: Path | str = Path(), **options: Any) -> list[BuildConfig]:
    """A config for each "LANG=MANIFEST[=OUTPUT]"; `options` are those of BuildConfig, for all of them.

    OUTPUT is taken as it is given; where it is left out, it is `LANG_processed_data` under `output_root`. LANG is the
    language of all rows. Raises ConfigError, also where two data sets have the same manifest or the same output.
    """
    if not specs:
        raise ConfigError(f"--dataset is not given; it must be {FORM}")
    for name in ("manifest", "output_dir", "language"):
        if options.pop(name, None) is not None:
            raise ConfigError(f"--{name.replace('_', '-')} does not go with --dataset, which says it for each: {FORM}")
    configs = []
    for spec in specs:
        language, manifest, output = [*(part.strip() for part in spec.split("=", 2)), "", ""][:3]
        if not language or "/" in language or not manifest or (spec.count("=") > 1 and not output):
            raise ConfigError(f"--dataset is {spec!r}; it must be {FORM}")
        folder = Path(output) if output else Path(output_root) / f"{language}_processed_data"
        configs.append(BuildConfig(manifest=Path(manifest), output_dir=folder, language=language, **options))
    refuse_twice(configs)
    return configs


def refuse_twice(configs: Sequence[BuildConfig]) -> None:
    """Raise ConfigError where two builds would read the same manifest or write to the same folder."""
    for name in ("manifest", "output_dir"):
        seen: dict[Path, BuildConfig] = {}
        for config in configs:
            path = getattr(config, name).resolve()
            if path in seen:
                both = f"{_spec(seen[path])} and {_spec(config)}"
                advice = "leave one out" if name == "manifest" else "name another output: LANG=MANIFEST=OUTPUT"
                raise ConfigError(f"--dataset: {both} have the same {name.replace('_dir', '')}, {path}; {advice}")
            seen[path] = config


def _spec(config: BuildConfig) -> str:
    return f"{config.language}={config.manifest}"
