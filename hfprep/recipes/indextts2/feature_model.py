"""From input features to codes, condition latents and emotion vector, through four networks.

Provides `FeatureModel`, which takes padded batches of tensors. Each network is an attribute (`semantic_encoder`,
`semantic_codec`, `conditioner`, `emotion_conditioner`) that a caller may time, replace or make fail. Running out of
memory is handled by the caller.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from hfprep.models.conditioner import Conditioner, EmotionConditioner
from hfprep.models.masking import FrameMask
from hfprep.models.precision import computing, require
from hfprep.models.semantic_codec import SemanticCodec
from hfprep.models.semantic_encoder import SemanticEncoder
from hfprep.recipes.finding import ModelFiles
from hfprep.recipes.indextts import semantic_inputs
from hfprep.recipes.indextts2.checkpoints import load_conditioners, load_semantic_codec
from hfprep.recipes.indextts2.config import ModelConfig
from hfprep.recipes.indextts2.schema import CODES, LATENTS
from hfprep.recipes.networks import load_semantic_encoder
from hfprep.recipes.semantic_model import SemanticModel

if TYPE_CHECKING:
    from hfprep.models.kernels.codec import FusedSemanticCodec
    from hfprep.models.kernels.conditioner import FusedConditioner

AUDIO_GROUPS = frozenset({CODES, LATENTS})


class FeatureModel(SemanticModel):
    """The semantic encoder, the codec and the two conditioning branches."""

    def __init__(
        self,
        *,
        semantic_encoder: SemanticEncoder,
        semantic_codec: SemanticCodec,
        conditioner: Conditioner,
        emotion_conditioner: EmotionConditioner,
        config: ModelConfig,
        precision: str = "fp32",
    ) -> None:
        conformers = (conditioner.conformer, emotion_conditioner.conformer)
        super().__init__(semantic_encoder, precision=precision, conformers=conformers, ends=semantic_codec.blocks)
        self.semantic_codec: SemanticCodec | FusedSemanticCodec = semantic_codec
        self.conditioner: Conditioner | FusedConditioner = conditioner
        self.emotion_conditioner: EmotionConditioner | FusedConditioner = emotion_conditioner
        emotion_conditioner.conformer.subsampling.scratch = conditioner.conformer.subsampling.scratch  # never at once
        self.config = config
        self.eval().requires_grad_(False)

    @classmethod
    def load(
        cls,
        files: ModelFiles,
        config: ModelConfig,
        *,
        device: str | torch.device = "cpu",
        precision: str = "fp32",
    ) -> FeatureModel:
        """Load all parts from `files`, to compute in `precision`; in fp32 on a CPU the weights stay memory-mapped.

        Raises CheckpointError if a file does not match `config` or the semantic model's config.json, and ConfigError if
        the device does not support that precision.
        """
        require(precision, torch.device(device))
        encoder = load_semantic_encoder(files.semantic_config, files.semantic_weights, files.w2v_stat)
        codec = load_semantic_codec(files.semantic_codec, config)
        conditioner, emotion_conditioner = load_conditioners(
            files.gpt_checkpoint, config, semantic_size=encoder.mean.shape[0]
        )
        model = cls(
            semantic_encoder=encoder,
            semantic_codec=codec,
            conditioner=conditioner,
            emotion_conditioner=emotion_conditioner,
            config=config,
            precision=precision,
        )
        return model.placed(torch.device(device), (encoder, conditioner, emotion_conditioner))

    @torch.no_grad()
    def fused(self) -> Self:
        from hfprep.models.kernels.codec import FusedSemanticCodec
        from hfprep.models.kernels.conditioner import FusedConditioner, FusedEmotionConditioner
        from hfprep.models.kernels.encoder import FusedSemanticEncoder
        from hfprep.models.kernels.operators import FORMS

        if isinstance(self.semantic_codec, SemanticCodec):
            self.semantic_codec = FusedSemanticCodec(self.semantic_codec, FORMS["exact"])
        form = FORMS.get(self.precision)
        if form is not None and isinstance(self.semantic_encoder, SemanticEncoder):
            self.semantic_encoder = FusedSemanticEncoder(self.semantic_encoder, form)
        if form is not None and isinstance(self.conditioner, Conditioner):
            self.conditioner = FusedConditioner(self.conditioner, form)
        if form is not None and isinstance(self.emotion_conditioner, EmotionConditioner):
            self.emotion_conditioner = FusedEmotionConditioner(self.emotion_conditioner, form)
        return self

    def forward(self, inputs: Tensor, lengths: Tensor, groups: frozenset[str] = AUDIO_GROUPS) -> dict[str, Tensor]:
        """Compute the features of a padded batch.

        `inputs`: float32 on the model's device, either input features (B, T, 160), padded with any finite numbers, or
        samples at 16 kHz (B, S), zero-padded. `lengths`: (B,) int64 on the CPU, the frames or samples of each clip,
        which must have from `min_frames` to `max_frames` frames.
        Returns the columns of `groups` on the model's device: `codes` (B, T) int32, with lengths[b] codes of clip b;
        `condition` (B, L, M) float32; `emo_vec` (B, M) float32.
        Raises ValueError for lengths out of range or a batch of another shape.
        """
        input_features, lengths = semantic_inputs(inputs, lengths)
        self.check_batch(input_features, lengths)
        compute = partial(self._compute, groups=groups)
        if not self.packs:
            device = input_features.device
            return compute(input_features, FrameMask.from_lengths(lengths, input_features.shape[1], device))
        frames = lengths.tolist()

        def compute_part(clips: list[int]) -> dict[str, Tensor]:
            mask = FrameMask.of_packed(lengths[clips], input_features.device)
            return compute(torch.cat([input_features[clip, : frames[clip]] for clip in clips])[None], mask)

        return self.by_parts(frames, compute_part)

    def _compute(self, input_features: Tensor, mask: FrameMask, *, groups: frozenset[str]) -> dict[str, Tensor]:
        """The features of a padded or packed batch, in the batch's order."""
        device, found = input_features.device, {}
        with torch.inference_mode(), computing(self.precision, device):
            semantic = self.semantic_encoder(input_features, mask)
            if CODES in groups:
                # A rounding error can change a code, and the codec is only 5 % of the work, so it always runs in fp32.
                with computing("fp32", device):
                    codes = self.semantic_codec(semantic, mask).to(torch.int32)
                if mask.packed:
                    codes = pad_sequence([clip[0] for clip in mask.clips(codes)], batch_first=True)
                found["codes"] = codes
            if LATENTS in groups:
                found["condition"] = self.conditioner(semantic, mask).float()
                found["emo_vec"] = self.emotion_conditioner(semantic, mask).float()
        return found

    def check_batch(self, input_features: Tensor, lengths: Tensor) -> None:
        """Raise ValueError if `forward` cannot take this batch."""
        if input_features.ndim != 3 or lengths.shape != input_features.shape[:1]:
            raise ValueError(
                f"input_features {tuple(input_features.shape)} and lengths {tuple(lengths.shape)} "
                "must be (B, T, 160) and (B,)"
            )
        shortest, longest = int(lengths.min()), int(lengths.max())
        if shortest < self.min_frames or longest > min(self.max_frames, input_features.shape[1]):
            raise ValueError(
                f"lengths are from {shortest} to {longest} frames; they must be between {self.min_frames} and "
                f"{self.max_frames}, and within the batch's {input_features.shape[1]}"
            )
