"""The options of a build: `BuildConfig`, validated once, with every default in one place.

The command line takes its flags, defaults and help texts from the fields below. Knows nothing about how the work is
done, or about the model's config.yaml.
"""

import os
import re
from dataclasses import dataclass, fields
from pathlib import Path

from hfprep.errors import ConfigError
from hfprep.inputs.manifest.field_map import FieldMap
from hfprep.inputs.text.language import language_option
from hfprep.io.object_storage import store_of, url_of
from hfprep.io.words import parse_size
from hfprep.pipeline.filters import RowFilters
from hfprep.recipes.base import DIRECT_RATE, option
from hfprep.recipes.base import PRECISIONS as MODEL_PRECISIONS
from hfprep.recipes.options import ModelOptions
from hfprep.recipes.registry import NAMES

# Headings of the help, in order.
INPUT, MODELS, OUTPUT, SPEED, SCALE = "Input", "Models", "Output", "Speed", "Scale"
CHANGE, DEBUGGING = "When things change", "Debugging"
PANELS = (INPUT, MODELS, OUTPUT, SPEED, SCALE, CHANGE, DEBUGGING)
FORMATS = ("npy", "arrow", "webdataset")
ON_CHANGE = ("recompute", "refuse")
ENGINES = ("local", "inline", "ray")
PLAIN, AUTO = "fp32", "auto"
PRECISIONS = (*MODEL_PRECISIONS, AUTO)


@dataclass(frozen=True, slots=True)
class Part:
    """One of `count` parts of a manifest (`index` from 0): every count-th line, so that all parts are similar."""

    index: int
    count: int

    @classmethod
    def parse(cls, text: str) -> "Part":
        """Parse "3/16"; raises ConfigError if it is not a part."""
        found = re.fullmatch(r"(\d+)/(\d+)", text)
        if found is None or not int(found[1]) < int(found[2]):
            allowed = "INDEX/COUNT with INDEX from 0 to COUNT - 1, such as 0/16 for the first of sixteen parts"
            raise ConfigError(f"--shard is {text!r}; it must be {allowed}")
        return cls(int(found[1]), int(found[2]))

    def holds(self, line: int) -> bool:
        """Whether a manifest line, counted from 1, is in this part."""
        return (line - 1) % self.count == self.index

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"


@dataclass(frozen=True, kw_only=True)
class BuildConfig(ModelOptions):
    """One build. Paths may be str or Path; model paths are needed unless `models` names a folder of them."""

    manifest: Path = option(Path(), "JSONL with id, text, audio; or CSV, Parquet, tars, a data set.", INPUT)
    map: str | None = option(None, "Your field names: text=sentence,audio=path,id=utt; id=@line: row number.", INPUT)
    audio_root: Path | None = option(None, "Folder (or URL) for relative audio paths.", INPUT)
    language: str | None = option(
        None, "Language of all rows (en, zh, ja, am, ...); default: each row's `language`.", INPUT
    )
    max_samples: int | None = option(None, "Take only the first N usable rows; 0: all.", INPUT)
    min_seconds: float | None = option(None, "Reject shorter clips.", INPUT)
    max_seconds: float | None = option(None, "Reject longer clips.", INPUT)
    max_chars_per_second: float | None = option(None, "Reject texts with more characters per second of audio.", INPUT)
    audio_sr: int | None = option(
        None, "16000 (default): direct; 24000: resample to 24 kHz first, like older scripts.", INPUT
    )
    recipe: str | None = option(None, f"Model family: {', '.join(NAMES)}; default: recognised from the model files.")
    output_dir: Path = option(Path(), "Output folder or s3:// URL; a rerun continues there.", OUTPUT)
    format: str = option("npy", "npy, arrow, webdataset; several with commas.", OUTPUT)
    max_shard_size: str = option("500MB", "Largest size of an arrow or webdataset shard.", OUTPUT)
    val_ratio: float = option(0.01, "Share of ids in val_manifest.jsonl, chosen by a hash of the id.", OUTPUT)
    val_count: int | None = option(None, "Instead of --val-ratio: the N ids with the smallest hashes.", OUTPUT)
    drop_overlong: bool = option(
        False, "Reject samples longer than the model's positions (default: count them).", OUTPUT
    )
    strict: bool = option(False, "Exit with status 1 if any line was rejected.", OUTPUT)
    work_dir: Path | None = option(None, "Local working folder for an output in object storage.", OUTPUT)
    device: str = option("auto", "auto, cpu, cuda or cuda:N.", SPEED)
    precision: str = option(PLAIN, "fp32; on a GPU exact (same codes, faster), tf32, bf16, fp16; auto: measure.", SPEED)
    min_code_agreement: float = option(0.995, "Share of codes that must equal those of fp32.", SPEED)
    batch_size: int = option(0, "Maximum samples per batch; 0: by the device's memory.", SPEED)
    workers: int = option(0, "Threads that decode audio; 0: one per CPU core.", SPEED)
    num_processes: int = option(0, "Processes on this machine; 0: one per GPU, or one.", SCALE)
    shard: str | None = option(None, "Build one part of the manifest: 0/16 to 15/16; `merge` joins them.", SCALE)
    engine: str = option("local", "local; ray: on a cluster (hfprep[ray]); inline: in this process, to debug.", SCALE)
    ray_address: str | None = option(None, "Address of the Ray cluster (auto or HOST:PORT); default: start one.", SCALE)
    num_gpus_per_worker: float | None = option(None, "GPUs per Ray worker (0.5 puts two workers on one GPU).", SCALE)
    on_change: str = option("recompute", "recompute or refuse, if what finished samples depend on has changed.", CHANGE)
    hash_audio: bool = option(False, "Detect changed audio by hashing its content (slower).", CHANGE)
    skip_existing: bool = option(False, "Adopt complete files that hfprep has no record of.", CHANGE)
    log_json: bool = option(False, "Log lines as JSON objects.", DEBUGGING)

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            if isinstance(value, str) and item.type in (Path, Path | None):
                object.__setattr__(self, item.name, Path(value))
        self._require(self.manifest != Path(), "manifest", "the path of a manifest")
        self._require(self.output_dir != Path(), "output_dir", "the path of a folder")
        utf8 = str(self.output_dir).encode("utf-8", "replace") == os.fsencode(self.output_dir)
        self._require(utf8, "output_dir", "a folder whose path is UTF-8 (paths of the data need not be)")
        remote = url_of(self.output_dir) is not None
        self._require(self.work_dir is None or remote, "work_dir", "omitted: --output-dir is a local folder")
        self._require(
            not (remote and self.skip_existing), "skip_existing", "omitted if the output is in object storage"
        )
        object.__setattr__(self, "language", language_option(self.language))
        object.__setattr__(self, "max_samples", self.max_samples or None)
        self._check_numbers()
        self._require(self.engine in ENGINES, "engine", " or ".join(ENGINES))
        self._require(self.precision in PRECISIONS, "precision", ", ".join(PRECISIONS[:-1]) + " or " + PRECISIONS[-1])
        self._require(
            self.precision != "auto" or (self.engine != "ray" and self.shard is None),
            "precision",
            "a specific precision with --engine ray or --shard, because each machine would choose its own",
        )
        if self.shard is not None:
            Part.parse(self.shard)
        FieldMap.parse(self.map)
        self._require(bool(self.formats) and set(self.formats) <= set(FORMATS), "format", _one_or_more(FORMATS))
        self._require(
            self.shard is None or "npy" in self.formats,
            "format",
            "npy, or include npy, for a part (--shard), because `merge` needs the npy layout. Merge the parts, "
            "then use export-arrow or export-webdataset",
        )
        self._require(
            not remote or self.formats in (("arrow",), ("webdataset",)),
            "format",
            "arrow or webdataset for an output in object storage, where many small files are too slow: add --format "
            "arrow; `export-npy` converts a local copy of it to npy files",
        )
        parse_size(self.max_shard_size)
        self._require(self.on_change in ON_CHANGE, "on_change", " or ".join(ON_CHANGE))
        self._require(
            re.fullmatch(r"auto|cpu|cuda(:\d+)?", self.device) is not None, "device", "auto, cpu, cuda or cuda:N"
        )

    def _check_numbers(self) -> None:
        """Raise ConfigError if a number is out of range."""
        self._require(0 <= self.val_ratio <= 1, "val_ratio", "a number from 0 to 1")
        self._require(self.val_count is None or self.val_count >= 0, "val_count", "a number of samples, 0 for none")
        for name in ("batch_size", "workers", "num_processes"):
            self._require(getattr(self, name) >= 0, name, "0 (automatic) or a positive number")
        self._require(self.resample_via > 0, "audio_sr", "a sampling rate in Hz, such as 16000 or 24000")
        most = self.max_samples
        self._require(most is None or most > 0, "max_samples", "a positive number, or 0 for all")
        self._require(0 < self.min_code_agreement <= 1, "min_code_agreement", "above 0, and at most 1")
        gpus = self.num_gpus_per_worker
        self._require(gpus is None or gpus >= 0, "num_gpus_per_worker", "0 or a positive number")
        _ = self.filters  # raises if a bound is invalid

    def _require(self, holds: bool, name: str, allowed: str) -> None:
        if not holds:
            raise ConfigError(f"{flag(name)} is {str(getattr(self, name))!r}; it must be {allowed}")

    @property
    def part(self) -> Part | None:
        """The part of the manifest that `shard` names."""
        return None if self.shard is None else Part.parse(self.shard)

    @property
    def named_stores(self) -> frozenset[str]:
        """The object stores that the user named; their failures are not a row's fault."""
        urls = (url_of(place) for place in (self.manifest, self.output_dir, self.audio_root) if place is not None)
        return frozenset(store_of(url) for url in urls if url is not None)

    @property
    def field_map(self) -> FieldMap:
        """How the input's fields map to hfprep's."""
        return FieldMap.parse(self.map)

    @property
    def resample_via(self) -> int:
        """Intermediate rate in Hz when resampling to 16 kHz: `audio_sr`, by default 16000 (none)."""
        return DIRECT_RATE if self.audio_sr is None else self.audio_sr

    @property
    def filters(self) -> RowFilters:
        """Bounds on accepted rows; raises ConfigError if they are invalid."""
        return RowFilters.of(self)

    @property
    def formats(self) -> tuple[str, ...]:
        """The requested formats without duplicates."""
        return tuple(dict.fromkeys(name.strip() for name in self.format.split(",")))

    @property
    def max_shard_bytes(self) -> int:
        """Maximum bytes of a shard."""
        return parse_size(self.max_shard_size)


def _one_or_more(names: tuple[str, ...]) -> str:
    return f"{', '.join(names[:-1])} or {names[-1]}, or several of these, separated by commas"


def flag(name: str) -> str:
    """The command-line spelling of a field."""
    return "--" + name.replace("_", "-")
