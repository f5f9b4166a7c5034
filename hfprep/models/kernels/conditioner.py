"""The conditioning branches on a GPU: `hfprep.models.conformer` and `perceiver`, with the steps between matmuls fused.

Provides `FusedConditioner` and `FusedEmotionConditioner`, made from the plain modules. Terms that depend only on
positions (added to the keys, and the bias per key) are computed once for the whole table. The latents, 32 or one per
clip, stay float32.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from hfprep.models.conditioner import Conditioner, EmotionConditioner
from hfprep.models.kernels import kernels
from hfprep.models.kernels.operators import (
    FLOAT,
    LOG2E,
    Branch,
    Depthwise,
    Form,
    Heads,
    Norm,
    Product,
    Rows,
    activated,
    added,
    attend,
    finished,
    in_form,
    new_rows,
    normed,
    or_any,
)
from hfprep.models.masking import FrameMask, KeyMask, TimeMask

# Numbers of the subsampling convolution's output per piece, and channels per matmul: longer sums lose bits in tensor
# cores.
MAP_NUMBERS = 1 << 28
CHANNELS_PER_PRODUCT = 32  # a power of two
FREQUENCIES_PER_PROGRAM = 64


class _Subsampling(nn.Module):
    """See `conformer.Subsampling`; computes the convolution's output in pieces."""

    kernels: Tensor
    bias: Tensor

    def __init__(self, plain: Any, form: Form) -> None:
        super().__init__()
        self.form, self.frequencies = form, plain.frequencies
        channels = len(plain.out_bias)
        self.root = math.sqrt(channels)
        self.group = math.gcd(channels, CHANNELS_PER_PRODUCT)  # a power of two, which the kernel requires
        kernels = torch.cat([plain.conv_weight.flatten(1), plain.conv_bias[:, None]], dim=1).contiguous()
        self.register_buffer("kernels", kernels)  # (C, 10)
        self.register_buffer("bias", plain.out_bias.detach())
        # Frequencies first, then the channels of a matmul, so that a program's writes are contiguous.
        weight = plain.out_weight.view(channels, -1, self.group, self.frequencies).permute(1, 0, 3, 2)
        self.products = nn.ModuleList(Product(part.flatten(1), None, form) for part in weight)
        self.reach = float(kernels[:, :9].abs().sum(dim=1).max()), float(kernels[:, 9].abs().max())

    def forward(self, x: Tensor, frames: int) -> Tensor:
        """x (B, T, D) to (B * T', C), T' = `frames`."""
        x = x.contiguous()
        total = len(x) * frames
        bounds = self._bounds(x, frames) if self.form.parts > 1 else None
        out = self.bias.repeat(total, 1)
        size = max(1, MAP_NUMBERS // (self.group * self.frequencies))
        for first in range(0, total, size):
            for number, product in enumerate(self.products):
                rows = self._maps(x, bounds, frames, first, min(size, total - first), number * self.group)
                branch, sums = product(rows), out[first : first + size]
                if branch.scales is None:
                    sums += branch.values
                else:
                    sums.addcmul_(branch.values, (branch.scales * branch.factor)[:, None])
        return out.mul_(self.root)

    def _bounds(self, x: Tensor, frames: int) -> Tensor:
        """Upper bounds of the convolution's output per output frame (B * T',)."""
        weights, bias = self.reach
        largest = x.abs().amax(dim=-1)
        three = torch.maximum(largest[:, : 2 * frames : 2], largest[:, 1 : 2 * frames + 1 : 2])
        three = torch.maximum(three, largest[:, 2 : 2 * frames + 2 : 2])
        return (three * weights + bias).flatten()

    def _maps(self, x: Tensor, bounds: Tensor | None, frames: int, first: int, count: int, channel: int) -> Rows:
        rows = new_rows(count, self.group * self.frequencies, self.form, x)
        kernels.subsample[(count, -(-self.frequencies // FREQUENCIES_PER_PROGRAM))](
            x, self.kernels, x if bounds is None else bounds[first:], rows.values, or_any(rows.scales, rows.values),
            frames, first, channel, x.stride(0), WIDTH=x.shape[2], F=self.frequencies,
            CHANNELS=self.group, BLOCK=FREQUENCIES_PER_PROGRAM, FORM=self.form.parts, num_warps=4,
        )  # fmt: skip
        return rows


class _Attention(nn.Module):
    """See `conformer.PositionalAttention`."""

    placed: Tensor
    key_bias: Tensor

    def __init__(self, attention: Any, positions: Tensor, form: Form) -> None:
        super().__init__()
        self.form, self.num_heads = form, attention.num_heads
        placed = attention.position(positions)[0]  # (positions, C)
        difference = (attention.bias_v - attention.bias_u)[:, None, :]  # (H, 1, d)
        heads = placed.unflatten(1, (self.num_heads, -1)).permute(1, 2, 0)  # (H, d, positions)
        self.width = heads.shape[1]
        self.register_buffer("key_bias", (difference @ heads)[:, 0].mul(LOG2E / math.sqrt(self.width)).contiguous())
        self.register_buffer("placed", placed.to(form.result).contiguous())
        layers = (attention.query, attention.key, attention.value)
        weight, bias = (torch.cat([getattr(layer, name) for layer in layers]) for name in ("weight", "bias"))
        self.project = Product(weight, bias, form)
        assert self.project.bias is not None
        self.project.bias[: len(attention.bias_u.flatten())] += attention.bias_u.flatten()
        self.out = Product.of(attention.out, form)
        self.key_mask = KeyMask()

    def forward(self, rows: Rows, mask: FrameMask) -> Branch:
        values = finished(self.project(rows)).unflatten(0, (-1, mask.num_frames))
        query, key, value = Heads.thirds(values, self.num_heads, self.width)
        attended = attend(
            query, key, value, self.key_mask.lengths(mask), num_heads=self.num_heads, placed=self.placed,
            key_bias=self.key_bias,
        )  # fmt: skip
        return self.out(in_form(attended, self.form))


class _Block(nn.Module):
    """See `conformer.ConformerBlock`; x (rows, C) float32 to the same."""

    def __init__(self, block: Any, positions: Tensor, form: Form) -> None:
        super().__init__()
        self.form = form
        self.norm_attention, self.norm_convolution = Norm(block.norm_attention), Norm(block.norm_convolution)
        self.norm_feed_forward, self.norm_final = Norm(block.norm_feed_forward), Norm(block.norm_final)
        self.attention = _Attention(block.attention, positions, form)
        convolution, feed_forward = block.convolution, block.feed_forward
        self.gate = Product.of(convolution.pointwise_in, form)
        self.time_mask = TimeMask()
        self.depthwise = Depthwise(convolution.depthwise, convolution.norm, silu=True)
        self.project = Product.of(convolution.pointwise_out, form)
        self.expand, self.contract = Product.of(feed_forward.expand, form), Product.of(feed_forward.contract, form)

    def forward(self, x: Tensor, mask: FrameMask) -> Tensor:
        form = self.form
        branch = self.attention(normed(x, self.norm_attention, form), mask)
        x, rows = added(x, branch, self.norm_convolution, form)
        gated = activated(self.gate(rows), "glu", Form(form.result)).values.unflatten(0, (-1, mask.num_frames))
        branch = self.project(self.depthwise(gated, self.time_mask.lengths(mask), form))
        x, rows = added(x, branch, self.norm_feed_forward, form)
        branch = self.contract(activated(self.expand(rows), "silu", form))
        return added(x, branch, self.norm_final, FLOAT, keep=False)[1].values


class _Conformer(nn.Module):
    """See `conformer.Conformer`; returns (B * T', C) float32 before the last norm, and the mask of the T' frames."""

    def __init__(self, conformer: Any, form: Form) -> None:
        super().__init__()
        self.subsampling = _Subsampling(conformer.subsampling, form)
        positions = conformer.position_table
        self.blocks = nn.ModuleList(_Block(block, positions, form) for block in conformer.blocks)
        self.norm = Norm(conformer.norm)

    def forward(self, x: Tensor, mask: FrameMask) -> tuple[Tensor, FrameMask]:
        mask = mask.subsampled(x.device)
        rows = self.subsampling(x, mask.num_frames)
        for block in self.blocks:
            rows = block(rows, mask)
        return rows, mask


class _CrossAttention(nn.Module):
    """See `perceiver.CrossAttention`; only the frames' keys and values are computed in a form."""

    def __init__(self, attention: Any, form: Form) -> None:
        super().__init__()
        self.num_heads = attention.num_heads
        self.query, self.key_value, self.out = attention.query, attention.key_value, attention.out
        self.frames = Product.of(attention.key_value, form)
        self.key_mask = KeyMask()

    def forward(self, latents: Tensor, context: Rows, mask: FrameMask) -> Tensor:
        """latents (B, L, M), context (B * T, M) to (B, L, M)."""
        frames = finished(self.frames(context)).unflatten(0, (len(latents), -1))
        of_latents = self.key_value(latents).to(frames.dtype)
        both = torch.cat([of_latents, frames], dim=1)
        query = self.query(latents).to(frames.dtype)
        size, count = query.shape[-1], latents.shape[1]
        width = size // self.num_heads
        attended = attend(
            Heads(query, 0, width), Heads(both, 0, width), Heads(both, size, width), self.key_mask.lengths(mask),
            num_heads=self.num_heads, extra=count,
        )  # fmt: skip
        return self.out(attended.float().unflatten(0, (-1, count)))


class _Perceiver(nn.Module):
    """See `perceiver.Perceiver`; takes the Conformer's rows before its last norm, (B * T', C) float32."""

    def __init__(self, perceiver: Any, norm: Norm, form: Form) -> None:
        super().__init__()
        self.form, self.frames_norm = form, norm
        self.latents, self.norm = perceiver.latents, perceiver.norm
        project = perceiver.project
        self.project = None if isinstance(project, nn.Identity) else Product.of(project, form)
        self.attentions = nn.ModuleList(_CrossAttention(layer.attention, form) for layer in perceiver.layers)
        self.feed_forwards = nn.ModuleList(layer.feed_forward for layer in perceiver.layers)

    def forward(self, rows: Tensor, mask: FrameMask) -> Tensor:
        context = normed(rows, self.frames_norm, self.form)
        if self.project is not None:
            context = activated(self.project(context), "none", self.form)
        latents = self.latents.expand(len(mask.lengths), -1, -1)
        for attention, feed_forward in zip(self.attentions, self.feed_forwards, strict=True):
            latents = latents + attention(latents, context, mask)
            latents = latents + feed_forward(latents)
        return self.norm(latents)


class FusedConditioner(nn.Module):
    """Semantic features (B, T, D) float32 to the condition latents (B, L, M) float32."""

    def __init__(self, plain: Conditioner, form: Form) -> None:
        super().__init__()
        self.conformer = _Conformer(plain.conformer, form)
        self.perceiver = _Perceiver(plain.perceiver, self.conformer.norm, form)

    def forward(self, semantic: Tensor, mask: FrameMask) -> Tensor:
        rows, mask = self.conformer(semantic, mask)
        return self.perceiver(rows, mask)


class FusedEmotionConditioner(FusedConditioner):
    """Semantic features (B, T, D) float32 to the emotion vector (B, M) float32."""

    def __init__(self, plain: EmotionConditioner, form: Form) -> None:
        super().__init__(plain, form)
        self.project, self.out = plain.project, plain.out

    def forward(self, semantic: Tensor, mask: FrameMask) -> Tensor:
        return self.out(self.project(super().forward(semantic, mask)[:, 0]))
