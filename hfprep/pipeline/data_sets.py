"""`--dataset LANG=MANIFEST[=OUTPUT]`, repeated for each data set of a run.

Turns such options into a BuildConfig each. Knows nothing about their content or how they are built.
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
    """The options that replace --manifest and --output-dir if one run builds several data sets."""

    dataset: list[str] | None = option(None, f"{FORM}; repeat it for each data set, instead of --manifest.", INPUT)
    output_root: Path = option(Path(), "With --dataset: parent folder of outputs LANG_processed_data.", OUTPUT)


def config_of_each(specs: Sequence[str], output_root: Path | str = Path(), **options: Any) -> list[BuildConfig]:
    """A config for each "LANG=MANIFEST[=OUTPUT]"; `options` are those of BuildConfig, for all of them.

    OUTPUT defaults to `LANG_processed_data` under `output_root`. LANG is the language of all rows. Raises ConfigError,
    also if two data sets have the same manifest or the same output.
    """
    if not specs:
        raise ConfigError(f"--dataset is not given; it must be {FORM}")
    for name in ("manifest", "output_dir", "language"):
        if options.pop(name, None) is not None:
            raise ConfigError(f"--{name.replace('_', '-')} cannot be used with --dataset, which includes it: {FORM}")
    configs = []
    for spec in specs:
        language, manifest, output = [*(part.strip() for part in spec.split("=", 2)), "", ""][:3]
        if not language or "/" in language or not manifest or (spec.count("=") > 1 and not output):
            raise ConfigError(f"--dataset is {spec!r}; it must be {FORM}")
        folder = Path(output) if output else Path(output_root) / f"{language}_processed_data"
        configs.append(BuildConfig(manifest=Path(manifest), output_dir=folder, language=language, **options))
    refuse_duplicates(configs)
    return configs


def refuse_duplicates(configs: Sequence[BuildConfig]) -> None:
    """Raise ConfigError if two builds would read the same manifest or write to the same folder."""
    for name in ("manifest", "output_dir"):
        seen: dict[Path, BuildConfig] = {}
        for config in configs:
            path = getattr(config, name).resolve()
            if path in seen:
                both = f"{_spec(seen[path])} and {_spec(config)}"
                advice = "remove one" if name == "manifest" else "name another output: LANG=MANIFEST=OUTPUT"
                raise ConfigError(f"--dataset: {both} have the same {name.replace('_dir', '')}, {path}; {advice}")
            seen[path] = config


def _spec(config: BuildConfig) -> str:
    return f"{config.language}={config.manifest}"
