"""The interface between hfprep and a model family.

A recipe finds a family's files and returns a `ModelSet`: the schema of the samples, what their numbers depend on, text
to ids, and, loaded on a device, waveforms to columns. Everything else (manifests, batches, memory, formats, resuming)
is shared. A new recipe is one folder and one line in `registry`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np

from hfprep.inputs.text.scripts import DoubtfulGrammar
from hfprep.schema import Schema

if TYPE_CHECKING:
    import torch
    from torch import Tensor


DIRECT_RATE = 16_000  # Hz; the --audio-sr with which every recipe resamples directly to its own rate
PRECISIONS = ("fp32", "exact", "tf32", "bf16", "fp16")


def option(default: Any, text: str, panel: str = "Models") -> Any:
    """A dataclass field with the help text that the command line shows under the heading `panel`."""
    return field(default=default, metadata={"help": text, "panel": panel})


def absolute(value: Any) -> Any:
    """A dataclass with every path in it absolute, for processes with another working directory."""
    if isinstance(value, Path):
        return value.absolute()
    if isinstance(value, tuple):
        return tuple(map(absolute, value))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        changes = {item.name: absolute(getattr(value, item.name)) for item in dataclasses.fields(value)}
        return dataclasses.replace(value, **changes)
    return value


def resampling(audio_sr: int) -> str:
    """How settings describe the resampling of audio; with 24 kHz, every file is resampled to that rate first."""
    return "24000 at every rate" if audio_sr == 24_000 else str(audio_sr)


class TextEncoder(Protocol):
    """Turns a text into token ids. Picklable, thread-safe."""

    def encode(self, text: str, language: str | None = None) -> np.ndarray:
        """The token ids of a text, int32 (text_len,). Raises RejectedSample if there are none."""

    def doubt(self, text: str, language: str | None) -> DoubtfulGrammar | None:
        """Why the grammar chosen from a text's script alone may be wrong; None if there is no doubt."""

    def fingerprint(self) -> str:
        """Everything that the ids depend on, apart from the text and its language."""


class AudioInput(Protocol):
    """Turns a clip into a model's input. Small, picklable, thread-safe; has no weights.

    `sampling_rate` (Hz) is the rate of the samples.
    """

    @property
    def sampling_rate(self) -> int: ...

    def num_frames(self, num_samples: int) -> int:
        """The number of frames of a clip with `num_samples` samples. Limits and batches are counted in frames."""

    def prepare(self, samples: np.ndarray, *, on_gpu: bool) -> np.ndarray:
        """The model's input, float32 (length, ...), for the samples of a clip, float32 (num_samples,).

        `on_gpu`: the model runs on a GPU, which may do part of the work. Raises RejectedSample if the samples cannot be
        used.
        """


class Model(Protocol):
    """A recipe's networks on a device.

    `min_frames` and `max_frames` bound the length of a clip. If `packs`, padding is not computed: a batch costs the sum
    of its clips' frames, not their number times the longest. Padding may change the results of clips with fewer than
    `pads_from` frames, so these may only be batched with clips of the same length.
    """

    min_frames: int
    max_frames: int
    pads_from: int

    @property
    def device(self) -> torch.device:
        """The device of the weights."""

    @property
    def packs(self) -> bool:
        """Whether padding is skipped."""

    def __call__(self, inputs: Tensor, lengths: Tensor, groups: frozenset[str]) -> dict[str, Tensor]:
        """Compute the columns of `groups` for a padded batch.

        inputs: (B, longest, ...), the output of `AudioInput.prepare` for each clip, zero-padded; lengths: int64 (B,) on
        the CPU. Returns columns of shape (B, ...) on the model's device, padded to the longest.
        """


class ModelSet(Protocol):
    """The model files of a build, found and checked; the weights are not loaded.

    Small, picklable and hashable: equal ones load equal models.
    """

    @property
    def schema(self) -> Schema:
        """The schema of the samples that these files produce."""

    @property
    def files(self) -> Mapping[str, Path]:
        """Every file that the features depend on, by its name in stats.json."""

    def settings(self, sha256: Mapping[str, str], *, precision: str, audio_sr: int) -> dict[str, dict[str, str]]:
        """What each group's features depend on besides rows, audio and hfprep itself, in readable form.

        sha256: the hash of each of `files`, by name.
        """

    def check(self) -> None:
        """Raise ConfigError if the files do not match each other."""

    @property
    def audio(self) -> AudioInput:
        """How a clip becomes the model's input."""

    @property
    def precisions(self) -> tuple[str, ...]:
        """The precisions that the model supports (a device may support fewer): "fp32", and others of `PRECISIONS`."""

    def packs(self, device: torch.device) -> bool:
        """Whether the model skips padding on this device."""

    def text_encoder(self) -> TextEncoder | None:
        """Open the tokenizer; None if the schema has no text."""

    def num_codes(self, num_frames: int) -> int:
        """The number of codes of a clip with `num_frames` frames."""

    def load(self, device: torch.device, precision: str) -> Model:
        """Load the weights. Raises ConfigError, CheckpointError, or torch's out-of-memory error."""


def frames_in(models: ModelSet, seconds: float) -> int:
    """The number of frames of a clip of `seconds` seconds."""
    return models.audio.num_frames(round(seconds * models.audio.sampling_rate))


def via_rate(audio_sr: int, audio: AudioInput) -> int | None:
    """The intermediate sampling rate (Hz) set by `audio_sr`; None if clips go directly to the model's rate."""
    return None if audio_sr in (DIRECT_RATE, audio.sampling_rate) else audio_sr


@dataclass(frozen=True, slots=True)
class Download:
    """Files of a hub repository, their approximate total size (0: unknown), and their folder below `--models`."""

    repository: str
    files: tuple[str, ...]
    num_bytes: int = 0
    folder: str = "."


@dataclass(frozen=True)
class Outline:
    """What a family's models require of a data set, as far as it is known before all files are downloaded.

    `num_codes`, `min_frames` and `max_frames` are as in `ModelSet` and `Model`; `text_encoder` is None without a
    tokenizer.
    """

    schema: Schema
    audio: AudioInput
    num_codes: Callable[[int], int]
    text_encoder: TextEncoder | None = None
    min_frames: int = 0
    max_frames: int | None = None


class Recipe:
    """A model family.

    `published` is the schema of its published models, for the documentation. `downloads` is everything that a build
    needs, for download into one folder for `--models`; it is empty if users choose the models. `optional` are groups
    that not every output has, for the JSON Schema of records.
    """

    name: str
    published: Schema
    downloads: tuple[Download, ...] = ()
    optional: frozenset[str] = frozenset()

    def recognises(self, options: Any) -> bool:
        """Whether the model files in these options belong to this family; reads no weights."""
        raise NotImplementedError

    def find(self, options: Any, *, fetch: bool = True) -> ModelSet:
        """Find and check the files; if not `fetch`, only on this machine.

        Raises ConfigError if an option is missing or wrong, and CheckpointError with a list of all missing files.
        """
        raise NotImplementedError

    def outline(self, options: Any) -> Outline:
        """The requirements of the files in the options; families may know those of the published models without files.

        Raises ConfigError or CheckpointError if a file is not valid.
        """
        models = self.find(options, fetch=False)
        return Outline(models.schema, models.audio, models.num_codes, models.text_encoder())


@runtime_checkable
class Layered(Protocol):
    """A `Model` whose progress within a batch can be observed.

    `layers` take most of its time on a CPU; each is called once for every frame of a batch, with inputs (B, T, D).
    """

    @property
    def layers(self) -> Sequence[torch.nn.Module]: ...


@runtime_checkable
class Referenced(Protocol):
    """A `ModelSet` for which published third-party code can compute some columns, as a reference."""

    def reference(self) -> Callable[[np.ndarray], Mapping[str, np.ndarray]]:
        """A function from a clip at the model's rate, float32 (num_samples,), to its code columns.

        Raises ConfigError if that code is not installed.
        """
