"""A recipe that nobody has: what it takes to add one, and a stand-in for networks that tests can reason about.

A sample has letters (tokens), layers (codes of four codebooks) and a colour (a 3 x 5 vector). Each number follows from
the clip's own samples by simple arithmetic, so batches and neighbours cannot matter unless hfprep makes them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hfprep.errors import ConfigError, Reason, RejectedSample
from hfprep.recipes.base import Recipe
from hfprep.schema import Schema
from tests.sample_schemas import MADE_UP

RATE, HOP = 16_000, 160  # Hz, samples a frame
FRAMES_A_STEP = 8
CODEBOOKS = MADE_UP.fixed["codebooks"]


class Letters:
    """Text to the numbers of its ASCII letters."""

    def __init__(self, shift: int) -> None:
        self.shift = shift

    def encode(self, text: str, language: str | None = None) -> np.ndarray:
        del language
        ids = [(ord(letter) + self.shift) % 128 for letter in text if letter.isascii() and letter.isalpha()]
        if not ids:
            raise RejectedSample(Reason.EMPTY_TEXT, "there are no letters")
        return np.array(ids, np.int32)

    def doubt(self, text: str, language: str | None) -> None:
        del text, language

    def fingerprint(self) -> str:
        return f"letters shifted by {self.shift}"


@dataclass(frozen=True)
class Frames:
    """Loudness of each frame of 10 ms."""

    sampling_rate: int = RATE

    def num_frames(self, num_samples: int) -> int:
        return num_samples // HOP

    def prepare(self, samples: np.ndarray, *, on_gpu: bool) -> np.ndarray:
        del on_gpu
        frames = samples[: len(samples) // HOP * HOP].reshape(-1, HOP)
        return np.abs(frames).mean(axis=1, keepdims=True).astype(np.float32)


class Layers:
    """The stand-in for networks."""

    min_frames, max_frames, packs, pads_from = 1, 100_000, False, 0

    def __init__(self, gain: int) -> None:
        self.gain = gain
        self.device = torch.device("cpu")

    def __call__(self, inputs: Tensor, lengths: Tensor, groups: frozenset[str]) -> dict[str, Tensor]:
        assert groups == {"sound"}
        loudness = (inputs[..., 0] * 1000).round() * self.gain
        steps = -(-inputs.shape[1] // FRAMES_A_STEP)
        padded = torch.nn.functional.pad(loudness, (0, steps * FRAMES_A_STEP - inputs.shape[1]))
        sums = padded.view(len(inputs), steps, FRAMES_A_STEP).sum(2)
        layers = torch.stack([(sums + book) % 64 for book in range(CODEBOOKS)], 1).to(torch.int16)
        own = [row[:length].mean() for row, length in zip(loudness, lengths, strict=True)]
        colour = torch.stack([1 + mean * torch.arange(1, 16) for mean in own]).view(-1, 3, 5)
        return {"layers": layers, "colour": colour.float()}


@dataclass(frozen=True)
class MadeUpModels:
    """One file, which holds two numbers."""

    path: Path

    @property
    def schema(self) -> Schema:
        return MADE_UP

    @cached_property
    def files(self) -> Mapping[str, Path]:
        return {"alphabet": self.path / "shift.txt", "network": self.path / "gain.txt"}

    def settings(self, sha256: Mapping[str, str], *, precision: str, audio_sr: int) -> dict[str, dict[str, str]]:
        sound = {"network": sha256["network"], "precision": precision, "audio_sr": str(audio_sr)}
        return {"words": {"alphabet": sha256["alphabet"]}, "sound": sound}

    def check(self) -> None:
        if not self.files["network"].read_text().strip().isdigit():
            raise ConfigError(f"{self.files['network']} holds no number")

    @property
    def audio(self) -> Frames:
        return Frames()

    @property
    def precisions(self) -> tuple[str, ...]:
        return ("fp32",)

    def packs(self, device: torch.device) -> bool:
        del device
        return False

    def text_encoder(self) -> Letters:
        return Letters(int(self.files["alphabet"].read_text()))

    def num_codes(self, num_frames: int) -> int:
        return -(-num_frames // FRAMES_A_STEP)

    def load(self, device: torch.device, precision: str) -> Layers:
        assert (device.type, precision) == ("cpu", "fp32")
        return Layers(int(self.files["network"].read_text()))


class MadeUp(Recipe):
    """The recipe; `--models` names the folder with its two files."""

    name = MADE_UP.recipe
    published = MADE_UP

    def recognises(self, options: Any) -> bool:
        return options.models is not None and (options.models / "gain.txt").is_file()

    def find(self, options: Any, *, fetch: bool = True) -> MadeUpModels:
        del fetch
        return MadeUpModels(options.models)


RECIPE = MadeUp()
