"""The two conditioning branches: condition latents (B, L, M) and the emotion vector (B, M).

Provides `Conditioner` and `EmotionConditioner`, each a Conformer and a Perceiver. Takes semantic features and their
FrameMask.
"""

from __future__ import annotations

from torch import Tensor, nn

from hfprep.models.configs import NUM_LATENTS, POSITION_ROWS, ConditionConfig
from hfprep.models.conformer import Conformer
from hfprep.models.masking import FrameMask
from hfprep.models.perceiver import Perceiver


class Conditioner(nn.Module):
    """Semantic features (B, T, D) to the condition latents (B, L, M)."""

    def __init__(
        self,
        config: ConditionConfig,
        *,
        input_size: int,
        model_dim: int,
        num_latents: int = NUM_LATENTS,
        position_rows: int = POSITION_ROWS,
    ) -> None:
        super().__init__()
        self.conformer = Conformer(config, input_size=input_size, position_rows=position_rows)
        self.perceiver = Perceiver(
            context_width=config.output_size,
            width=model_dim,
            num_latents=num_latents,
            num_heads=config.attention_heads,
            mult=config.perceiver_mult,
        )

    def forward(self, semantic: Tensor, mask: FrameMask) -> Tensor:
        encoded, mask = self.conformer(semantic, mask)
        return self.perceiver(encoded, mask)


class EmotionConditioner(Conditioner):
    """Semantic features (B, T, D) to the emotion vector (B, M): one latent of width E and two affine maps."""

    def __init__(
        self,
        config: ConditionConfig,
        *,
        input_size: int,
        model_dim: int,
        emotion_width: int,
        position_rows: int = POSITION_ROWS,
    ) -> None:
        super().__init__(
            config, input_size=input_size, model_dim=emotion_width, num_latents=1, position_rows=position_rows
        )
        self.project = nn.Linear(emotion_width, model_dim)
        self.out = nn.Linear(model_dim, model_dim)

    def forward(self, semantic: Tensor, mask: FrameMask) -> Tensor:
        return self.out(self.project(super().forward(semantic, mask)[:, 0]))
