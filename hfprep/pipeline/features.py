"""The batched function that `datasets.map` calls: manifest rows -> feature columns.

`FeatureExtractor` has samples loaded by threads ahead of the model, groups them by length, runs the model, and splits
a batch that does not fit into memory. A sample that cannot be used becomes a `Rejection`;
no sample is dropped. Knows nothing of output files, of what was done before, or of who runs which rows.
"""

import gc
import logging
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import datasets
import numpy as np
import torch

from hfprep.errors import CheckpointError, HfprepError, Reason
from hfprep.io.chunks import chunks_of
from hfprep.models.batch_input_features import batch_input_features
from hfprep.pipeline.batching import BatchLimits, FrameBudget, batches, padded_frames
from hfprep.pipeline.intake import Failure, Intake, IntakeSettings, Loaded, SampleLimits, Task, reject
from hfprep.pipeline.intake_processes import IntakeProcesses
from hfprep.pipeline.prefetch import prefetch
from hfprep.pipeline.transfers import Download, padded_batch
from hfprep.recipes.base import Model, ModelSet, TextEncoder
from hfprep.schema import Features, Rejection, Schema, Utterance

log = logging.getLogger(__name__)

PREFETCH_BYTES = 1 << 30
DECODE_BYTES_PER_SECOND = 16000 * 4 * 12  # waveform, its float64 frames and spectrum, while features are computed
LOADING_PER_WORKER = 4
TEXT_ONLY_BYTES = 1 << 14
TEXT_ONLY_BATCH = 256
HEADERS_AT_ONCE = 32


Outcome = tuple[Task, Features | Rejection]
Pending = Callable[[], list[Outcome]]  # waits for what has been given to the device


class DeviceError(HfprepError):
    """The accelerator stopped working: no further batch can run in this process."""


@dataclass(frozen=True, slots=True)
class BatchResult:
    """What became of one batch: an outcome per task, and what it cost."""

    outcomes: list[Outcome]
    num_frames: int = 0
    padded_frames: int = 0
    compute_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class _Launched:
    """A batch that the device has been given, and the samples that were refused before it."""

    batch: list[Loaded]
    refused: list[Outcome]
    pending: list[Pending]
    started: float


@dataclass(frozen=True, kw_only=True)
class ExtractorSettings:
    """Settings of a `FeatureExtractor` that are not models."""

    via_sampling_rate: int | None = None
    workers: int = 1
    limits: BatchLimits = field(default_factory=lambda: BatchLimits(1, None))
    drop_overlong: bool = False
    prefetch_bytes: int = PREFETCH_BYTES


def map_schema(columns: datasets.Features, schema: Schema) -> datasets.Features:
    """The columns of a Dataset after `map` with a `FeatureExtractor`: what was there, the features, `rejected`."""
    types = {column.name: nested(datasets.Value(column.dtype), column.ndim) for column in schema.columns}
    return datasets.Features({**columns, **types, "rejected": datasets.Value("string")})


def nested(value: datasets.Value, depth: int) -> datasets.Value | datasets.List:
    """A list of lists, `depth` deep, of a value."""
    return nested(datasets.List(value), depth - 1) if depth else value


class FeatureExtractor:
    """Computes the columns of a schema for any number of rows, batch by batch.

    `model` may be None where only text is wanted. `fallback` gives the model on the CPU for a lone sample that does
    not fit on the device; without it, such a sample gets a second try where it was. With
    `processes` samples are loaded in these, which end with it.
    """

    def __init__(
        self,
        models: ModelSet,
        tokenizer: TextEncoder,
        model: Model | None,
        settings: ExtractorSettings,
        *,
        fallback: Callable[[], Model] | None = None,
        processes: IntakeProcesses | None = None,
    ) -> None:
        self.schema = models.schema
        self.num_codes = models.num_codes
        self.model = model
        self.settings = settings
        self.fallback = fallback
        self.budget = FrameBudget(settings.limits.max_frames)
        self.out_of_memory_events = 0
        # A GPU gets the next batch before the results of the last are fetched, so that it never waits for the host.
        self.looks_ahead = model is not None and model.device.type == "cuda"
        self.packed = model is not None and model.packs
        limits = SampleLimits(
            schema=self.schema,
            num_codes=models.num_codes,
            min_frames=0 if model is None else model.min_frames,
            max_frames=None if model is None else model.max_frames,
            drop_overlong=settings.drop_overlong,
        )
        # A GPU computes input features, too: in threads they would hold up the one that keeps it busy.
        intake = IntakeSettings(limits=limits, via_sampling_rate=settings.via_sampling_rate, waveforms=self.looks_ahead)
        self.intake = Intake(tokenizer, intake, processes)
        self._collected_at = 0.0
        # One thread each for torch in a loading thread, or every one of them would open a team of its own to resample.
        self._pool = ThreadPoolExecutor(
            settings.workers, "hfprep-load", initializer=torch.set_num_threads, initargs=(1,)
        )

    def close(self) -> None:
        """Stop the loading threads, and the processes that load for them."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        self.intake.close()

    def __call__(self, columns: dict[str, list[Any]]) -> dict[str, list[Any]]:
        """For `rows.map(extractor, batched=True, features=map_schema(rows.features, schema), new_fingerprint=NAME)`.

        Needs the columns `id`, `text`, `audio` (a path); `language` is optional. (A fingerprint of one's own, since
        hashing the function would pickle the model.)

        Returns the columns of the schema and `rejected` (None, else "reason: message"; the features are then None).
        """
        hints = columns.get("language") or [None] * len(columns["id"])
        rows = zip(columns["id"], columns["text"], columns["audio"], hints, strict=True)
        tasks = [
            Task(
                Utterance(line=line, id=sample_id, text=text, audio=audio, path=audio, language=hint),
                self.schema.all_groups,
            )
            for line, (sample_id, text, audio, hint) in enumerate(rows)
        ]
        outcomes = {task.utterance.line: found for result in self.extract(tasks) for task, found in result.outcomes}
        found = [outcomes[line] for line in range(len(tasks))]
        arrays = [item.arrays if isinstance(item, Features) else {} for item in found]
        table: dict[str, list[Any]] = {
            column.name: [item.get(column.name) for item in arrays] for column in self.schema.columns
        }
        table["rejected"] = [f"{x.reason}: {x.message}" if isinstance(x, Rejection) else None for x in found]
        return table

    def extract(self, tasks: Sequence[Task]) -> Generator[BatchResult, None, None]:
        """Work through the tasks, longest first, and give each batch as it completes; every task has one outcome."""
        with_audio = [task for task in tasks if task.need & self.schema.audio_groups]
        text_only = [task for task in tasks if not task.need & self.schema.audio_groups]
        for start in range(0, len(text_only), TEXT_ONLY_BATCH):
            chunk = text_only[start : start + TEXT_ONLY_BATCH]
            yield BatchResult([self._finish(item) for item in self._pool.map(self.intake.load, chunk)])
        if with_audio and self.model is None:
            raise ValueError("model is None, but audio features are wanted; give a FeatureModel")
        seconds = {id(task): task.utterance.duration or 0.0 for task in with_audio}
        unknown = [task for task in with_audio if task.utterance.duration is None]
        parts = list(chunks_of(unknown, HEADERS_AT_ONCE))
        for part, found in zip(parts, self._pool.map(self.intake.expected_seconds, parts), strict=True):
            seconds |= zip(map(id, part), found, strict=True)
        with_audio.sort(key=lambda task: -seconds[id(task)])
        loaded = prefetch(
            with_audio,
            self.intake.load,
            cost_bytes=lambda task: TEXT_ONLY_BYTES + int(seconds[id(task)] * DECODE_BYTES_PER_SECOND),
            size_bytes=_held_bytes,
            pool=self._pool,
            max_bytes=self.settings.prefetch_bytes,
            max_loading=LOADING_PER_WORKER * self.settings.workers,
        )
        refused: list[Outcome] = []
        waiting: _Launched | None = None
        usable = self._without_rejections(loaded, refused)
        for batch in batches(usable, self.settings.limits, self.budget, packed=self.packed):
            launched: _Launched | None = self._launch(batch, refused)
            refused.clear()
            if self.looks_ahead:
                waiting, launched = launched, waiting
            if launched is not None:
                yield self._collect(launched)
        if waiting is not None:
            yield self._collect(waiting)
        if refused:
            yield BatchResult(list(refused))

    def _without_rejections(
        self, loaded: Iterator[Loaded | tuple[Task, Rejection]], refused: list[Outcome]
    ) -> Iterator[Loaded]:
        """What was loaded; the rest goes to `refused`, after a second try where only memory was short."""
        for item in loaded:
            if isinstance(item, tuple) and item[1].reason is Reason.OUT_OF_MEMORY:
                log.warning("%s; trying again", item[1].message)
                self._free_memory()
                item = self.intake.load(item[0])
            if isinstance(item, tuple):
                refused.append(item)
            else:
                yield item

    def _cost(self, batch: list[Loaded]) -> int:
        return padded_frames(batch, packed=self.packed)

    def _launch(self, batch: list[Loaded], refused: list[Outcome]) -> _Launched:
        started = time.perf_counter()
        return _Launched(batch, list(refused), self._compute(batch), started)

    def _collect(self, launched: _Launched) -> BatchResult:
        computed = [outcome for pending in launched.pending for outcome in pending()]
        now = time.perf_counter()
        elapsed, self._collected_at = now - max(launched.started, self._collected_at), now
        frames = sum(item.num_frames for item in launched.batch)
        return BatchResult(launched.refused + computed, frames, self._cost(launched.batch), elapsed)

    def _compute(self, batch: list[Loaded]) -> list[Pending]:
        """Outcomes of a batch, in its order: halves after running out of memory, singles after any other error."""
        assert self.model is not None
        if len(batch) > 1 and not self.budget.allows(self._cost(batch)):  # its sibling has just shown that
            return self._compute_halves(batch)
        failure = None
        try:
            pending = self._forward(batch, self.model)
        except Exception as error:  # noqa: BLE001 - sorted by kind in `_after_failure`, which keeps the error
            failure = Failure.of(error)
        if failure is None:  # outside of the except block: its traceback would keep the failed batch's tensors alive
            self.budget.fitted(self._cost(batch))
            return [lambda: self._wait_for(pending, batch)]
        return self._after_failure(batch, failure)

    def _wait_for(self, pending: Pending, batch: list[Loaded]) -> list[Outcome]:
        """What a device gives for a batch; if it fails on the way, what comes of trying again."""
        try:
            return pending()
        except Exception as error:  # noqa: BLE001 - sorted by kind in `_after_failure`, which keeps the error
            failure = Failure.of(error)
        return [outcome for again in self._after_failure(batch, failure) for outcome in again()]

    def _after_failure(self, batch: list[Loaded], failure: "Failure") -> list[Pending]:
        if failure.device_broken:
            raise DeviceError(
                f"the device failed: {failure.message}; run the same command again, finished work is kept"
            )
        if failure.out_of_memory:
            self._free_memory()
            self._note_out_of_memory(batch, failure)
            if len(batch) > 1:
                return self._compute_halves(batch)
            on_cpu = self._compute_on_cpu(batch[0], failure)
            return [lambda: [on_cpu]]
        if len(batch) > 1:
            log.warning("a batch of %d failed (%s); running its samples one by one", len(batch), failure.message)
            return [pending for item in batch for pending in self._compute([item])]
        rejection = reject(batch[0].task, Reason.COMPUTE_FAILED, failure.message)
        return [lambda: [(batch[0].task, rejection)]]

    def _compute_halves(self, batch: list[Loaded]) -> list[Pending]:
        middle = len(batch) // 2
        return self._compute(batch[:middle]) + self._compute(batch[middle:])

    def _compute_on_cpu(self, item: Loaded, failure: "Failure") -> Outcome:
        """One more try for a lone sample: with the model on the CPU, or there again with the memory now free."""
        assert self.model is not None
        try:
            return self._forward([item], self.model if self.fallback is None else self.fallback())()[0]
        except CheckpointError:
            raise  # the model files are at fault, not this sample
        except Exception as error:  # noqa: BLE001 - becomes this sample's rejection
            on_cpu = Failure.of(error)
        self._free_memory()
        reason = Reason.OUT_OF_MEMORY if on_cpu.out_of_memory else Reason.COMPUTE_FAILED
        return item.task, reject(
            item.task, reason, f"alone on the device: {failure.message}; on the CPU: {on_cpu.message}"
        )

    def _note_out_of_memory(self, batch: list[Loaded], failure: "Failure") -> None:
        size = self._cost(batch)
        self.out_of_memory_events += 1
        self.budget.failed(size)
        halves = f"halves of {len(batch) // 2} and {len(batch) - len(batch) // 2}"
        alone = "once more alone" if self.fallback is None else "alone on the CPU"
        next_step = halves if len(batch) > 1 else alone
        frames = f"of {size} frames in all" if self.packed else f"x {size // len(batch)} frames = {size} padded frames"
        log.warning("out of memory at %d samples %s; next: %s (%s)", len(batch), frames, next_step, failure.message)

    def _free_memory(self) -> None:
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _forward(self, batch: list[Loaded], model: Model) -> Pending:
        """Give a padded batch to the model; what it gives waits for the results and cuts out each sample's own part."""
        need = frozenset[str]().union(*(item.task.need for item in batch))
        clips = [item.audio for item in batch if item.audio is not None]
        inputs = padded_batch(clips, model.device)
        if self.intake.settings.waveforms:
            inputs = batch_input_features(inputs, torch.tensor([len(clip) for clip in clips]))
        tensors = model(
            inputs,
            torch.tensor([item.num_frames for item in batch]),
            need & self.schema.audio_groups,
        )
        download = Download(tensors)
        return lambda: self._cut(download, batch)

    def _cut(self, download: Download, batch: list[Loaded]) -> list[Outcome]:
        arrays = download.wait()
        outcomes = []
        for index, item in enumerate(batch):
            own = {name: array[index] for name, array in arrays.items()}
            for column in self.schema.of_kind("codes"):
                if column.name in own:
                    own[column.name] = own[column.name][..., : self.num_codes(item.num_frames)]
            outcomes.append(self._finish(item, **own))
        return outcomes

    def _finish(self, item: Loaded | tuple[Task, Rejection], **computed: np.ndarray) -> Outcome:
        """The outcome of one sample: the columns it needs, or a rejection where a number is not finite."""
        if isinstance(item, tuple):
            return item
        task = item.task
        wanted = {name: value for name, value in computed.items() if self.schema.by_name[name].group in task.need}
        for name, value in wanted.items():
            if not np.isfinite(value).all():
                return task, reject(task, Reason.COMPUTE_FAILED, f"{name} holds NaN or infinite values")
        if item.text_ids is not None:
            wanted |= {column.name: item.text_ids for column in self.schema.of_kind("tokens")}
        return task, Features(wanted, item.seconds)


def _held_bytes(item: Loaded | tuple[Task, Rejection]) -> int:
    """Memory that a loaded item keeps."""
    audio = None if isinstance(item, tuple) else item.audio
    return TEXT_ONLY_BYTES + (0 if audio is None else audio.nbytes)
