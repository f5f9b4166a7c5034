"""The seam between hfprep and a model family: what a recipe has to say, and nothing more.

A recipe finds a family's files and gives a `ModelSet`: the schema of the samples, what their numbers depend on, text to
ids, and, loaded on a device, waveforms to columns. Everything else (manifests, batches, memory, formats, resuming)
is the same for all. A new recipe is one folder and one line in `registry`.
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


STRAIGHT = 16_000  # the --audio-sr by which every recipe has clips go straight to its own rate
PRECISIONS = ("fp32", "exact", "tf32", "bf16", "fp16")


def option(default: Any, text: str, panel: str = "Models") -> Any:
    """A dataclass field whose help text the command line shows, under the heading `panel`."""
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
    """What settings say of the way that audio comes to the model's rate: at 24 kHz, every file goes by way of it."""
    return "24000 at every rate" if audio_sr == 24_000 else str(audio_sr)


class TextEncoder(Protocol):
    """Turns a text into token ids. Picklable; safe to call from several threads."""

    def encode(self, text: str, language: str | None = None) -> np.ndarray:
        """The token ids of a text, int32 (text_len,). Raises RejectedSample where it has none."""

    def doubt(self, text: str, language: str | None) -> DoubtfulGrammar | None:
        """What is doubtful about the grammar that a text gets by its script alone, None where nothing is."""

    def fingerprint(self) -> str:
        """What the ids depend on besides the text and its hint."""


class AudioInput(Protocol):
    """What a model is given of a clip. Small, picklable; safe to call from several threads; holds no weights.

    `sampling_rate` (Hz) is the rate of the samples.
    """

    @property
    def sampling_rate(self) -> int: ...

    def num_frames(self, num_samples: int) -> int:
        """How many frames a clip of so many samples has: what limits and batches are counted in."""

    def prepare(self, samples: np.ndarray, *, on_gpu: bool) -> np.ndarray:
        """What the model is given of a clip, float32 (length, ...), from its samples, float32 (num_samples,).

        With `on_gpu` the model is on a GPU, which may do part of the work itself. Raises RejectedSample where the
        samples cannot be used.
        """


class Model(Protocol):
    """A recipe's networks on a device.

    `min_frames` and `max_frames` bound a clip. With `packs` the clips of a batch are computed without its padding, so
    that a batch costs the sum of their frames, not their number times the longest. `pads_from` is the fewest frames of
    a clip that padding does not change: shorter ones must be in a batch with clips of as many frames only.
    """

    min_frames: int
    max_frames: int
    pads_from: int

    @property
    def device(self) -> torch.device:
        """Where it computes."""

    @property
    def packs(self) -> bool:
        """Whether it leaves out padding."""

    def __call__(self, inputs: Tensor, lengths: Tensor, groups: frozenset[str]) -> dict[str, Tensor]:
        """Compute the columns of some groups for a padded batch.

        inputs: (B, longest, ...), what `AudioInput.prepare` gives for each clip, zero past its end; lengths: int64 (B,)
        on the CPU, the length of each. Columns come as (B, ...) on the model's device, padded where they are ragged.
        """


class ModelSet(Protocol):
    """The model files of one build: found and checked, weights not loaded. Small, picklable."""

    @property
    def schema(self) -> Schema:
        """What a sample consists of with these files."""

    @property
    def files(self) -> Mapping[str, Path]:
        """Every file that the numbers depend on, by the name that stats.json gives it."""

    def settings(self, sha256: Mapping[str, str], *, precision: str, audio_sr: int) -> dict[str, dict[str, str]]:
        """What the numbers of each group depend on besides rows, audio and hfprep itself, in words for a person.

        sha256: of each of `files`, by name.
        """

    def check(self) -> None:
        """Raise ConfigError where the files do not belong together."""

    @property
    def audio(self) -> AudioInput:
        """What the model is given of a clip."""

    @property
    def precisions(self) -> tuple[str, ...]:
        """The precisions that the model can compute in where the device can: "fp32", and others of `PRECISIONS`."""

    def packs(self, device: torch.device) -> bool:
        """Whether the model leaves out padding on such a device."""

    def text_encoder(self) -> TextEncoder | None:
        """Open the tokenizer; None where the schema has no text."""

    def num_codes(self, num_frames: int) -> int:
        """How many codes a clip of so many frames has."""

    def load(self, device: torch.device, precision: str) -> Model:
        """Load the weights. Raises ConfigError, CheckpointError, or what torch raises where memory is short."""


def frames_in(models: ModelSet, seconds: float) -> int:
    """How many frames a clip of so many seconds has."""
    return models.audio.num_frames(round(seconds * models.audio.sampling_rate))


def via_rate(audio_sr: int, audio: AudioInput) -> int | None:
    """The sampling rate (Hz) that `audio_sr` has clips go through, None where they go straight to the model's own."""
    return None if audio_sr in (STRAIGHT, audio.sampling_rate) else audio_sr


class Recipe(Protocol):
    """One model family. `published` is the schema of its published models, for documentation."""

    name: str
    published: Schema

    def recognises(self, options: Any) -> bool:
        """Whether the model files that these options name are of this family; reads no weights."""

    def find(self, options: Any, *, fetch: bool = True) -> ModelSet:
        """Find and check the files, without `fetch` only on this machine.

        Raises ConfigError where an option is missing or wrong, CheckpointError that lists what is missing.
        """


@dataclass(frozen=True, slots=True)
class Download:
    """Files of a hub repository, about how large they are together (0: unknown), and their folder below `--models`."""

    repository: str
    files: tuple[str, ...]
    num_bytes: int = 0
    folder: str = "."


@dataclass(frozen=True)
class Outline:
    """What a family's models ask of a data set, as far as it is known before all of their files are there.

    `num_codes` and the bounds in frames are those of `ModelSet` and `Model`; `text_encoder` is None where no tokenizer
    is named.
    """

    schema: Schema
    audio: AudioInput
    num_codes: Callable[[int], int]
    text_encoder: TextEncoder | None = None
    min_frames: int = 0
    max_frames: int | None = None


@runtime_checkable
class Layered(Protocol):
    """A `Model` of which can be seen how far it is with a batch.

    `layers` take most of its time on a CPU; each is called once for every frame of a batch, as (B, T, D).
    """

    @property
    def layers(self) -> Sequence[torch.nn.Module]: ...


@runtime_checkable
class Referenced(Protocol):
    """A `ModelSet` of which somebody else's published code computes a part."""

    def reference(self) -> Callable[[np.ndarray], Mapping[str, np.ndarray]]:
        """A function from a clip at the model's rate, float32 (num_samples,), to the columns of codes that it computes.

        Raises ConfigError where that code is not installed.
        """


@runtime_checkable
class Outlined(Protocol):
    """A recipe that can say what its models ask of a data set without loading them."""

    def outline(self, options: Any) -> Outline:
        """What follows from the files that the options name, and is that of the published models where they name none.

        Raises ConfigError or CheckpointError where a file is not what it has to be.
        """


@runtime_checkable
class Published(Outlined, Protocol):
    """A recipe whose models are on the hub, and known well enough to check data before they are here."""

    def downloads(self) -> tuple[Download, ...]:
        """Everything that a build needs, to be fetched into one folder that `--models` takes."""
