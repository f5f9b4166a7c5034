"""Loads a sample for the models: text ids and audio, or the reason why it cannot be used.

Provides `load_sample`, which builds and `check` share, so that both reject the same samples for the same reasons, and
`Intake`, which calls it for a build, in this process or in others. Knows nothing about batches or models.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from hfprep.errors import HfprepError, Reason, RejectedSample
from hfprep.inputs.audio.decode import guess_seconds, load_waveform
from hfprep.io.object_storage import is_url
from hfprep.pipeline.breaker import Unproven
from hfprep.pipeline.failures import Failure
from hfprep.pipeline.filters import SampleOptions
from hfprep.pipeline.observing import observe
from hfprep.pipeline.stores import Stores
from hfprep.recipes.base import AudioInput, TextEncoder
from hfprep.schema import PickledAsTuple, Rejection, Schema, Segment, Utterance

if TYPE_CHECKING:
    from hfprep.pipeline.intake_processes import IntakeProcesses

GUESSED_BYTES_PER_SECOND = 16_000  # between wav and mp3; a wrong guess costs padding or memory, not correctness
SURE_SECONDS = 5.0  # from this length on, an inexact length is good enough to reject a clip as too long
LOADED_TOGETHER = 8  # samples that a process loads at a time
HEADER_SLACK_SECONDS = 0.5  # maximum error of the length in a header

CheckFrames = Callable[[int], None]
ReadAudio = Callable[[str, CheckFrames, Segment | None], "Clip"]


@dataclass(frozen=True, slots=True)
class Task(PickledAsTuple):
    """One utterance, the column groups to compute, and its audio's size in bytes if known.

    `with_audio`: whether any of the groups is computed from audio.
    """

    utterance: Utterance
    need: frozenset[str]
    with_audio: bool
    audio_bytes: int | None = None

    @classmethod
    def of(
        cls, schema: Schema, utterance: Utterance, need: frozenset[str] | None = None, audio_bytes: int | None = None
    ) -> Task:
        """A task under a schema; `need` None is every group."""
        need = schema.all_groups if need is None else need
        return cls(utterance, need, bool(need & schema.audio_groups), audio_bytes)


def check_seconds(check_frames: CheckFrames, audio: AudioInput) -> Callable[[float], None]:
    """A check in seconds, for stopping early to read a clip that `check_frames` rejects for its length."""

    def check(seconds: float) -> None:
        if seconds < SURE_SECONDS:
            return
        try:
            check_frames(audio.num_frames(int((seconds - HEADER_SLACK_SECONDS) * audio.sampling_rate)))
        except RejectedSample:
            check_frames(audio.num_frames(int(seconds * audio.sampling_rate)))
            raise

    return check


def expected_seconds(path: str, num_bytes: int | None) -> float | None:
    """Expected length of a clip from its header, None if it is unreadable.

    For a file of `num_bytes` in object storage it is estimated from the size: reading the header would fetch it twice.
    """
    if is_url(path) and num_bytes is not None:
        return num_bytes / GUESSED_BYTES_PER_SECOND
    try:
        return guess_seconds(path)
    except Exception:  # noqa: BLE001 - an unreadable sample is rejected, with the reason, when it is loaded
        return None


@dataclass(frozen=True, slots=True)
class Loaded(PickledAsTuple):
    """A loaded task.

    `audio` is the model's input, None if no audio is needed; `num_frames` is its length in frames.
    """

    task: Task
    text_ids: np.ndarray | None
    audio: np.ndarray | None
    seconds: float | None
    num_frames: int = 0

    @property
    def with_audio(self) -> bool:
        return self.audio is not None


@dataclass(frozen=True, slots=True)
class Clip:
    """The audio of a sample: the model's input, float32 (length, ...), its number of frames, its length in seconds."""

    audio: np.ndarray
    num_frames: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleLimits:
    """The models' limits in frames (None: no bound), and the user's options.

    `num_codes(frames)` is the number of codes of a clip.
    """

    schema: Schema
    min_frames: int = 0
    max_frames: int | None = None
    options: SampleOptions = field(default_factory=SampleOptions)
    num_codes: Callable[[int], int] = int

    def check_text(self, text_ids: np.ndarray) -> None:
        """Raise RejectedSample if there are more text ids than positions."""
        if self.options.drop_overlong:
            for column in self.schema.of_kind("tokens"):
                check_length(self.schema, column.lengths[-1], len(text_ids))

    def check_frames(self, num_frames: int) -> None:
        """Raise RejectedSample if a clip is too short or too long for the models, or for the code positions."""
        if num_frames < self.min_frames:
            message = f"the clip has {num_frames} frames of {self._frame}; the models need at least {self.min_frames}"
            raise RejectedSample(Reason.AUDIO_TOO_SHORT, message)
        if self.max_frames is not None and num_frames > self.max_frames:
            limit = self.max_frames
            message = f"the clip has {num_frames} frames of {self._frame}; the models take up to {limit}; cut the clip"
            raise RejectedSample(Reason.AUDIO_TOO_LONG, message)
        if self.options.drop_overlong:
            for column in self.schema.of_kind("codes"):
                check_length(self.schema, column.lengths[-1], self.num_codes(num_frames))

    @property
    def _frame(self) -> str:
        return f"{1000 / self.schema.frame_rate:g} ms"


def check_length(schema: Schema, name: str, length: int) -> None:
    """Raise RejectedSample if a sample is longer than the model's number of positions."""
    limit = schema.limits.get(name)
    if limit is None or length <= limit:
        return
    tokens = any(name in column.lengths for column in schema.of_kind("tokens"))
    reason, what = (Reason.TEXT_TOO_LONG, "text ids") if tokens else (Reason.CODES_TOO_LONG, "codes")
    raise RejectedSample(reason, f"{length} {what}, but the model has only {limit} positions (--drop-overlong)")


def load_sample(
    task: Task, tokenizer: TextEncoder | None, read_audio: ReadAudio, limits: SampleLimits
) -> Loaded | Rejection:
    """Load a sample, or return why it cannot be used; the only place that decides this.

    `read_audio(path, check_frames, segment)` calls `check_frames` as soon as it knows the number of frames of the
    recording (or segment), or that they are far too many. `tokenizer` is None if no task needs text. Raises the errors
    of `read_audio` for a store that ends the run (see `Stores`).
    """
    utterance = task.utterance
    reason, what = Reason.TEXT_FAILED, "the text"
    try:
        text_ids, clip = None, None
        if tokenizer is not None and task.need & limits.schema.text_groups:
            text_ids = tokenizer.encode(utterance.text, utterance.language)
            limits.check_text(text_ids)
        reason, what = Reason.AUDIO_UNREADABLE, utterance.path
        if task.with_audio:
            clip = read_audio(utterance.path, limits.check_frames, utterance.segment)
            limits.options.filters.check(clip.seconds, utterance.text)
        if clip is None:
            return Loaded(task, text_ids, None, None)
        return Loaded(task, text_ids, clip.audio, clip.seconds, clip.num_frames)
    except RejectedSample as error:
        return reject(task, error.reason, error.message)
    except HfprepError:  # such as an unreachable store: not the sample's fault
        raise
    except Exception as error:  # noqa: BLE001 - an unexpected error must not end the run; it becomes a rejection
        failure = Failure.of(error)
        message = f"while reading {what}: {failure.message}"
        if failure.out_of_memory:
            return reject(task, Reason.OUT_OF_MEMORY, message)
        return reject(task, reason, message, failure.kind)


def reject(task: Task, reason: Reason, message: str, kind: str | None = None) -> Rejection:
    """The rejection of a task's utterance; for a failure of some `kind` it is `Unproven`."""
    line, sample_id = task.utterance.line, task.utterance.id
    if kind is None:
        return Rejection(line, sample_id, reason, message)
    return Unproven(line, sample_id, reason, message, kind)


@dataclass(frozen=True, slots=True, kw_only=True)
class IntakeSettings:
    """Limits and preparation of samples; `on_gpu`: whether the model runs on a GPU."""

    limits: SampleLimits
    audio: AudioInput
    on_gpu: bool = False


@dataclass
class Intake:
    """Tokenizes and reads samples, in `processes` if there are any. Thread-safe."""

    tokenizer: TextEncoder | None
    settings: IntakeSettings
    processes: IntakeProcesses | None = None

    def __post_init__(self) -> None:
        self._stores = Stores(self.settings.limits.options.named_stores)

    @property
    def together(self) -> int:
        """How many samples to load in one call: several in a process, or threads would be woken for every one."""
        return 1 if self.processes is None else LOADED_TOGETHER

    def load(self, task: Task) -> Loaded | Rejection:
        """The sample, or why it cannot be used. Raises StoreError as `load_sample` does."""
        return self.load_all([task])[0]

    def load_all(self, tasks: Sequence[Task]) -> list[Loaded | Rejection]:
        """As `load`, for tasks that one process loads one after another."""
        if self.processes is None:
            return [self._load_here(task) for task in tasks]
        utterances = [task.utterance for task in tasks]
        observe("load begins", utterances)
        found = self.processes.load(tasks, self.settings)
        observe("load ended", utterances)
        return [sample or self._load_here(task) for task, sample in zip(tasks, found, strict=True)]

    def _load_here(self, task: Task) -> Loaded | Rejection:
        observe("load begins", (task.utterance,))
        found = load_sample(task, self.tokenizer, self.read_audio, self.settings.limits)
        observe("load ended", (task.utterance,))
        return found

    def expected_seconds(self, tasks: Sequence[Task]) -> list[float]:
        """Expected lengths of the clips of some tasks in seconds, for sorting and memory limits; 0 if unknown."""
        segments = [task.utterance.segment for task in tasks]
        known = [None if segment is None else segment.seconds for segment in segments]
        clips = [
            (task.utterance.path, task.audio_bytes)
            for task, seconds in zip(tasks, known, strict=True)
            if seconds is None
        ]
        found = None if self.processes is None else self.processes.expected_seconds(clips)
        if found is None:
            found = [expected_seconds(path, num_bytes) for path, num_bytes in clips]
        guesses = iter(found)
        return [(next(guesses) if seconds is None else seconds) or 0.0 for seconds in known]

    def read_audio(self, path: str, check_frames: CheckFrames, segment: Segment | None = None) -> Clip:
        """The `read_audio` of `load_sample`: reads a file and prepares the model's input.

        Raises RejectedSample as `load_waveform` and `AudioInput.prepare` do, and what `check_frames` raises.
        """
        audio, via = self.settings.audio, self.settings.limits.options.via_sampling_rate
        rate, check = audio.sampling_rate, check_seconds(check_frames, audio)

        def read() -> Clip:
            found = load_waveform(path, sampling_rate=rate, via=via, segment=segment, check_seconds=check)
            num_frames = audio.num_frames(len(found.samples))
            check_frames(num_frames)
            return Clip(audio.prepare(found.samples, on_gpu=self.settings.on_gpu), num_frames, found.seconds)

        return self._stores.ask(path, read)

    def close(self) -> None:
        """End the processes."""
        if self.processes is not None:
            self.processes.close()
