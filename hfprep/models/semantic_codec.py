"""MaskGCT's semantic codec (RepCodec): the encoder and the quantizer, which compute codes.

Provides `SemanticCodec`: normalised semantic features (B, T, D) to codes (B, T). With the FrameMask, convolutions over
time see zeros past a clip's end.
Source: Huang et al. 2023 (RepCodec), Wang et al. 2024 (MaskGCT), Liu et al. 2022 (ConvNeXt).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hfprep.models.configs import SemanticCodecConfig
from hfprep.models.masking import FrameMask, TimeMask
from hfprep.models.operators import DepthwiseConvolution, Linear, by_rows, linear, row_pieces

KERNEL_SIZE = 7
EPS = 1e-6
NO_CODE = -1


def scores_piece(device: torch.device) -> int:
    """How many scores (frames x codebook rows) are computed at once; on a CPU, what fits the cache."""
    return 1 << 21 if device.type == "cpu" else 1 << 24


class ConvNeXtBlock(nn.Module):
    """Depthwise convolution, LayerNorm, Linear, exact GELU, Linear, times gamma, plus the input."""

    def __init__(self, channels: int, intermediate: int) -> None:
        super().__init__()
        self.time_mask = TimeMask()
        self.depthwise = DepthwiseConvolution(channels, KERNEL_SIZE, left=KERNEL_SIZE // 2)
        self.norm = nn.LayerNorm(channels, eps=EPS)
        self.expand = Linear(channels, intermediate)
        self.contract = Linear(intermediate, channels)
        self.gamma = nn.Parameter(torch.empty(channels))

    def forward(self, x: Tensor, mask: FrameMask) -> Tensor:
        x = self.time_mask(x, mask)
        return torch.addcmul(x, by_rows(self._rows, mask.over_clips(self.depthwise, x)), self.gamma)

    def _rows(self, rows: Tensor) -> Tensor:
        return self.contract(F.gelu(self.expand(self.norm(rows))))


class InputConvolution(nn.Module):
    """Conv1d(D -> C, kernel 7, padding 3), on a CPU as a matmul over windows of seven frames."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels, KERNEL_SIZE))
        self.bias = nn.Parameter(torch.empty(out_channels))

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) to (B, T, C)."""
        margin = KERNEL_SIZE // 2
        if x.device.type != "cpu":
            return F.conv1d(x.transpose(1, 2), self.weight, self.bias, padding=margin).transpose(1, 2)
        windows = F.pad(x, (0, 0, margin, margin)).unfold(1, KERNEL_SIZE, 1)  # (B, T, D, 7), a view
        weight = self.weight.flatten(1)  # (C, D * 7)
        size, _ = row_pieces(x.shape[1])
        clips = (
            torch.cat([linear(piece.flatten(1), weight, self.bias) for piece in clip.split(size)]) for clip in windows
        )
        return torch.stack(list(clips))


class Quantizer(nn.Module):
    """Codes: the index of the nearest codebook row, with latents and rows L2-normalised.

    `weight` (d, D) is the projection with its weight norm folded, `codebook` (N, d) has normalised rows. On the unit
    sphere the nearest row has the largest inner product, so this is a matmul and an argmax.
    """

    def __init__(self, config: SemanticCodecConfig) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(config.codebook_dim, config.hidden_size))
        self.bias = nn.Parameter(torch.empty(config.codebook_dim))
        self.codebook = nn.Parameter(torch.empty(config.codebook_size, config.codebook_dim))

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) float32 to codes (B, T) int64; `NO_CODE` for frames that are not finite (argmax would return 0)."""
        latents = F.normalize(F.linear(x, self.weight, self.bias), dim=-1).flatten(0, 1)
        step = max(1, scores_piece(x.device) // self.codebook.shape[0])
        codes = [F.linear(piece, self.codebook).argmax(dim=-1) for piece in latents.split(step)]
        finite = latents.isfinite().all(dim=-1)
        return torch.cat(codes).where(finite, NO_CODE).view(x.shape[:2])


class SemanticCodec(nn.Module):
    """The encoder's convolutional stack and the quantizer."""

    def __init__(self, config: SemanticCodecConfig) -> None:
        super().__init__()
        channels = config.vocos_dim
        self.time_mask = TimeMask()
        self.embed = InputConvolution(config.hidden_size, channels)
        self.norm = nn.LayerNorm(channels, eps=EPS)
        self.blocks = nn.ModuleList(
            ConvNeXtBlock(channels, config.vocos_intermediate_dim) for _ in range(config.vocos_num_layers)
        )
        self.norm_final = nn.LayerNorm(channels, eps=EPS)
        self.out = Linear(channels, config.hidden_size)
        self.quantizer = Quantizer(config)

    def forward(self, semantic: Tensor, mask: FrameMask) -> Tensor:
        """Normalised semantic features (B, T, D) float32 to codes (B, T) int64; codes of padding are undefined."""
        # Mask a copy: the caller also passes the features to the conditioners.
        x = semantic if mask.padding is None else self.time_mask(semantic.clone(), mask)
        x = self.norm(mask.over_clips(self.embed, x))
        for block in self.blocks:
            x = block(x, mask)
        return self.quantizer(self.out(self.norm_final(x)))
