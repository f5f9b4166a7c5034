"""What an engine is given: how to open the extractor, where results go, when to stop.

An engine decides who runs which rows where; everything it needs for that is here, small enough to send to another
process. Knows nothing of manifests or of the output layout.
"""

import contextlib
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from hfprep.io.file_hashes import FileIdentity, check_not_overwritten, check_unchanged
from hfprep.pipeline.batching import BatchLimits
from hfprep.pipeline.codebook import Counted, count_codes
from hfprep.pipeline.devices import choose_device, device_memory
from hfprep.pipeline.engines.messages import Underway
from hfprep.pipeline.failures import DeviceError
from hfprep.pipeline.filters import RowFilters
from hfprep.pipeline.intake import Task
from hfprep.recipes.base import Model, ModelSet
from hfprep.schema import Features, Rejection, Schema
from hfprep.store.layout import PlannedRow

if TYPE_CHECKING:  # the driver of workers, which sends a spec, needs none of these
    import torch

    from hfprep.pipeline.features import BatchResult, FeatureExtractor

log = logging.getLogger(__name__)

MOST_PROCESSES = 16  # that load samples, 90 MB each; a clip of 8 s takes one 3 ms, a text full of numbers 30 ms


@dataclass(frozen=True, slots=True)
class BatchCost:
    """What a batch took: samples, real and padded frames, seconds of audio, out-of-memory events; its codes."""

    rows: int
    num_frames: int
    padded_frames: int
    audio_seconds: float
    out_of_memory_events: int = 0
    codes: Counted | None = None

    def record(self) -> dict[str, Any]:
        """Its numbers, for the timeline."""
        return {item.name: getattr(self, item.name) for item in fields(self) if item.name != "codes"}


NO_COST = BatchCost(0, 0, 0, 0.0)  # of what is rejected without a batch


class Stage(Protocol):
    """Writes computed samples under temporary names, or as bytes, for the process that makes them final."""

    def write(self, computed: Sequence[tuple[PlannedRow, Features]]) -> list[Any]:
        """Write and sync these samples; gives them as the sink takes them, each with its `row`. Raises StoreError."""

    def close(self) -> None:
        """Let go of what is open."""


class Staging(Protocol):
    """How a worker hands over what it computes: small, and safe to send to other processes."""

    def open(self, folder: Path) -> Stage:
        """A stage in a folder of one process."""


class Sink(Protocol):
    """Makes a batch final, in the process that holds the output directory."""

    def __call__(self, staged: list[Any], rejections: list[Rejection], cost: BatchCost) -> None: ...


class Watcher(Protocol):
    """Hears how far each worker is with its batch; None once that is over, whatever came of it."""

    def __call__(self, worker: int, news: Underway | None) -> None: ...


def nobody_watches(worker: int, news: Underway | None) -> None:
    """A `Watcher` that does nothing."""
    del worker, news


class Models:
    """Feature models by their files and device, each loaded once however many extractors use it."""

    def __init__(self) -> None:
        self._loaded: dict[tuple[tuple[Path, ...], str, str], Model] = {}

    def load(
        self,
        models: ModelSet,
        seen: Mapping[Path, FileIdentity],
        device: "torch.device",
        precision: str = "fp32",
    ) -> Model:
        """The model of these files on a device. Raises ConfigError, CheckpointError, DeviceError where it is full.

        `seen` are the files as they were when they were hashed; CheckpointError where they have changed since.
        """
        import torch

        key = (tuple(models.files.values()), str(device), precision)
        if key not in self._loaded:
            started = time.monotonic()
            try:
                model = models.load(device, precision)
            except (torch.OutOfMemoryError, MemoryError) as error:
                raise DeviceError(
                    f"the models do not fit into the memory of {device} that is free now ({error}); "
                    "stop what else runs there, or use another --device, and run the same command again"
                ) from error
            check_unchanged(seen)
            self._loaded[key] = model
            log.info("models loaded on %s as %s in %.1f s", device, precision, time.monotonic() - started)
        return self._loaded[key]

    def check_mapped(self, seen: Mapping[Path, FileIdentity]) -> None:
        """Raise CheckpointError where a file whose weights a CPU computes with has been written to.

        Such weights are not copied: they are the file, as it is now. On a GPU they are what was loaded.
        """
        if any(device == "cpu" for _, device, _ in self._loaded):
            check_not_overwritten(seen)


@dataclass(frozen=True, kw_only=True)
class ExtractorSpec:
    """How to open a `FeatureExtractor`, here or in another process.

    `staging` is how results are handed over, None where they are not. `need` is everything that is wanted of any
    sample. `tenants` is how many workers share a device. With `loaders` samples are loaded in processes although there
    is no GPU: worth it for many texts. In a process that is not the worker's own they are loaded by threads alone.
    `as_for_gpu` is for measuring what the host does for a GPU: any device is fed in that way.
    """

    model_set: ModelSet
    staging: Staging | None
    need: frozenset[str]
    seen: Mapping[Path, FileIdentity] = field(default_factory=dict)
    device: str = "auto"
    precision: str = "fp32"
    batch_size: int = 0
    workers: int = 1
    via_sampling_rate: int | None = None
    drop_overlong: bool = False
    filters: RowFilters = field(default_factory=RowFilters)
    named_stores: frozenset[str] = frozenset()
    threads: int | None = None
    tenants: int = 1
    loaders: bool = False
    own_process: bool = True
    as_for_gpu: bool = False

    def open(
        self, device: str | None = None, *, models: Models | None = None, control: Task | None = None
    ) -> "FeatureExtractor":
        """Load the tokenizer and, where audio is wanted, the models (from `models`, where they are loaded already).

        Raises ConfigError or CheckpointError.
        """
        import torch

        from hfprep.pipeline.features import ExtractorSettings, FeatureExtractor
        from hfprep.pipeline.intake_processes import IntakeProcesses

        models = models or Models()
        if self.threads is not None:
            torch.set_num_threads(self.threads)
        place = choose_device(device or self.device)
        settings = ExtractorSettings(
            via_sampling_rate=self.via_sampling_rate,
            workers=self.workers,
            limits=BatchLimits.choose(
                self.batch_size, device_memory(place, self.tenants), self.model_set.schema.frame_rate
            ),
            drop_overlong=self.drop_overlong,
            filters=self.filters,
            named_stores=self.named_stores,
            as_for_gpu=self.as_for_gpu,
        )
        tokenizer = self.model_set.text_encoder()
        with_audio = bool(self.need & self.model_set.schema.audio_groups)
        model, fallback, processes = None, None, None
        with contextlib.ExitStack() as stack:
            on_gpu = with_audio and (self.as_for_gpu or place.type != "cpu")
            if self.own_process and (self.loaders or on_gpu):
                processes = IntakeProcesses(tokenizer, min(self.workers, MOST_PROCESSES))
                stack.callback(processes.close)  # where the models cannot be loaded, which goes on while these start
            if with_audio and place.type != "cpu":
                fallback = partial(models.load, self.model_set, self.seen, torch.device("cpu"))
            opened = self.model_set.files.get("tokenizer")  # the others are looked at when they are loaded
            check_unchanged({path: identity for path, identity in self.seen.items() if path == opened})
            if with_audio:
                model = models.load(self.model_set, self.seen, place, self.precision)
            stack.pop_all()
        return FeatureExtractor(
            self.model_set, tokenizer, model, settings, fallback=fallback, processes=processes, control=control
        )


def cost_of(
    result: "BatchResult", computed: Sequence[Features], schema: Schema, out_of_memory_events: int
) -> BatchCost:
    """The cost of a computed batch."""
    frames, padded = result.num_frames, result.padded_frames
    seconds = sum(features.seconds or 0.0 for features in computed)
    codes = count_codes(schema, computed)
    return BatchCost(len(result.outcomes), frames, padded, seconds, out_of_memory_events, codes)
