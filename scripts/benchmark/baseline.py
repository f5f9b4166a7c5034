"""The baseline: a pipeline as one would write it from the libraries' documentation.

Provides `run_baseline`, and `baseline` and `baseline25`, the models of IndexTTS-2 and of IndexTTS-2.5. It takes clips
in the manifest's order, in batches of fixed size, decodes them one after another, runs transformers' feature extractor
and all 24 layers of its model in float32, keeping every hidden state, then the other networks written plainly
(`plain_models`), on padded batches. It stores codes of padding, as such scripts do. Except for tokenization, it shares
no code with builds, so it does not change when builds become faster.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import soundfile
import torch
import torchaudio
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import SeamlessM4TFeatureExtractor, Wav2Vec2BertModel

from hfprep.inputs.text.tokenizer import TextTokenizer
from hfprep.models.configs import NUM_LAYERS
from hfprep.recipes.indextts2 import recipe as indextts2
from hfprep.recipes.indextts2.config import ModelConfig
from hfprep.recipes.indextts25 import recipe as indextts25
from hfprep.recipes.indextts25.config import Config
from hfprep.recipes.indextts25.text import TextEncoder
from hfprep.recipes.options import ModelOptions
from scripts.benchmark import plain_models
from scripts.benchmark.measuring import Stopwatch

SAMPLING_RATE = 16_000
Batch = list[dict[str, str]]
# From semantic features (B, T, D) and the batch's waveforms to a network's columns (B, ...).
Step = Callable[[Tensor, list[np.ndarray]], dict[str, Tensor]]
Encode = Callable[[str, str], np.ndarray]


class Baseline:
    """The models and the steps of a batch; `steps` are the networks after the semantic encoder, by stage."""

    def __init__(
        self, folder: Path, statistics: Path, *, text: Encode, steps: Mapping[str, Step], device: torch.device
    ) -> None:
        self.device = device
        self.text = text
        self.steps = steps
        self.extractor = SeamlessM4TFeatureExtractor.from_pretrained(folder)
        self.encoder = Wav2Vec2BertModel.from_pretrained(folder).eval().to(device)
        values = torch.load(statistics, weights_only=True)
        self.mean, self.std = values["mean"].to(device), values["var"].sqrt().to(device)

    def decode(self, path: Path) -> np.ndarray:
        """Samples at 16 kHz, float32 (num_samples,)."""
        samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
        return torchaudio.functional.resample(torch.from_numpy(samples).mean(1), rate, SAMPLING_RATE).numpy()

    def features(self, waveforms: list[np.ndarray]) -> dict[str, Tensor]:
        """Padded input features and their mask."""
        found = self.extractor(waveforms, sampling_rate=SAMPLING_RATE, return_tensors="pt")
        return {name: tensor.to(self.device) for name, tensor in found.items()}

    def encode(self, inputs: dict[str, Tensor]) -> Tensor:
        """Normalised semantic features (B, T, D)."""
        hidden: Tensor = self.encoder(**inputs, output_hidden_states=True).hidden_states[NUM_LAYERS]
        return (hidden - self.mean) / self.std


def baseline(models: Path, device: torch.device) -> Baseline:
    """IndexTTS-2's: codes, and both conditioning branches."""
    files = indextts2.locate(ModelOptions(models=models))
    config = ModelConfig.read(files.config)
    codec = _on_device(plain_models.read_tensors(files.semantic_codec), device)
    gpt = _conditioners(files.gpt_checkpoint, device)

    def condition(semantic: Tensor, _: list[np.ndarray]) -> dict[str, Tensor]:
        return {
            "condition": plain_models.condition(gpt, semantic, config.condition.attention_heads),
            "emo_vec": plain_models.emo_vec(gpt, semantic, config.emotion.attention_heads),
        }

    steps: dict[str, Step] = {
        "codec": lambda semantic, _: {"codes": plain_models.codes(codec, semantic).int()},
        "conditioners": condition,
    }
    text = TextTokenizer(models / "bpe.model").encode
    return Baseline(files.semantic_config.parent, files.w2v_stat, text=text, steps=steps, device=device)


def baseline25(models: Path, device: torch.device) -> Baseline:
    """IndexTTS-2.5's: codes at half the rate, the speaker vector from mel energies, the emotion branch."""
    files = indextts25.locate(ModelOptions(models=models))
    config = Config.read(files.config)
    codec = _on_device(plain_models.read_tensors(files.semantic_codec)["model"], device)
    gpt = _conditioners(files.gpt_checkpoint, device)
    campplus = _on_device(plain_models.read_tensors(files.campplus), device)
    heads = config.emotion.attention_heads

    def speaker(_: Tensor, waveforms: list[np.ndarray]) -> dict[str, Tensor]:
        fbanks = [_fbank(torch.from_numpy(waveform)) for waveform in waveforms]
        return {"spk_emb": plain_models.speaker(campplus, pad_sequence(fbanks, batch_first=True).to(device))}

    steps: dict[str, Step] = {
        "codec": lambda semantic, _: {"codes": plain_models.codes25(codec, semantic).int()},
        "speaker": speaker,
        "emotion": lambda semantic, _: {"emo_vec": plain_models.emo_vec(gpt, semantic, heads)},
    }
    text = TextEncoder(files.vocabulary, glossary=files.glossary).encode
    return Baseline(files.semantic_config.parent, files.w2v_stat, text=text, steps=steps, device=device)


def _fbank(waveform: Tensor) -> Tensor:
    """(F, 80) of a clip, minus each bin's mean."""
    found = torchaudio.compliance.kaldi.fbank(waveform[None], num_mel_bins=80, sample_frequency=SAMPLING_RATE)
    return found - found.mean(0)


def _conditioners(path: Path, device: torch.device) -> plain_models.Tensors:
    # As in the libraries' documentation: load the whole checkpoint, then copy it to a model.
    checkpoint = plain_models.read_tensors(path)
    needed = {name: value for name, value in checkpoint.items() if name.startswith(plain_models.PREFIXES)}
    return _on_device({name: value.clone() for name, value in needed.items()}, device)


def _on_device(tensors: plain_models.Tensors, device: torch.device) -> plain_models.Tensors:
    return {name: value.to(device) for name, value in tensors.items()}


def run_baseline(
    baseline: Baseline, manifest: Path, output: Path, *, batch_size: int, watch: Stopwatch, loaded: Callable[[], None]
) -> dict[str, int]:
    """Compute and write the features of every row; `loaded` is called before the first batch.

    Returns samples, frames (real), padded_frames. The stages of `watch` are those of the comparison.
    """
    rows = [json.loads(line) for line in manifest.read_text(encoding="utf-8").splitlines()]
    loaded()
    counts = {"samples": 0, "frames": 0, "padded_frames": 0}
    for start in range(0, len(rows), batch_size):
        batch = rows[start : start + batch_size]
        frames, padded = _run_batch(baseline, batch, manifest.parent, output, watch)
        counts["samples"] += len(batch)
        counts["frames"] += frames
        counts["padded_frames"] += padded
    return counts


def _run_batch(baseline: Baseline, batch: Batch, folder: Path, output: Path, watch: Stopwatch) -> tuple[int, int]:
    """Process a batch from files to files; returns its numbers of real and padded frames."""
    with watch.measuring("text"):
        text_ids = [baseline.text(row["text"], row["language"]) for row in batch]
    with watch.measuring("decode"):
        waveforms = [baseline.decode(folder / row["audio"]) for row in batch]
    with watch.measuring("features"):
        inputs = baseline.features(waveforms)
    arrays: dict[str, Tensor] = {}
    with torch.inference_mode():
        started = _now(watch, baseline.device)
        semantic = baseline.encode(inputs)
        started = _lap(watch, "semantic encoder", started, baseline.device)
        for stage, step in baseline.steps.items():
            arrays |= step(semantic, waveforms)
            started = _lap(watch, stage, started, baseline.device)
    with watch.measuring("writing"):
        for index, row in enumerate(batch):
            _save(output / "text_ids" / f"{row['id']}.npy", text_ids[index])
            for column, tensor in arrays.items():
                _save(output / column / f"{row['id']}.npy", tensor[index].cpu().numpy())
    return int(inputs["attention_mask"].sum()), semantic.shape[0] * semantic.shape[1]


def _save(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, array)


def _now(watch: Stopwatch, device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return watch.clock()


def _lap(watch: Stopwatch, stage: str, started: float, device: torch.device) -> float:
    now = _now(watch, device)
    watch.add(stage, now - started)
    return now
