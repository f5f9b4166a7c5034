"""The options of a verification. Light to import, because the command line takes its flags from here."""

from dataclasses import dataclass
from pathlib import Path

from hfprep.errors import ConfigError
from hfprep.recipes.base import option
from hfprep.recipes.options import ModelOptions

VERIFYING = "What to verify"


@dataclass(frozen=True, kw_only=True)
class VerifyOptions(ModelOptions):
    """What to verify. Model paths and manifest default to those of the last build."""

    output_dir: Path = option(Path(), "A build's output directory, or an export.", VERIFYING)
    parity: int = option(0, "Compute this many samples again, each alone, and compare.", VERIFYING)
    reference: int = option(0, "Compute the codes of this many samples with transformers, and compare.", VERIFYING)
    repair: bool = option(False, "Move broken files aside; the next build computes only those again.", VERIFYING)
    workers: int = option(0, "Threads that read; 0: one per CPU core.", VERIFYING)
    device: str = option("auto", "For --parity: auto, cpu, cuda or cuda:N.", VERIFYING)
    seed: int = option(0, "Seed for the samples of --parity and --reference.", VERIFYING)
    manifest: Path | None = option(None, "The manifest, if it has moved.", VERIFYING)

    def __post_init__(self) -> None:
        for name in ("parity", "reference", "workers"):
            if getattr(self, name) < 0:
                raise ConfigError(f"--{name} is {getattr(self, name)}; it must be 0 or a positive number")
