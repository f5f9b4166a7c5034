"""The pipeline that the libraries' documentation leads to: what hfprep is measured against.

Gives `run_baseline`: clips in the manifest's order, a fixed number a batch, decoded one after another, transformers'
feature extractor and all 24 layers of its model in float32 with every hidden state kept, then the codec and the
conditioning branches as their formulas stand (`plain_models`), on the padded batch as it is. It stores padding beside
real codes, as such scripts do. But for the texts' tokens none of it is code that a build runs, so it stays what it is
when builds become faster.
"""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import soundfile
import torch
import torchaudio
from torch import Tensor
from transformers import SeamlessM4TFeatureExtractor, Wav2Vec2BertModel

from hfprep.inputs.text.tokenizer import TextTokenizer
from hfprep.models.semantic_config import NUM_LAYERS
from hfprep.recipes.indextts2.config import ModelConfig
from hfprep.recipes.indextts2.locate import ModelFiles
from scripts.benchmark import plain_models
from scripts.benchmark.measuring import Stopwatch

SAMPLING_RATE = 16_000
Batch = list[dict[str, str]]


class Baseline:
    """The models and the steps of one batch."""

    def __init__(self, files: ModelFiles, config: ModelConfig, tokenizer: Path, device: torch.device) -> None:
        folder = files.semantic_config.parent
        self.device = device
        self.tokenizer = TextTokenizer(tokenizer)
        self.extractor = SeamlessM4TFeatureExtractor.from_pretrained(folder)
        self.encoder = Wav2Vec2BertModel.from_pretrained(folder).eval().to(device)
        self.codec = self._on_device(plain_models.read_tensors(files.semantic_codec))
        # As the libraries' documentation has it: the whole checkpoint into memory, then into a model of its own.
        checkpoint = plain_models.read_tensors(files.gpt_checkpoint)
        needed = {name: value for name, value in checkpoint.items() if name.startswith(plain_models.PREFIXES)}
        self.gpt = self._on_device({name: value.clone() for name, value in needed.items()})
        self.heads = config.condition.attention_heads, config.emotion.attention_heads
        del checkpoint, needed
        statistics = torch.load(files.w2v_stat, weights_only=True)
        self.mean, self.std = statistics["mean"].to(device), statistics["var"].sqrt().to(device)

    def decode(self, path: Path) -> np.ndarray:
        """Samples at 16 kHz, float32 (num_samples,)."""
        samples, rate = soundfile.read(path, dtype="float32")
        return torchaudio.functional.resample(torch.from_numpy(samples), rate, SAMPLING_RATE).numpy()

    def features(self, waveforms: list[np.ndarray]) -> dict[str, Tensor]:
        """Padded input features and their mask."""
        found = self.extractor(waveforms, sampling_rate=SAMPLING_RATE, return_tensors="pt")
        return {name: tensor.to(self.device) for name, tensor in found.items()}

    def encode(self, inputs: dict[str, Tensor]) -> Tensor:
        """Normalised semantic features (B, T, D)."""
        hidden: Tensor = self.encoder(**inputs, output_hidden_states=True).hidden_states[NUM_LAYERS]
        return (hidden - self.mean) / self.std

    def codes(self, semantic: Tensor) -> Tensor:
        return plain_models.codes(self.codec, semantic)

    def condition(self, semantic: Tensor) -> tuple[Tensor, Tensor]:
        condition_heads, emotion_heads = self.heads
        return (
            plain_models.condition(self.gpt, semantic, condition_heads),
            plain_models.emo_vec(self.gpt, semantic, emotion_heads),
        )

    def _on_device(self, tensors: plain_models.Tensors) -> plain_models.Tensors:
        return {name: value.to(self.device) for name, value in tensors.items()}


def run_baseline(
    baseline: Baseline, manifest: Path, output: Path, *, batch_size: int, watch: Stopwatch, loaded: Callable[[], None]
) -> dict[str, int]:
    """Compute and write the features of every row; `loaded` is called when the first batch begins.

    Gives samples, frames (real), padded_frames. The stages of `watch` are those of the comparison.
    """
    rows = [json.loads(line) for line in manifest.read_text(encoding="utf-8").splitlines()]
    for column in ("text_ids", "codes", "condition", "emo_vec"):
        (output / column).mkdir(parents=True, exist_ok=True)
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
    """One batch from files to files; gives its real and its padded frames."""
    with watch.measuring("text"):
        text_ids = [baseline.tokenizer.encode(row["text"], row["language"]) for row in batch]
    with watch.measuring("decode"):
        waveforms = [baseline.decode(folder / row["audio"]) for row in batch]
    with watch.measuring("features"):
        inputs = baseline.features(waveforms)
    with torch.inference_mode():
        started = _now(watch, baseline.device)
        semantic = baseline.encode(inputs)
        started = _lap(watch, "semantic encoder", started, baseline.device)
        padded = semantic.shape[0] * semantic.shape[1]
        codes = baseline.codes(semantic)
        started = _lap(watch, "codec", started, baseline.device)
        condition, emo_vec = baseline.condition(semantic)
        _lap(watch, "conditioners", started, baseline.device)
    with watch.measuring("writing"):
        arrays = {"codes": codes.int(), "condition": condition, "emo_vec": emo_vec}
        for index, row in enumerate(batch):
            np.save(output / "text_ids" / f"{row['id']}.npy", text_ids[index])
            for column, tensor in arrays.items():
                np.save(output / column / f"{row['id']}.npy", tensor[index].cpu().numpy())
    return int(inputs["attention_mask"].sum()), padded


def _now(watch: Stopwatch, device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return watch.clock()


def _lap(watch: Stopwatch, stage: str, started: float, device: torch.device) -> float:
    now = _now(watch, device)
    watch.add(stage, now - started)
    return now
