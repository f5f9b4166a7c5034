"""What a comparison is asked to do: `BenchConfig`. The command line takes its flags from the fields."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hfprep.errors import ConfigError
from hfprep.pipeline.config import PLAIN, PRECISIONS, option

BASELINE, BUILD = "baseline", "hfprep"
RECIPES = ("indextts-2", "indextts-2.5")
QUICK_CORPUS = (6, (0.5, 2.0))
QUICK_BASELINE = "4"


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

    recipe: str = option(RECIPES[0], f"Model family: {' or '.join(RECIPES)}.")
    folder: Path = option(Path("bench"), "Working folder: models (3.8 GB), clips, outputs; models stay for a rerun.")
    quick: bool = option(
        False, "Small models, for a check of the counts alone; six clips of 0.5 to 2 s, baseline batch size 4."
    )
    clips: int = option(16, "Number of clips.")
    min_seconds: float = option(2.0, "Length of the shortest clips.")
    max_seconds: float = option(14.0, "Length of the longest clips.")
    baseline_batch_sizes: str = option("1,8", "Batch sizes of the baseline, with commas; empty: hfprep alone.")
    batch_sizes: str = option("0", "Batch sizes of hfprep, with commas (0: automatic).")
    precision: str = option(PLAIN, "Precisions of hfprep's model stages, with commas.")
    device: str = option("auto", "auto, cpu, cuda or cuda:N, for both.")
    threads: int = option(
        0, "Threads of the models, 0: torch's choice. With 1, processor time is measured, not wall time."
    )
    rounds: int = option(1, "How often each takes its turn; the fastest turn counts.")
    json: Path | None = option(None, "Write all figures there as JSON.")

    def __post_init__(self) -> None:
        if self.recipe not in RECIPES:
            raise ConfigError(f"--recipe is {self.recipe!r}; it must be {' or '.join(RECIPES)}")
        if self.clips < 1 or self.rounds < 1 or self.threads < 0:
            raise ConfigError(
                f"--clips is {self.clips}, --rounds is {self.rounds} and --threads is {self.threads}; clips and rounds "
                "must be at least 1, threads at least 0"
            )
        if not 0.1 <= self.min_seconds <= self.max_seconds:
            raise ConfigError(
                f"--min-seconds is {self.min_seconds} and --max-seconds is {self.max_seconds}; the least must be from "
                "0.1 up, and not above the most"
            )
        kinds = {turn.kind for turn in self.turns()}  # every turn is looked at
        if BUILD not in kinds:
            raise ConfigError(
                "--batch-sizes or --precision is empty; give at least one of each (batch size 0: automatic)"
            )

    @property
    def corpus(self) -> tuple[int, tuple[float, float]]:
        """Number of clips, and the range of their seconds."""
        return QUICK_CORPUS if self.quick else (self.clips, (self.min_seconds, self.max_seconds))

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
