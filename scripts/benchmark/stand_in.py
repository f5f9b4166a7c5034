"""Stand-in models: a recipe's files, text and audio, but zeros instead of computed features.

Provides `stand_in`, which puts them into a build's `Inputs`, and `AsForGpu`, an engine that feeds them as it would feed
a GPU. Everything around the models is as in a build.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hfprep.pipeline.engines.choice import Job, LocalEngine, Shared
from hfprep.pipeline.engines.spec import ExtractorSpec
from hfprep.pipeline.inputs import Inputs
from hfprep.recipes.base import AudioInput, ModelSet, TextEncoder
from hfprep.schema import Schema

if TYPE_CHECKING:
    from hfprep.recipes.base import Model

LONGEST = 1 << 20  # maximum frames of a clip
SHORTEST = 3


@dataclass
class StandInModel:
    """Returns zeros in the columns of a schema, in the shapes of a batch."""

    models: StandInModels
    min_frames: int = SHORTEST
    max_frames: int = LONGEST
    pads_from: int = 0
    device: torch.device = torch.device("cpu")
    packs: bool = True

    def __call__(self, inputs: Tensor, lengths: Tensor, groups: frozenset[str]) -> dict[str, Tensor]:
        counts = [int(length) for length in lengths]
        frames = counts if inputs.ndim > 2 else [self.models.audio.num_frames(count) for count in counts]
        schema, codes = self.models.schema, max(map(self.models.num_codes, frames))
        lengths_of = {**dict.fromkeys(schema.lengths, codes), **schema.fixed}
        return {
            column.name: torch.zeros(len(counts), *schema.shape(column, lengths_of), dtype=getattr(torch, column.dtype))
            for column in schema.columns_of(groups)
        }


@dataclass(frozen=True)
class StandInModels:
    """A model set with stand-in models; `schema` sets the shapes."""

    given: ModelSet
    schema: Schema

    @property
    def files(self) -> Mapping[str, Path]:
        return self.given.files

    @property
    def audio(self) -> AudioInput:
        return self.given.audio

    @property
    def precisions(self) -> tuple[str, ...]:
        return self.given.precisions

    def settings(self, sha256: Mapping[str, str], *, precision: str, audio_sr: int) -> dict[str, dict[str, str]]:
        return self.given.settings(sha256, precision=precision, audio_sr=audio_sr)

    def check(self) -> None:
        """Nothing to check: the files are not read."""

    def packs(self, device: torch.device) -> bool:
        return self.given.packs(device)

    def text_encoder(self) -> TextEncoder | None:
        return self.given.text_encoder()

    def num_codes(self, num_frames: int) -> int:
        return self.given.num_codes(num_frames)

    def load(self, device: torch.device, precision: str) -> Model:
        del device, precision
        return StandInModel(self)


class _JobAsForGpu(Job):
    def spec(self, num_processes: int) -> ExtractorSpec:
        return dataclasses.replace(super().spec(num_processes), as_for_gpu=True)


class AsForGpu(LocalEngine):
    """Samples are loaded by processes, the model gets a batch before the results of the previous one are read, and
    computes its input features itself. Only page-locked memory is not used."""  # fmt: skip

    def run(self, job: Job, shared: Shared) -> None:
        super().run(_JobAsForGpu(**vars(job)), shared)


def stand_in(inputs: Inputs, published: Schema) -> Inputs:
    """The inputs of a build with stand-in models, in the sizes of the published models.

    A codec without a tokenizer has no text ids; it then keeps the sizes of its files.
    """
    own = inputs.models.schema
    schema = published if published.group_names == own.group_names else own
    return dataclasses.replace(inputs, models=StandInModels(inputs.models, schema))
