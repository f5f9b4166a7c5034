"""How long a build will take on this machine, from short measurements and the size of the models.

The models' work is counted in multiplications per frame from the config; the device's speed at them is measured on one
matrix product, the speed of reading audio on a few of the files themselves. A rough estimate.
"""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from hfprep.audio.decode import load_waveform
from hfprep.audio.input_features import extract_input_features
from hfprep.errors import RejectedSample
from hfprep.model_config import ConditionConfig, ModelConfig

PUBLISHED_MULTIPLICATIONS = 590e6  # per frame, what `multiplications_per_frame` gives for the published models
SEMANTIC_LAYERS = 17
SEMANTIC_SIZES = (1024, 4096)  # width and feed-forward width of w2v-bert-2.0
FRAMES_PER_SECOND = 50
EFFICIENCY = {"cuda": 0.35, "cpu": 0.5}  # of a large matrix product's speed that whole models reach
MEASURE_SECONDS = 0.4
MATRIX = 2048


@dataclass(frozen=True, slots=True)
class Estimate:
    """Seconds that a build is expected to take: computing on `device`, reading audio in `workers` threads."""

    device: str
    compute_seconds: float
    reading_seconds: float
    workers: int

    @property
    def seconds(self) -> float:
        """Both run at the same time."""
        return max(self.compute_seconds, self.reading_seconds)


def estimate(
    audio_seconds: float, paths: Sequence[str], *, per_frame: float, device: torch.device, workers: int
) -> Estimate:
    """Expect the time for that much audio like the files at `paths`, at so many multiplications a frame."""
    frames = audio_seconds * FRAMES_PER_SECOND
    compute = frames * per_frame / (multiplications_per_second(device) * EFFICIENCY[device.type])
    spent, read = reading_speed(paths)
    reading = audio_seconds * (spent / read if read else 0.0) / workers
    return Estimate(str(device), compute, reading, workers)


def multiplications_per_frame(config: ModelConfig, semantic_config: Path | None) -> float:
    """Multiplications of a frame of 20 ms in all four models; what attention adds with the length is left out."""
    width, inner = SEMANTIC_SIZES
    if semantic_config is not None and semantic_config.is_file():
        sizes = json.loads(semantic_config.read_bytes())
        width, inner = int(sizes.get("hidden_size", width)), int(sizes.get("intermediate_size", inner))
    encoder = SEMANTIC_LAYERS * (4 * width * inner + 7 * width**2)
    codec = config.semantic_codec
    blocks = codec.vocos_num_layers * 2 * codec.vocos_dim * codec.vocos_intermediate_dim
    quantizer = codec.codebook_size * codec.codebook_dim
    conditioners = sum(_conformer(branch, width) for branch in (config.condition, config.emotion))
    return (
        encoder + 7 * width * codec.vocos_dim + blocks + quantizer + conditioners / 2
    )  # Conformers: every second frame


def _conformer(branch: ConditionConfig, width: int) -> float:
    size, bands = branch.output_size, (width - 1) // 2
    subsampling = 9 * size * bands + size**2 * bands
    return subsampling + branch.num_blocks * (2 * size * branch.linear_units + 8 * size**2)


def multiplications_per_second(device: torch.device) -> float:
    """Multiplications (with their additions) that a float32 matrix product does on the device each second."""
    size = MATRIX if device.type == "cuda" else MATRIX // 2
    matrix = torch.rand(size, size, device=device)
    (matrix @ matrix).sum().item()
    rounds, started = 0, time.perf_counter()
    while time.perf_counter() - started < MEASURE_SECONDS:
        (matrix @ matrix)[0, 0].item()
        rounds += 1
    return float(rounds * size**3 / (time.perf_counter() - started))


def reading_speed(paths: Sequence[str]) -> tuple[float, float]:
    """Seconds of one thread that it took to read these files, and seconds of audio in them."""
    spent = read = 0.0
    for path in paths:
        try:
            load_waveform(path)  # the first file of a rate has its filter made, and comes from a slow disk
            started = time.perf_counter()
            waveform = load_waveform(path)
            extract_input_features(waveform.samples)
        except RejectedSample:
            continue
        spent += time.perf_counter() - started
        read += waveform.seconds
    return spent, read
