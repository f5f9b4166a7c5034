"""Computes feature columns from manifest rows: loading, batching, and the models.

`FeatureExtractor` loads samples in threads ahead of the model, groups them by length, runs the model, and splits
batches that do not fit into memory. A sample that cannot be used becomes a `Rejection`; no sample is dropped. Knows
nothing about output files, earlier runs, or which process runs which rows.
"""

import contextlib
import dataclasses
import gc
import itertools
import logging
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import torch

from hfprep.errors import CheckpointError, Reason
from hfprep.pipeline.batching import BatchLimits, FrameBudget, batches, padded_frames
from hfprep.pipeline.breaker import Breaker, Unproven
from hfprep.pipeline.failures import DeviceError, Failure
from hfprep.pipeline.filters import SampleOptions
from hfprep.pipeline.forwarding import Arriving, Outcome, forward, outcome
from hfprep.pipeline.intake import Intake, IntakeSettings, Loaded, SampleLimits, Task, reject
from hfprep.pipeline.intake_processes import IntakeProcesses
from hfprep.pipeline.observing import observe
from hfprep.pipeline.prefetch import prefetch
from hfprep.pipeline.underway import Watch
from hfprep.pipeline.windows import Feed, Place, in_loading_order
from hfprep.recipes.base import Model, ModelSet, TextEncoder
from hfprep.schema import Features, Rejection, Utterance

log = logging.getLogger(__name__)

PREFETCH_BYTES = 1 << 30
DECODE_BYTES_PER_SECOND = 16000 * 4 * 12  # waveform, float64 frames and spectrum, while input features are computed
LOADING_PER_WORKER = 4  # clips, or two chunks of them
TEXT_ONLY_BYTES = 1 << 14
TEXT_ONLY_BATCH = 256


@dataclass(frozen=True, slots=True)
class BatchResult:
    """The result of one batch: an outcome per task, and its cost."""

    outcomes: list[Outcome]
    num_frames: int = 0
    padded_frames: int = 0
    compute_seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class ExtractorSettings:
    """Settings of a `FeatureExtractor`, apart from its models."""

    samples: SampleOptions = field(default_factory=SampleOptions)
    workers: int = 1
    limits: BatchLimits = field(default_factory=lambda: BatchLimits(1, None))
    prefetch_bytes: int = PREFETCH_BYTES
    as_for_gpu: bool = False  # feed any device like a GPU, to measure the host's work


@dataclass
class _Queue:
    """What has been loaded and has no outcome yet, oldest first."""

    todo: deque[list[Loaded]] = field(default_factory=deque)  # not yet launched on the device
    arriving: deque[Arriving] = field(default_factory=deque)  # launched, results pending
    refused: list[Outcome] = field(default_factory=list)  # rejected while loading; returned with the next result


class FeatureExtractor:
    """Computes the columns of a schema for any number of rows, batch by batch.

    `model` may be None if only text is needed. `fallback` returns the model on the CPU, for a single sample that does
    not fit on the device; without it, such a sample is tried again on the same device. With `processes`, these load
    samples; closing the extractor ends them. `control` is a sample that was computed before, if there is one: it shows
    whether the machine or another sample is at fault.
    """

    def __init__(
        self,
        models: ModelSet,
        tokenizer: TextEncoder | None,
        model: Model | None,
        settings: ExtractorSettings,
        *,
        fallback: Callable[[], Model] | None = None,
        processes: IntakeProcesses | None = None,
        control: Task | None = None,
    ) -> None:
        self.schema = models.schema
        self.models = models
        self.model = model
        self.settings = settings
        self.fallback = fallback
        self.budget = FrameBudget(settings.limits.max_frames)
        self.out_of_memory_events = 0
        # A GPU gets the next batch before the results of the last one are fetched, so that it never waits for the host.
        self.looks_ahead = model is not None and (settings.as_for_gpu or model.device.type == "cuda")
        self.packed = model is not None and model.packs
        self.pads_from = 0 if model is None else model.pads_from
        limits = SampleLimits(
            schema=self.schema,
            num_codes=models.num_codes,
            min_frames=0 if model is None else model.min_frames,
            max_frames=None if model is None else model.max_frames,
            options=settings.samples,
        )
        # A GPU can also compute a model's inputs: loading threads would delay the thread that keeps the GPU busy.
        intake = IntakeSettings(limits=limits, audio=models.audio, on_gpu=self.looks_ahead)
        self.intake = Intake(tokenizer, intake, processes)
        self._controls: dict[str, Task] = {} if control is None else {"before": control}
        self.watch: Watch | None = None  # is told the progress of a batch
        self._any_computed = False
        self._collected_at = 0.0
        # One torch thread per loading thread: otherwise each would start its own thread pool to resample.
        self._pool = ThreadPoolExecutor(
            settings.workers, "hfprep-load", initializer=torch.set_num_threads, initargs=(1,)
        )

    def close(self) -> None:
        """Stop the loading threads and processes."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        self.intake.close()

    def __call__(self, columns: dict[str, list[Any]]) -> dict[str, list[Any]]:
        """For `rows.map(extractor, batched=True, features=map_schema(rows.features, schema), new_fingerprint=NAME)`.

        Needs the columns `id`, `text`, `audio` (a path); `language` is optional. (`new_fingerprint` avoids pickling the
        model to hash the function.)

        Returns the columns of the schema and `rejected` (None, else "reason: message"; the features are then None).
        Raises SystematicFailureError if samples fail one after another for the same cause.
        """
        hints = columns.get("language") or [None] * len(columns["id"])
        rows = zip(columns["id"], columns["text"], columns["audio"], hints, strict=True)
        tasks = [
            Task.of(self.schema, Utterance(line=line, id=sample_id, text=text, audio=audio, path=audio, language=hint))
            for line, (sample_id, text, audio, hint) in enumerate(rows)
        ]
        outcomes: dict[int, Features | Rejection] = {}
        breaker = Breaker()
        for result in self.extract(tasks):
            outcomes |= {task.utterance.line: found for task, found in result.outcomes}
            rejections = [found for _, found in result.outcomes if isinstance(found, Rejection)]
            breaker.take(computed=len(result.outcomes) - len(rejections), rejections=rejections)
        breaker.finish()
        found = [outcomes[line] for line in range(len(tasks))]
        arrays = [item.arrays if isinstance(item, Features) else {} for item in found]
        table: dict[str, list[Any]] = {
            column.name: [item.get(column.name) for item in arrays] for column in self.schema.columns
        }
        table["rejected"] = [f"{x.reason}: {x.message}" if isinstance(x, Rejection) else None for x in found]
        return table

    def extract(self, tasks: Sequence[Task]) -> Generator[BatchResult, None, None]:
        """Compute the tasks, longest first, and yield each batch as it completes; every task has one outcome."""
        windows = iter([tasks])
        yield from self.stream(lambda _wait: next(windows, None))

    def stream(self, feed: Feed) -> Generator[BatchResult, None, None]:
        """Compute windows of tasks from `feed`; while one is computed, the next one is loaded.

        `feed(wait)` returns the next window, or None: with `wait` if there is no more, else if there is none yet.
        """
        while (first := feed(True)) is not None:
            chunks = in_loading_order(first, feed, self.intake.expected_seconds, self._pool, self.intake.together)
            yield from self._run(self._noted(chunks))

    def _noted(self, chunks: Iterator[list[Place] | None]) -> Iterator[list[Place] | None]:
        """Pass on the chunks; the last and shortest place of a window is kept as a control."""
        for chunk in chunks:
            if chunk is not None:
                if self.model is None and any(place.task.with_audio for place in chunk):
                    raise ValueError("model is None, but audio features are needed; give a FeatureModel")
                self._controls["shortest"] = chunk[-1].task
            yield chunk

    def _run(self, chunks: Iterator[list[Place] | None]) -> Iterator[BatchResult]:
        """Results for places until there are no more for now."""
        queue = _Queue()
        loaded = prefetch(
            chunks,
            lambda chunk: list(zip(chunk, self.intake.load_all([place.task for place in chunk]), strict=True)),
            cost_bytes=lambda chunk: sum(map(_expected_bytes, chunk)),
            size_bytes=lambda found: sum(_held_bytes(item) for _, item in found),
            pool=self._pool,
            max_bytes=self.settings.prefetch_bytes,
            max_loading=max(2, LOADING_PER_WORKER // self.intake.together) * self.settings.workers,
        )
        for batch in self._batches(self._usable(itertools.chain.from_iterable(loaded), queue.refused)):
            queue.todo.append(batch)
            yield from self._work(queue, in_flight=int(self.looks_ahead))
        yield from self._work(queue, in_flight=0)
        if queue.refused:
            yield BatchResult(queue.refused)

    def _batches(self, usable: Iterator[tuple[Place, Loaded]]) -> Iterator[list[Loaded]]:
        for (_, with_audio), group in itertools.groupby(usable, lambda item: item[0].group):
            limits = self.settings.limits if with_audio else BatchLimits(TEXT_ONLY_BATCH, None)
            pads_from = self.pads_from if with_audio else 0
            yield from batches(
                (item for _, item in group), limits, self.budget, packed=self.packed, pads_from=pads_from
            )

    def _usable(
        self, loaded: Iterator[tuple[Place, Loaded | Rejection]], refused: list[Outcome]
    ) -> Iterator[tuple[Place, Loaded]]:
        """Samples that were loaded; rejected ones go to `refused`, after a second try if they ran out of memory."""
        for place, item in loaded:
            if isinstance(item, Rejection) and item.reason is Reason.OUT_OF_MEMORY:
                log.warning("%s; trying again", item.message)
                self._free_memory()
                item = self.intake.load(place.task)
            if isinstance(item, Loaded):
                yield place, item
                continue
            if isinstance(item, Unproven) and (self._any_computed or self.works(place.task)):
                item = item.proven()
            refused.append((place.task, item))

    def _work(self, queue: _Queue, *, in_flight: int) -> Iterator[BatchResult]:
        """Launch waiting batches and collect results until no more than `in_flight` batches are on the device."""
        while queue.todo or len(queue.arriving) > in_flight:
            found = self._collect(queue) if len(queue.arriving) > in_flight else self._launch(queue)
            if found is not None:
                outcomes = queue.refused + found.outcomes
                queue.refused.clear()
                yield dataclasses.replace(found, outcomes=outcomes)

    def _launch(self, queue: _Queue) -> BatchResult | None:
        """Launch the next batch on the device; returns a result if there is one already."""
        batch, started = queue.todo.popleft(), time.perf_counter()
        if not batch[0].with_audio:
            self._any_computed = True
            return BatchResult([(item.task, outcome(self.schema, item, {})) for item in batch])
        if len(batch) > 1 and not self.budget.allows(self._cost(batch)):  # the other half has just failed
            self._push_halves(queue, batch)
            return None
        assert self.model is not None
        observe("batch begins", [item.task.utterance for item in batch])
        try:
            with contextlib.nullcontext() if self.watch is None else self.watch.batch(batch):
                download = forward(batch, self.model, self.schema.audio_groups)
        except Exception as error:  # noqa: BLE001 - classified in `_after_failure`, which keeps the error
            failure = Failure.of(error)
        else:
            self.budget.fitted(self._cost(batch))
            queue.arriving.append(Arriving(self.models, batch, download, started))
            return None
        # Outside of the except block: its traceback would keep the failed batch's tensors alive.
        return self._after_failure(queue, batch, failure)

    def _collect(self, queue: _Queue) -> BatchResult | None:
        """Wait for the oldest batch on the device; None if it failed and its parts are queued again."""
        arriving = queue.arriving.popleft()
        batch = arriving.batch
        try:
            outcomes = arriving.outcomes()
        except Exception as error:  # noqa: BLE001 - classified in `_after_failure`, which keeps the error
            failure = Failure.of(error)
            del arriving  # frees its tensors
        else:
            now = time.perf_counter()
            elapsed, self._collected_at = now - max(arriving.started, self._collected_at), now
            return self._result(batch, outcomes, elapsed)
        return self._after_failure(queue, batch, failure)

    def _result(self, batch: list[Loaded], outcomes: list[Outcome], elapsed: float = 0.0) -> BatchResult:
        """The result of a batch; if values are not finite, checks whether the sample or the machine is at fault."""
        observe("batch computed", [item.task.utterance for item in batch])
        good = [task for task, found in outcomes if isinstance(found, Features)]
        if good:
            self._any_computed = True
            self._controls["computed"] = good[-1]
        for index, (task, found) in enumerate(outcomes):
            if isinstance(found, Unproven) and (good or self.works(task)):
                outcomes[index] = task, found.proven()
        return BatchResult(outcomes, sum(item.num_frames for item in batch), self._cost(batch), elapsed)

    def _after_failure(self, queue: _Queue, batch: list[Loaded], failure: Failure) -> BatchResult | None:
        """Queue a failed batch again: in halves after running out of memory, sample by sample after any other error."""
        if failure.device_broken and not self._device_answers():
            raise DeviceError(
                f"the device failed: {failure.message}; run the same command again, finished work is kept"
            )
        if failure.out_of_memory:
            self._free_memory()
            self._note_out_of_memory(batch, failure)
            if len(batch) == 1:
                return self._result(batch, [(batch[0].task, self._compute_on_cpu(batch[0], failure))])
            self._push_halves(queue, batch)
            return None
        if len(batch) > 1:
            log.warning("a batch of %d failed (%s); running its samples one by one", len(batch), failure.message)
            queue.todo.extendleft([item] for item in reversed(batch))
            return None
        task = batch[0].task
        return self._result(batch, [(task, reject(task, Reason.COMPUTE_FAILED, failure.message, failure.kind))])

    def _push_halves(self, queue: _Queue, batch: list[Loaded]) -> None:
        middle = len(batch) // 2
        queue.todo.extendleft((batch[middle:], batch[:middle]))

    def _compute_on_cpu(self, item: Loaded, failure: Failure) -> Features | Rejection:
        """Try a single sample again: with the model on the CPU, or, without a fallback, on the same device."""
        assert self.model is not None
        try:
            model = self.model if self.fallback is None else self.fallback()
            return self._alone(item, model)
        except CheckpointError:
            raise  # the model files are at fault, not this sample
        except Exception as error:  # noqa: BLE001 - becomes this sample's rejection
            on_cpu = Failure.of(error)
        self._free_memory()
        message = f"alone on the device: {failure.message}; on the CPU: {on_cpu.message}"
        if on_cpu.out_of_memory:
            return reject(item.task, Reason.OUT_OF_MEMORY, message)
        return reject(item.task, Reason.COMPUTE_FAILED, message, on_cpu.kind)

    def _alone(self, item: Loaded, model: Model) -> Features | Rejection:
        download = forward([item], model, self.schema.audio_groups)
        ((_, found),) = Arriving(self.models, [item], download, 0.0).outcomes()
        return found

    def works(self, suspect: Task | None = None) -> bool:
        """Whether a control sample other than the suspect can be computed: then the failure is the suspect's fault."""
        for name in ("computed", "before", "shortest"):
            task = self._controls.get(name)
            if task is None or (suspect is not None and task.utterance.id == suspect.utterance.id):
                continue
            item = self.intake.load(task)
            if isinstance(item, Rejection):
                continue
            try:
                if not item.with_audio or (self.model and isinstance(self._alone(item, self.model), Features)):
                    return True
            except Exception as error:  # noqa: BLE001 - only whether it works matters
                log.warning("the control sample %r also failed (%s)", task.utterance.id, Failure.of(error).message)
        return False

    def _device_answers(self) -> bool:
        """Whether a GPU still computes: after an error that broke it, every call fails."""
        if self.model is None or self.model.device.type != "cuda":
            return False
        try:
            return bool((torch.ones(1, device=self.model.device) + 1).item() == 2)
        except RuntimeError:
            return False

    def _cost(self, batch: list[Loaded]) -> int:
        return padded_frames(batch, packed=self.packed)

    def _note_out_of_memory(self, batch: list[Loaded], failure: Failure) -> None:
        size = self._cost(batch)
        self.out_of_memory_events += 1
        self.budget.failed(size)
        halves = f"halves of {len(batch) // 2} and {len(batch) - len(batch) // 2}"
        alone = "the sample alone again" if self.fallback is None else "the sample alone on the CPU"
        next_step = halves if len(batch) > 1 else alone
        frames = f"with {size} frames" if self.packed else f"x {size // len(batch)} frames = {size} padded frames"
        log.warning("out of memory at %d samples %s; next: %s (%s)", len(batch), frames, next_step, failure.message)

    def _free_memory(self) -> None:
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _expected_bytes(place: Place) -> int:
    """Bytes of memory to load a place."""
    return TEXT_ONLY_BYTES + int(place.seconds * DECODE_BYTES_PER_SECOND)


def _held_bytes(item: Loaded | Rejection) -> int:
    """Bytes of memory that a loaded item holds."""
    audio = None if isinstance(item, Rejection) else item.audio
    return TEXT_ONLY_BYTES + (0 if audio is None else audio.nbytes)
