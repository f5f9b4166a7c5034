"""The options of a check. Light to import, because the command line takes its flags from here."""

from dataclasses import dataclass
from pathlib import Path

from hfprep.errors import ConfigError
from hfprep.inputs.text.language import language_option
from hfprep.io.object_storage import store_of, url_of
from hfprep.pipeline.config import PLAIN, PRECISIONS
from hfprep.pipeline.filters import RowFilters
from hfprep.recipes.base import option
from hfprep.recipes.options import ModelOptions
from hfprep.recipes.registry import NAMES

CHECKING = "What to check"


@dataclass(frozen=True, kw_only=True)
class CheckOptions(ModelOptions):
    """What to check. Without a tokenizer, texts are not checked; without a config, the published limits are used."""

    manifest: Path = option(Path(), "Manifest in any form that build accepts.", CHECKING)
    recipe: str | None = option(
        None, f"Model family: {', '.join(NAMES)}; default: recognised from the model files.", CHECKING
    )
    language: str | None = option(None, "Language of all rows, as for build.", CHECKING)
    map: str | None = option(None, "Names of fields, as for build.", CHECKING)
    audio_root: Path | None = option(None, "As for build.", CHECKING)
    audio_sr: int = option(16000, "As for build.", CHECKING)
    max_samples: int | None = option(None, "As for build.", CHECKING)
    drop_overlong: bool = option(False, "As for build.", CHECKING)
    min_seconds: float | None = option(None, "As for build.", CHECKING)
    max_seconds: float | None = option(None, "As for build.", CHECKING)
    max_chars_per_second: float | None = option(None, "As for build.", CHECKING)
    decode: bool = option(False, "Also decode all audio, to find truncated and damaged files.", CHECKING)
    workers: int = option(0, "Processes; 0: one per CPU core.", CHECKING)
    device: str = option("auto", "Device of the later build: auto, cpu, cuda or cuda:N.", CHECKING)
    precision: str = option(PLAIN, "Precision of the later build.", CHECKING)
    fix: Path | None = option(None, "Write the lines that a build would accept to this manifest.", CHECKING)

    def __post_init__(self) -> None:
        object.__setattr__(self, "max_samples", self.max_samples or None)
        if self.max_samples is not None and self.max_samples < 0:
            raise ConfigError(f"--max-samples is {self.max_samples}; it must be a positive number, or 0 for all")
        object.__setattr__(self, "language", language_option(self.language))
        _ = self.filters  # raises if a bound is wrong
        if self.precision not in PRECISIONS:
            raise ConfigError(f"--precision is {self.precision!r}; it must be one of {', '.join(PRECISIONS)}")

    @property
    def filters(self) -> RowFilters:
        """The user's bounds on rows."""
        return RowFilters.of(self)

    @property
    def named_stores(self) -> frozenset[str]:
        """The object stores that the user named."""
        urls = (url_of(place) for place in (self.manifest, self.audio_root) if place is not None)
        return frozenset(store_of(url) for url in urls if url is not None)
