"""Base of the IndexTTS models: their device, their precision, and which clips are computed at once.

Provides `SemanticModel`, to which a family adds the networks after the semantic encoder, and the columns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor, nn

from hfprep.models.conformer import Conformer
from hfprep.models.masking import packs
from hfprep.models.precision import lower_weights
from hfprep.models.semantic_encoder import SemanticEncoder
from hfprep.models.streams import Streams, join_parts
from hfprep.recipes.indextts import MIN_FRAMES

if TYPE_CHECKING:
    from hfprep.models.kernels.encoder import FusedSemanticEncoder


class SemanticModel(nn.Module):
    """A semantic encoder and the networks after it, of which `conformers` limit the length of a clip.

    Cancelled streams stop at the layers, at the conformers and at modules in `ends`.
    """

    pads_from = 0
    min_frames = MIN_FRAMES

    def __init__(
        self,
        semantic_encoder: SemanticEncoder,
        *,
        precision: str,
        conformers: Sequence[Conformer],
        ends: Iterable[nn.Module],
    ) -> None:
        super().__init__()
        self.semantic_encoder: SemanticEncoder | FusedSemanticEncoder = semantic_encoder
        self.precision = precision
        self.streams = Streams()
        # T' = (T - 1) // 2 must stay below the number of rows of the position table.
        self.max_frames = 2 * min(conformer.position_table.shape[1] for conformer in conformers)
        for module in (*semantic_encoder.layers, *conformers, *ends):
            self.streams.cancellable_at(module)

    @property
    def packs(self) -> bool:
        """Whether the clips of a batch are computed without padding, one after another."""
        return packs(self.device) and isinstance(self.semantic_encoder, SemanticEncoder)

    @property
    def layers(self) -> Sequence[nn.Module]:
        """See `Layered`."""
        return list(self.semantic_encoder.layers)

    @property
    def device(self) -> torch.device:
        return self.semantic_encoder.mean.device

    def fused(self) -> Self:
        """This model with its networks replaced by the GPU kernels for its precision."""
        raise NotImplementedError

    def placed(self, device: torch.device, lowered: Iterable[nn.Module]) -> Self:
        """Move the model to a device. On a CPU, weights of `lowered` are converted to the model's precision."""
        if device.type == "cuda" and self.precision != "fp32":
            return self.fused().to(device)  # fused first: in float32 it may not fit on the GPU
        if self.precision != "fp32":
            lower_weights(lowered)
        return self.to(device)

    def by_parts(self, frames: list[int], compute: Callable[[list[int]], dict[str, Tensor]]) -> dict[str, Tensor]:
        """The columns of a batch, computed for some of its clips at a time; `frames` are the clips' lengths."""
        parts = self.streams.parts(frames)
        return join_parts(self.streams.run(compute, parts), parts)
