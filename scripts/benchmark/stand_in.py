"""Models that answer at once: the files, text and audio of a recipe, and zeros in place of what its networks compute.

Gives `stand_in`, which puts them into a build's `Inputs`, and `AsForGpu`, an engine that feeds them as a GPU is fed.
Everything around the models is that of a build.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hfprep.pipeline.engines.choice import Job, LocalEngine, Workers
from hfprep.pipeline.engines.spec import ExtractorSpec
from hfprep.pipeline.inputs import Inputs
from hfprep.recipes.base import AudioInput, ModelSet, TextEncoder
from hfprep.schema import Schema

if TYPE_CHECKING:
    from hfprep.recipes.base import Model

LONGEST = 1 << 20  # frames of a clip, at most
SHORTEST = 3


@dataclass
class StandInModel:
    """Zeros in the columns of a schema, as many as a batch needs."""

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
    """A model set whose models answer at once; `schema` says how much they give."""

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
        """The files are not read."""

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
    """Processes load the samples, a batch is given to the model ahead of the last one's results, and the model makes
    its input features itself. Only the page-locked memory is missing."""  # fmt: skip

    def run(self, job: Job, workers: Workers) -> None:
        fields = {field.name: getattr(job, field.name) for field in dataclasses.fields(job)}
        super().run(_JobAsForGpu(**fields), workers)


def stand_in(inputs: Inputs, published: Schema) -> Inputs:
    """The inputs of a build with models that answer at once, in the sizes of the published ones.

    Without a tokenizer a codec gives codes alone: then it is in the sizes of its own files.
    """
    own = inputs.models.schema
    schema = published if published.group_names == own.group_names else own
    return dataclasses.replace(inputs, models=StandInModels(inputs.models, schema))
