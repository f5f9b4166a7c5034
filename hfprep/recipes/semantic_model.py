"""The frame of the IndexTTS families' networks: where they compute, in which precision, and which clips at once.

Gives `SemanticModel`. Takes no checkpoint and knows no columns: a family adds its networks behind the semantic encoder.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor, nn

from hfprep.models.masking import packs
from hfprep.models.precision import lower_weights
from hfprep.models.semantic_encoder import SemanticEncoder
from hfprep.models.streams import Streams, join_parts

if TYPE_CHECKING:
    from hfprep.models.kernels.encoder import FusedSemanticEncoder


class SemanticModel(nn.Module):
    """Networks behind a semantic encoder, which compute in `precision`; a CPU's threads take turns after `ends`."""

    pads_from = 0

    def __init__(self, semantic_encoder: SemanticEncoder, *, precision: str, ends: Iterable[nn.Module]) -> None:
        super().__init__()
        self.semantic_encoder: SemanticEncoder | FusedSemanticEncoder = semantic_encoder
        self.precision = precision
        self.streams = Streams()
        for module in (*semantic_encoder.layers, *ends):
            self.streams.ends_with(module)

    @property
    def packs(self) -> bool:
        """Whether the clips of a batch are computed one after another, without its padding."""
        return packs(self.device) and isinstance(self.semantic_encoder, SemanticEncoder)

    @property
    def layers(self) -> Sequence[nn.Module]:
        """See `Layered`."""
        return list(self.semantic_encoder.layers)

    @property
    def device(self) -> torch.device:
        return self.semantic_encoder.mean.device

    def fused(self) -> Self:
        """This model with its parts replaced by those that compute in its precision on a GPU."""
        raise NotImplementedError

    def placed(self, device: torch.device, lowered: Iterable[nn.Module]) -> Self:
        """This model on a device; on a CPU in another precision than fp32, with the weights of `lowered` in it."""
        if device.type == "cuda" and self.precision != "fp32":
            return self.fused().to(device)  # never all of it in float32 on a card for which that may be too much
        if self.precision != "fp32":
            lower_weights(lowered)
        return self.to(device)

    def by_parts(self, frames: list[int], compute: Callable[[list[int]], dict[str, Tensor]]) -> dict[str, Tensor]:
        """The columns of a batch whose clips have so many frames, from those of some of its clips at a time."""
        parts = self.streams.parts(frames)
        return join_parts(self.streams.run(compute, parts), parts)
