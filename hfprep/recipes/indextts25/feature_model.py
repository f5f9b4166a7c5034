"""From waveforms to codes, speaker vector and emotion vector, through IndexTTS-2.5's networks.

Provides `FeatureModel`, which takes padded batches of samples at 16 kHz and computes each network's input from them:
the semantic encoder's input features and CAM++'s log mel energies differ in scale and mean. Each network is an
attribute (`semantic_encoder`, `codec`, `speaker`, `emotion`) that a caller may time, replace or make fail.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from hfprep.models.batch_input_features import batch_fbank, batch_input_features, num_fbank_frames
from hfprep.models.campplus import Campplus
from hfprep.models.conditioner import EmotionConditioner
from hfprep.models.downsampled_codec import DownsampledCodec
from hfprep.models.input_features import SAMPLING_RATE, extract_input_features, num_input_frames
from hfprep.models.masking import FrameMask
from hfprep.models.precision import computing, require
from hfprep.models.semantic_codec import SemanticCodec
from hfprep.models.semantic_encoder import SemanticEncoder
from hfprep.models.streams import join_parts
from hfprep.recipes.indextts25.campplus import load_campplus
from hfprep.recipes.indextts25.checkpoints import load_codec, load_emotion
from hfprep.recipes.indextts25.config import Config
from hfprep.recipes.indextts25.schema import CODES, EMOTION, SPEAKER
from hfprep.recipes.networks import load_semantic_encoder
from hfprep.recipes.semantic_model import SemanticModel

if TYPE_CHECKING:
    from hfprep.models.kernels.conditioner import FusedEmotionConditioner
    from hfprep.recipes.indextts25.recipe import ModelFiles

AUDIO_GROUPS = frozenset({CODES, SPEAKER, EMOTION})

Columns = dict[str, Tensor]


class FeatureModel(SemanticModel):
    """The semantic encoder, the codec, CAM++ and the emotion branch.

    With `reference_seconds`, speaker and emotion vectors are computed from only that much of a clip, as at inference.
    """

    def __init__(
        self,
        *,
        semantic_encoder: SemanticEncoder,
        codec: DownsampledCodec,
        speaker: Campplus,
        emotion: EmotionConditioner,
        precision: str = "fp32",
        reference_seconds: float = 0.0,
    ) -> None:
        assert isinstance(codec.codec, SemanticCodec)
        ends = (*codec.codec.blocks, *speaker.blocks)
        super().__init__(semantic_encoder, precision=precision, conformers=(emotion.conformer,), ends=ends)
        self.codec = codec
        self.speaker = speaker
        self.emotion: EmotionConditioner | FusedEmotionConditioner = emotion
        self.reference_samples = round(reference_seconds * SAMPLING_RATE)
        self.eval().requires_grad_(False)

    @classmethod
    def load(
        cls,
        files: ModelFiles,
        config: Config,
        *,
        device: str | torch.device = "cpu",
        precision: str = "fp32",
        reference_seconds: float = 0.0,
    ) -> FeatureModel:
        """Load all parts from `files`, to compute in `precision`; in fp32 on a CPU the weights stay memory-mapped.

        Raises CheckpointError if a file does not match `config` or the semantic model's config.json, and ConfigError if
        the device does not support that precision.
        """
        require(precision, torch.device(device))
        encoder = load_semantic_encoder(files.semantic_config, files.semantic_weights, files.w2v_stat)
        emotion = load_emotion(files.gpt_checkpoint, config, semantic_size=encoder.mean.shape[0])
        model = cls(
            semantic_encoder=encoder,
            codec=load_codec(files.semantic_codec, config),
            speaker=load_campplus(files.campplus),
            emotion=emotion,
            precision=precision,
            reference_seconds=reference_seconds,
        )
        return model.placed(torch.device(device), (encoder, emotion))

    @torch.no_grad()
    def fused(self) -> Self:
        # CAM++ stays in float32: it is 2 % of the arithmetic.
        from hfprep.models.kernels.codec import FusedSemanticCodec
        from hfprep.models.kernels.conditioner import FusedEmotionConditioner
        from hfprep.models.kernels.encoder import FusedSemanticEncoder
        from hfprep.models.kernels.operators import FORMS

        if isinstance(self.codec.codec, SemanticCodec):
            self.codec.codec = FusedSemanticCodec(self.codec.codec, FORMS["exact"])
        form = FORMS.get(self.precision)
        if form is not None and isinstance(self.semantic_encoder, SemanticEncoder):
            self.semantic_encoder = FusedSemanticEncoder(self.semantic_encoder, form)
        if form is not None and isinstance(self.emotion, EmotionConditioner):
            self.emotion = FusedEmotionConditioner(self.emotion, form)
        return self

    def forward(self, waveforms: Tensor, num_samples: Tensor, groups: Iterable[str] = AUDIO_GROUPS) -> Columns:
        """Compute the columns of `groups` for a batch of B clips.

        waveforms: float32 (B, S) at 16 kHz, full scale 1.0, on the model's device, zero-padded; num_samples: int64 (B,)
        on the CPU. Clips must have from `min_frames` to `max_frames` frames of 20 ms (`num_input_frames`) and pass
        `check_waveform`. Returns, on the model's device: `codes` int32 (B, ceil(T / 2)), with ceil(T_b / 2) codes of
        clip b; `spk_emb` float32 (B, E); `emo_vec` float32 (B, M). Raises ValueError for lengths out of range or a
        batch of another shape.
        """
        wanted = frozenset(groups) & AUDIO_GROUPS
        frames = self.check_batch(waveforms, num_samples)
        if not self.packs:
            return self._columns(waveforms, num_samples, wanted)

        def compute(clips: list[int]) -> Columns:
            return self._columns(waveforms[clips], num_samples[clips], wanted)

        return self.by_parts(frames, compute)

    def _columns(self, waveforms: Tensor, num_samples: Tensor, groups: frozenset[str]) -> Columns:
        """The columns of a batch. Clips longer than `reference_samples` are cut for speaker and emotion vectors."""
        found: Columns = {}
        whole = num_samples
        if self.reference_samples:
            num_samples = whole.clamp_max(self.reference_samples)
        with torch.inference_mode():
            if SPEAKER in groups:
                found["spk_emb"] = self._speaker(waveforms, num_samples)
            cut = (num_samples < whole).nonzero()[:, 0]
            if not len(cut) or EMOTION not in groups:
                return found | self._semantic(waveforms, whole, groups)
            uncut = (num_samples == whole).nonzero()[:, 0]
            both = [(uncut, whole, groups), (cut, num_samples, groups & {EMOTION})]
            passes = [self._semantic(waveforms[rows], lengths[rows], of) for rows, lengths, of in both if len(rows)]
            rows = [rows.tolist() for rows, _, _ in both if len(rows)]
            found["emo_vec"] = join_parts([{"emo_vec": one["emo_vec"]} for one in passes], rows)["emo_vec"]
            if CODES in groups:
                codes = [{"codes": one["codes"]} for one in passes if "codes" in one]
                codes.append(self._semantic(waveforms[cut], whole[cut], frozenset({CODES})))
                found |= join_parts(codes, rows)
        return found

    def _semantic(self, waveforms: Tensor, num_samples: Tensor, groups: frozenset[str]) -> Columns:
        """Codes and emotion vectors, whichever are in `groups`, of whole clips."""
        if not groups & {CODES, EMOTION}:
            return {}
        longest = int(num_samples.max())
        input_features, mask = self._input_features(waveforms[:, :longest], num_samples)
        found: Columns = {}
        with computing(self.precision, self.device):
            semantic = self.semantic_encoder(input_features, mask)
            if CODES in groups:
                # A rounding error can change a code, and the codec is only 5 % of the work, so it always runs in fp32.
                with computing("fp32", self.device):
                    codes = self.codec(semantic, mask).to(torch.int32)
                if mask.packed:
                    lengths = ((mask.lengths + 1) // 2).tolist()
                    codes = pad_sequence(list(codes[0].split(lengths)), batch_first=True)
                found["codes"] = codes
            if EMOTION in groups:
                found["emo_vec"] = self.emotion(semantic, mask).float()
        return found

    def _input_features(self, waveforms: Tensor, num_samples: Tensor) -> tuple[Tensor, FrameMask]:
        """The semantic encoder's input features: padded (B, T, 160), or packed (1, sum of T, 160)."""
        counts = num_samples.tolist()
        frames = torch.tensor([num_input_frames(count) for count in counts])
        if not self.packs:
            features = batch_input_features(waveforms, num_samples)
            return features, FrameMask.from_lengths(frames, features.shape[1], features.device)
        clips = [extract_input_features(clip[:count].numpy()) for clip, count in zip(waveforms, counts, strict=True)]
        return torch.cat([torch.from_numpy(clip) for clip in clips])[None], FrameMask.of_packed(frames, self.device)

    def _speaker(self, waveforms: Tensor, num_samples: Tensor) -> Tensor:
        def vectors(rows: Tensor, counts: Tensor) -> Tensor:
            fbank = batch_fbank(rows[:, : int(counts.max())], counts)
            return self.speaker(fbank, num_fbank_frames(counts))

        with computing("fp32", self.device):
            if not self.packs:
                return vectors(waveforms, num_samples)
            return torch.cat([vectors(*one) for one in zip(waveforms.split(1), num_samples.split(1), strict=True)])

    def check_batch(self, waveforms: Tensor, num_samples: Tensor) -> list[int]:
        """The clips' numbers of frames. Raises ValueError if `forward` cannot take this batch."""
        if waveforms.ndim != 2 or num_samples.shape != waveforms.shape[:1]:
            raise ValueError(
                f"waveforms {tuple(waveforms.shape)} and num_samples {tuple(num_samples.shape)} must be (B, S) and (B,)"
            )
        counts: Sequence[int] = num_samples.tolist()
        frames = [num_input_frames(count) for count in counts]
        if max(counts) > waveforms.shape[1] or min(frames) < self.min_frames or max(frames) > self.max_frames:
            raise ValueError(
                f"clips have from {min(frames)} to {max(frames)} frames of 20 ms and up to {max(counts)} samples; they "
                f"must have from {self.min_frames} to {self.max_frames} frames, within the batch's "
                f"{waveforms.shape[1]} samples"
            )
        return frames
