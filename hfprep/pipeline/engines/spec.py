"""The interface of engines: how to open the extractor, where results go, when to stop.

An engine decides which process computes which rows; everything else it needs is here, small enough to send to another
process. Knows nothing about manifests or the output layout.
"""

import contextlib
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from hfprep.io.file_hashes import FileIdentity, check_not_overwritten, check_unchanged
from hfprep.pipeline.batching import BatchLimits
from hfprep.pipeline.codebook import Counted
from hfprep.pipeline.devices import choose_device, device_memory
from hfprep.pipeline.engines.messages import Underway
from hfprep.pipeline.failures import DeviceError
from hfprep.pipeline.filters import SampleOptions
from hfprep.pipeline.intake import Task
from hfprep.recipes.base import Model, ModelSet
from hfprep.schema import Features, Rejection
from hfprep.store.layout import PlannedRow

if TYPE_CHECKING:  # the driver, which only sends a spec, does not need these
    import torch

    from hfprep.pipeline.features import FeatureExtractor

log = logging.getLogger(__name__)

MAX_PROCESSES = 16  # that load samples, 90 MB each; a clip of 8 s takes 3 ms, a text full of numbers 30 ms


@dataclass(frozen=True, slots=True)
class BatchCost:
    """The cost of a batch: samples, real and padded frames, seconds of audio, out-of-memory events; and its codes."""

    rows: int
    num_frames: int
    padded_frames: int
    audio_seconds: float
    out_of_memory_events: int = 0
    codes: Counted | None = None

    def record(self) -> dict[str, Any]:
        """Its numbers, for the timeline."""
        return {item.name: getattr(self, item.name) for item in fields(self) if item.name != "codes"}


NO_COST = BatchCost(0, 0, 0, 0.0)  # of rejections without a batch


class Stage(Protocol):
    """Writes computed samples under temporary names, or as bytes, for the process that publishes them."""

    def write(self, computed: Sequence[tuple[PlannedRow, Features]]) -> list[Any]:
        """Write and sync these samples; returns them as the sink takes them, each with its `row`. Raises StoreError."""

    def close(self) -> None:
        """Release its resources."""


class Staging(Protocol):
    """How a worker hands over its results; small and picklable."""

    def open(self, folder: Path) -> Stage:
        """Open a stage in a folder of one process."""


# Publishes a batch (staged samples, rejections, cost), in the process that has locked the output directory.
Sink = Callable[[list[Any], list[Rejection], BatchCost], None]
# Is told each worker's progress within its batch; None once the batch has ended in any way.
Watcher = Callable[[int, Underway | None], None]

_Key = tuple[ModelSet, frozenset[tuple[Path, FileIdentity]], str, str]


class Models:
    """Feature models by model set, device and precision, each loaded once and shared by extractors."""

    def __init__(self) -> None:
        self._loaded: dict[_Key, Model] = {}

    def load(
        self,
        models: ModelSet,
        seen: Mapping[Path, FileIdentity],
        device: "torch.device",
        precision: str = "fp32",
    ) -> Model:
        """The model of these files on a device. Raises ConfigError, CheckpointError, or DeviceError if memory is full.

        `seen` are the files' identities when they were hashed; raises CheckpointError if they have changed since.
        """
        import torch

        key = (models, frozenset(seen.items()), str(device), precision)
        if key not in self._loaded:
            started = time.monotonic()
            try:
                model = models.load(device, precision)
            except (torch.OutOfMemoryError, MemoryError) as error:
                raise DeviceError(
                    f"the models do not fit into the memory of {device} that is free now ({error}); "
                    "stop other programs on it, or use another --device, and run the same command again"
                ) from error
            check_unchanged(seen)
            self._loaded[key] = model
            log.info("models loaded on %s as %s in %.1f s", device, precision, time.monotonic() - started)
        return self._loaded[key]

    def check_mapped(self, seen: Mapping[Path, FileIdentity]) -> None:
        """Raise CheckpointError if a file whose weights are used on a CPU has been written to.

        Such weights are memory-mapped, so they change with the file. A GPU has a copy.
        """
        if any(device == "cpu" for *_, device, _ in self._loaded):
            check_not_overwritten(seen)


@dataclass(frozen=True, kw_only=True)
class ExtractorSpec:
    """How to open a `FeatureExtractor`, here or in another process.

    `staging` is how results are handed over, None if they are not. `need` are all groups that any sample needs.
    `tenants` is how many workers share a device. With `loaders`, processes load samples even without a GPU, which pays
    off for many texts. If the process is not hfprep's own (`own_process`), only threads load samples.
    `as_for_gpu` feeds any device like a GPU, to measure the host's work.
    """

    model_set: ModelSet
    need: frozenset[str]
    staging: Staging | None = None
    seen: Mapping[Path, FileIdentity] = field(default_factory=dict)
    device: str = "auto"
    precision: str = "fp32"
    batch_size: int = 0
    workers: int = 1
    samples: SampleOptions = field(default_factory=SampleOptions)
    threads: int | None = None
    tenants: int = 1
    loaders: bool = False
    own_process: bool = True
    as_for_gpu: bool = False

    def open(self, *, models: Models | None = None, control: Task | None = None) -> "FeatureExtractor":
        """Load the tokenizer and, if audio features are needed, the models (from `models` if loaded already).

        Raises ConfigError or CheckpointError.
        """
        import torch

        from hfprep.pipeline.features import ExtractorSettings, FeatureExtractor
        from hfprep.pipeline.intake_processes import IntakeProcesses

        models = models or Models()
        if self.threads is not None:
            torch.set_num_threads(self.threads)
        place = choose_device(self.device)
        settings = ExtractorSettings(
            samples=self.samples,
            workers=self.workers,
            limits=BatchLimits.choose(
                self.batch_size, device_memory(place, self.tenants), self.model_set.schema.frame_rate
            ),
            as_for_gpu=self.as_for_gpu,
        )
        tokenizer = self.model_set.text_encoder()
        with_audio = bool(self.need & self.model_set.schema.audio_groups)
        model, fallback, processes = None, None, None
        with contextlib.ExitStack() as stack:
            on_gpu = with_audio and (self.as_for_gpu or place.type != "cpu")
            if self.own_process and (self.loaders or on_gpu):
                processes = IntakeProcesses(tokenizer, min(self.workers, MAX_PROCESSES))
                stack.callback(processes.close)  # if loading the models fails, which happens while these start
            if with_audio and place.type != "cpu":
                fallback = partial(models.load, self.model_set, self.seen, torch.device("cpu"))
            opened = self.model_set.files.get("tokenizer")  # the others are checked when they are loaded
            check_unchanged({path: identity for path, identity in self.seen.items() if path == opened})
            if with_audio:
                model = models.load(self.model_set, self.seen, place, self.precision)
            stack.pop_all()
        return FeatureExtractor(
            self.model_set, tokenizer, model, settings, fallback=fallback, processes=processes, control=control
        )
