"""The batched function that `datasets.map` calls: manifest rows -> feature columns.

`FeatureExtractor` decodes audio and tokenises text in threads ahead of the model, groups samples by length, runs
the model, and splits a batch that does not fit into memory. A sample that cannot be used becomes a `Rejection`;
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

from hfprep.audio.decode import load_waveform, read_header
from hfprep.audio.input_features import FEATURE_DIM, extract_input_features, num_input_frames
from hfprep.batching import BatchLimits, FrameBudget, batches, padded_frames
from hfprep.errors import HfprepError, Reason, RejectedSample
from hfprep.intake import Failure, Loaded, SampleLimits, Task, Tokenizer, load_sample, reject
from hfprep.models.feature_model import FeatureModel
from hfprep.prefetch import prefetch
from hfprep.records import COLUMNS, Features, Need, Rejection, Utterance

log = logging.getLogger(__name__)

PREFETCH_BYTES = 1 << 30
DECODE_BYTES_PER_SECOND = 16000 * 4 * 12  # waveform, its float64 frames and spectrum, while features are computed
LOADING_PER_WORKER = 4
TEXT_ONLY_BYTES = 1 << 14
TEXT_ONLY_BATCH = 256


class DeviceError(HfprepError):
    """The accelerator stopped working: no further batch can run in this process."""


@dataclass(frozen=True, slots=True)
class BatchResult:
    """What became of one batch: an outcome per task, and what it cost."""

    outcomes: list[tuple[Task, Features | Rejection]]
    num_frames: int = 0
    padded_frames: int = 0
    compute_seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class ExtractorSettings:
    """Settings of a `FeatureExtractor` that are not models."""

    via_sampling_rate: int | None = None
    workers: int = 1
    limits: BatchLimits = field(default_factory=lambda: BatchLimits(1, None))
    max_text_tokens: int | None = None
    max_codes: int | None = None
    prefetch_bytes: int = PREFETCH_BYTES


def map_schema(columns: datasets.Features) -> datasets.Features:
    """The columns of a Dataset after `map` with a `FeatureExtractor`: what was there, the features, `rejected`."""
    types = {name: nested(datasets.Value(str(column.dtype)), column.ndim) for name, column in COLUMNS.items()}
    return datasets.Features({**columns, **types, "rejected": datasets.Value("string")})


def nested(value: datasets.Value, depth: int) -> datasets.Value | datasets.List:
    """A list of lists, `depth` deep, of a value."""
    return nested(datasets.List(value), depth - 1) if depth else value


class FeatureExtractor:
    """Computes text ids, codes, condition and emo_vec for any number of rows, batch by batch.

    `model` may be None where only text is wanted. `fallback` gives the model on the CPU for a lone sample that does
    not fit on the device; without it, such a sample gets a second try where it was. With `max_text_tokens` or
    `max_codes` longer samples are rejected.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        model: FeatureModel | None,
        settings: ExtractorSettings,
        *,
        fallback: Callable[[], FeatureModel] | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.model = model
        self.settings = settings
        self.fallback = fallback
        self.budget = FrameBudget(settings.limits.max_frames)
        self.out_of_memory_events = 0
        # One thread each for torch in a loading thread, or every one of them would open a team of its own to resample.
        self._pool = ThreadPoolExecutor(
            settings.workers, "hfprep-load", initializer=torch.set_num_threads, initargs=(1,)
        )

    def close(self) -> None:
        """Stop the loading threads."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def __call__(self, columns: dict[str, list[Any]]) -> dict[str, list[Any]]:
        """For `rows.map(extractor, batched=True, features=map_schema(rows.features), new_fingerprint=NAME)`.

        Needs the columns `id`, `text`, `audio` (a path); `language` is optional. (A fingerprint of one's own, since
        hashing the function would pickle the model.)

        Returns `text_ids` int32 (text_len,), `codes` int32 (code_len,), `condition` float32 (32, model_dim),
        `emo_vec` float32 (model_dim,) and `rejected` (None, else "reason: message"; the features are then None).
        """
        hints = columns.get("language") or [None] * len(columns["id"])
        rows = zip(columns["id"], columns["text"], columns["audio"], hints, strict=True)
        tasks = [
            Task(Utterance(line=line, id=sample_id, text=text, audio=audio, path=audio, language=hint))
            for line, (sample_id, text, audio, hint) in enumerate(rows)
        ]
        outcomes = {task.utterance.line: found for result in self.extract(tasks) for task, found in result.outcomes}
        found = [outcomes[line] for line in range(len(tasks))]
        table: dict[str, list[Any]] = {name: [getattr(item, name, None) for item in found] for name in COLUMNS}
        table["rejected"] = [f"{x.reason}: {x.message}" if isinstance(x, Rejection) else None for x in found]
        return table

    def extract(self, tasks: Sequence[Task]) -> Generator[BatchResult, None, None]:
        """Work through the tasks, longest first, and give each batch as it completes; every task has one outcome."""
        with_audio = [task for task in tasks if task.need & Need.AUDIO]
        text_only = [task for task in tasks if not task.need & Need.AUDIO]
        for start in range(0, len(text_only), TEXT_ONLY_BATCH):
            chunk = text_only[start : start + TEXT_ONLY_BATCH]
            yield BatchResult([self._finish(item) for item in self._pool.map(self._load, chunk)])
        seconds = dict(zip(map(id, with_audio), self._pool.map(_expected_seconds, with_audio), strict=True))
        with_audio.sort(key=lambda task: -seconds[id(task)])
        loaded = prefetch(
            with_audio,
            self._load,
            cost_bytes=lambda task: TEXT_ONLY_BYTES + int(seconds[id(task)] * DECODE_BYTES_PER_SECOND),
            size_bytes=_held_bytes,
            pool=self._pool,
            max_bytes=self.settings.prefetch_bytes,
            max_loading=LOADING_PER_WORKER * self.settings.workers,
        )
        refused: list[tuple[Task, Features | Rejection]] = []
        for batch in batches(self._without_rejections(loaded, refused), self.settings.limits, self.budget):
            yield self._run(batch, refused)
            refused.clear()
        if refused:
            yield BatchResult(list(refused))

    def _load(self, task: Task) -> Loaded | tuple[Task, Rejection]:
        """Tokenise and decode one task; runs in a thread."""
        limits = None if self.model is None else SampleLimits(
            min_frames=self.model.min_frames,
            max_frames=self.model.max_frames,
            max_text_tokens=self.settings.max_text_tokens,
            max_codes=self.settings.max_codes,
        )  # fmt: skip
        if limits is None and task.need & Need.AUDIO:
            raise ValueError("model is None, but audio features are wanted; give a FeatureModel")
        limits = limits or SampleLimits(max_text_tokens=self.settings.max_text_tokens)
        return load_sample(task, self.tokenizer, self._read_audio, limits)

    def _read_audio(self, path: str, check_frames: Callable[[int], None]) -> tuple[np.ndarray, float]:
        waveform = load_waveform(path, via=self.settings.via_sampling_rate)
        check_frames(num_input_frames(len(waveform.samples)))
        return extract_input_features(waveform.samples), waveform.seconds

    def _without_rejections(
        self, loaded: Iterator[Loaded | tuple[Task, Rejection]], refused: list[tuple[Task, Features | Rejection]]
    ) -> Iterator[Loaded]:
        """What was loaded; the rest goes to `refused`, after a second try where only memory was short."""
        for item in loaded:
            if isinstance(item, tuple) and item[1].reason is Reason.OUT_OF_MEMORY:
                log.warning("%s; trying again", item[1].message)
                self._free_memory()
                item = self._load(item[0])
            if isinstance(item, tuple):
                refused.append(item)
            else:
                yield item

    def _run(self, batch: list[Loaded], refused: list[tuple[Task, Features | Rejection]]) -> BatchResult:
        started = time.perf_counter()
        outcomes = refused + self._compute(batch)
        elapsed = time.perf_counter() - started
        return BatchResult(outcomes, sum(x.num_frames for x in batch), padded_frames(batch), elapsed)

    def _compute(self, batch: list[Loaded]) -> list[tuple[Task, Features | Rejection]]:
        """Outcomes of a batch, in its order: halves after running out of memory, singles after any other error."""
        assert self.model is not None
        if len(batch) > 1 and not self.budget.allows(padded_frames(batch)):  # its sibling has just shown that
            return self._compute_halves(batch)
        failure = None
        try:
            outcomes = self._forward(batch, self.model)
        except Exception as error:  # noqa: BLE001 - sorted by kind in `_after_failure`, which keeps the error
            failure = Failure.of(error)
        if failure is None:  # outside of the except block: its traceback would keep the failed batch's tensors alive
            self.budget.fitted(padded_frames(batch))
            return outcomes
        return self._after_failure(batch, failure)

    def _after_failure(self, batch: list[Loaded], failure: "Failure") -> list[tuple[Task, Features | Rejection]]:
        if failure.device_broken:
            raise DeviceError(
                f"the device failed: {failure.message}; run the same command again, finished work is kept"
            )
        if failure.out_of_memory:
            self._free_memory()
            self._note_out_of_memory(batch, failure)
            if len(batch) > 1:
                return self._compute_halves(batch)
            return [self._compute_on_cpu(batch[0], failure)]
        if len(batch) > 1:
            log.warning("a batch of %d failed (%s); running its samples one by one", len(batch), failure.message)
            return [outcome for item in batch for outcome in self._compute([item])]
        return [(batch[0].task, reject(batch[0].task, Reason.COMPUTE_FAILED, failure.message))]

    def _compute_halves(self, batch: list[Loaded]) -> list[tuple[Task, Features | Rejection]]:
        middle = len(batch) // 2
        return self._compute(batch[:middle]) + self._compute(batch[middle:])

    def _compute_on_cpu(self, item: Loaded, failure: "Failure") -> tuple[Task, Features | Rejection]:
        """One more try for a lone sample: with the model on the CPU, or there again with the memory now free."""
        assert self.model is not None
        try:
            return self._forward([item], self.model if self.fallback is None else self.fallback())[0]
        except Exception as error:  # noqa: BLE001 - becomes this sample's rejection
            on_cpu = Failure.of(error)
        self._free_memory()
        reason = Reason.OUT_OF_MEMORY if on_cpu.out_of_memory else Reason.COMPUTE_FAILED
        return item.task, reject(
            item.task, reason, f"alone on the device: {failure.message}; on the CPU: {on_cpu.message}"
        )

    def _note_out_of_memory(self, batch: list[Loaded], failure: "Failure") -> None:
        size = padded_frames(batch)
        self.out_of_memory_events += 1
        self.budget.failed(size)
        halves = f"halves of {len(batch) // 2} and {len(batch) - len(batch) // 2}"
        alone = "once more alone" if self.fallback is None else "alone on the CPU"
        next_step = halves if len(batch) > 1 else alone
        log.warning(
            "out of memory at %d samples x %d frames = %d padded frames; next: %s (%s)",
            len(batch), size // len(batch), size, next_step, failure.message,
        )  # fmt: skip

    def _free_memory(self) -> None:
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _forward(self, batch: list[Loaded], model: FeatureModel) -> list[tuple[Task, Features | Rejection]]:
        """Run the model over one padded batch and cut each sample's own part out of the result."""
        need = Need.NOTHING
        for item in batch:
            need |= item.task.need
        lengths = [item.num_frames for item in batch]
        padded = torch.zeros(len(batch), max(lengths), FEATURE_DIM)
        for row, item in zip(padded, batch, strict=True):
            row[: item.num_frames] = torch.from_numpy(item.input_features)
        device = model.device
        tensors = model(
            padded.to(device),
            torch.tensor(lengths),
            codes=bool(need & Need.CODES),
            latents=bool(need & Need.LATENTS),
        )
        codes = None if tensors.codes is None else tensors.codes.to(torch.int32).cpu().numpy()
        condition = None if tensors.condition is None else tensors.condition.float().cpu().numpy()
        emo_vec = None if tensors.emo_vec is None else tensors.emo_vec.float().cpu().numpy()
        outcomes = []
        for index, item in enumerate(batch):
            outcomes.append(
                self._finish(
                    item,
                    codes=codes[index, : item.num_frames] if codes is not None else None,
                    condition=condition[index] if condition is not None else None,
                    emo_vec=emo_vec[index] if emo_vec is not None else None,
                )
            )
        return outcomes

    @staticmethod
    def _finish(
        item: Loaded | tuple[Task, Rejection], **computed: np.ndarray | None
    ) -> tuple[Task, Features | Rejection]:
        """The outcome of one sample: the columns it needs, or a rejection where a number is not finite."""
        if isinstance(item, tuple):
            return item
        task = item.task
        wanted = {name: value for name, value in computed.items() if COLUMNS[name].need & task.need}
        for name, value in wanted.items():
            if value is not None and not np.isfinite(value).all():
                return task, reject(task, Reason.COMPUTE_FAILED, f"{name} holds NaN or infinite values")
        return task, Features(text_ids=item.text_ids, seconds=item.seconds, **wanted)


def _held_bytes(item: Loaded | tuple[Task, Rejection]) -> int:
    """Memory that a loaded item keeps."""
    features = None if isinstance(item, tuple) else item.input_features
    return TEXT_ONLY_BYTES + (0 if features is None else features.nbytes)


def _expected_seconds(task: Task) -> float:
    """Length to sort and to budget by before decoding: the manifest's duration, else the file header's."""
    if task.utterance.duration is not None:
        return task.utterance.duration
    try:
        return read_header(task.utterance.path).seconds
    except (RejectedSample, OSError):
        return 0.0
