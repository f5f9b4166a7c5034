"""The options of a comparison: `BenchConfig`, from whose fields the command line takes its flags."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hfprep.errors import ConfigError
from hfprep.pipeline.config import FORMATS, PLAIN, PRECISIONS, option
from hfprep.recipes.registry import NAMES

BASELINE, BUILD = "baseline", "hfprep"
RECIPES = ("indextts-2", "indextts-2.5")
QUICK_CORPUS = (6, (0.5, 2.0))
QUICK_BASELINE = "4"
CLIPS, HOST_CLIPS = 16, 20_000  # enough that start-up is less than a tenth
SECONDS, HOST_SECONDS = (2.0, 14.0), (2.4, 5.6)


@dataclass(frozen=True, slots=True)
class Turn:
    """The baseline, or a build: at a batch size (0: automatic) and in a precision."""

    kind: str
    batch_size: int
    precision: str = PLAIN

    def __str__(self) -> str:
        return f"{self.kind}, batch size {self.batch_size or 'automatic'}, {self.precision}"


@dataclass(frozen=True, kw_only=True)
class BenchConfig:
    """A comparison; the command line takes its flags from these fields."""

    recipe: str = option(RECIPES[0], f"Model family: {' or '.join(RECIPES)}; with --host also {NAMES[-1]}.")
    folder: Path = option(Path("bench"), "Working folder: models (3.8 GB), clips, outputs; models stay for a rerun.")
    quick: bool = option(
        False, "Small models, only to check the counts; six clips of 0.5 to 2 s, baseline batch size 4."
    )
    host: bool = option(False, "Measure everything around the models, which return zeros at once.")
    format: str = option("arrow", f"With --host: {', '.join(FORMATS)}.")
    as_for_gpu: bool = option(False, "With --host: feed the models as on a GPU, which computes the input features.")
    clips: int = option(0, f"Number of clips; 0: {CLIPS}, with --host {HOST_CLIPS:,}.")
    min_seconds: float | None = option(None, f"Shortest clips; default {SECONDS[0]:g}, with --host {HOST_SECONDS[0]}.")
    max_seconds: float | None = option(None, f"Longest clips; default {SECONDS[1]:g}, with --host {HOST_SECONDS[1]}.")
    baseline_batch_sizes: str = option("1,8", "Batch sizes of the baseline, separated by commas; empty: only hfprep.")
    batch_sizes: str = option("0", "Batch sizes of hfprep, separated by commas (0: automatic).")
    precision: str = option(PLAIN, "Precisions of hfprep's model stages, separated by commas.")
    device: str = option("auto", "auto, cpu, cuda or cuda:N, for both.")
    threads: int = option(
        0, "Threads of the models; 0: torch's default. With 1, CPU time is measured instead of wall time."
    )
    rounds: int = option(1, "Number of turns of each; the fastest turn counts.")
    json: Path | None = option(None, "Write all figures to this file as JSON.")

    def __post_init__(self) -> None:
        if self.clips < 0 or self.rounds < 1 or self.threads < 0:
            raise ConfigError(
                f"--clips is {self.clips}, --rounds is {self.rounds} and --threads is {self.threads}; rounds must be "
                "at least 1, clips and threads at least 0"
            )
        recipes = NAMES if self.host else RECIPES
        for name, value, allowed in (("format", self.format, FORMATS), ("recipe", self.recipe, recipes)):
            if value not in allowed:
                raise ConfigError(f"--{name} is {value!r}; it must be {' or '.join(allowed)}")
        least, most = self._seconds
        if not 0.1 <= least <= most:
            raise ConfigError(
                f"--min-seconds is {least} and --max-seconds is {most}; the least must be from 0.1 up, and not above "
                "the most"
            )
        kinds = {turn.kind for turn in self.turns()}  # checks every turn
        if BUILD not in kinds:
            raise ConfigError(
                "--batch-sizes or --precision is empty; give at least one of each (batch size 0: automatic)"
            )

    @property
    def corpus(self) -> tuple[int, tuple[float, float]]:
        """The number of clips, and the range of their lengths in seconds."""
        if self.quick:
            return QUICK_CORPUS
        return self.clips or (HOST_CLIPS if self.host else CLIPS), self._seconds

    @property
    def _seconds(self) -> tuple[float, float]:
        least, most = HOST_SECONDS if self.host else SECONDS
        return (
            least if self.min_seconds is None else self.min_seconds,
            most if self.max_seconds is None else self.max_seconds,
        )

    def turns(self) -> Iterator[Turn]:
        """Every turn of a round, in order. Raises ConfigError."""
        baseline = QUICK_BASELINE if self.quick and self.baseline_batch_sizes else self.baseline_batch_sizes
        for size in _sizes(baseline, least=1):
            yield Turn(BASELINE, size)
        sizes = _sizes(self.batch_sizes, least=0)
        for precision in _parts(self.precision):
            if precision not in PRECISIONS:
                raise ConfigError(f"--precision is {self.precision!r}; each must be one of {', '.join(PRECISIONS)}")
            for size in sizes:
                yield Turn(BUILD, size, precision)


def _parts(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _sizes(text: str, *, least: int) -> list[int]:
    parts = _parts(text)
    if not all(part.isdecimal() and int(part) >= least for part in parts):
        raise ConfigError(f"batch sizes {text!r}: each must be a whole number of at least {least}")
    return [int(part) for part in parts]
