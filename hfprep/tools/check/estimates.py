"""How long a build will take on this machine, from short measurements of its own parts.

The models: one layer of the semantic encoder, with made-up weights of the right shapes, is run on the device over clips
as long as the manifest's are on average. Its seventeen layers are most of the arithmetic; what the other models need is
counted in multiplications and taken to run as fast. Reading audio is measured on a few of the files themselves.
Starting up and writing are left out: they matter where models are tiny or there is little to do.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from hfprep.errors import RejectedSample
from hfprep.inputs.audio.decode import load_waveform
from hfprep.models.configs import ConditionConfig
from hfprep.models.input_features import extract_input_features
from hfprep.models.masking import FrameMask
from hfprep.models.semantic_config import NUM_LAYERS, SemanticEncoderConfig
from hfprep.models.semantic_encoder import EncoderLayer
from hfprep.recipes.indextts2.config import ModelConfig

FRAMES_PER_SECOND = 50
MEASURE_SECONDS = 0.3
MOST_FRAMES = 300  # of a clip that is measured: enough for the full rate, and half a second on a slow CPU
FRAMES_AT_ONCE = {"cpu": 1, "cuda": 8000}  # a CPU takes one clip at a time
PUBLISHED_REST = 180e6  # multiplications a frame in the published codec and conditioners, as `_rest` counts them


@dataclass(frozen=True, slots=True)
class Work:
    """What the models do with a frame of 20 ms: the encoder's config, and multiplications in it and in all the rest."""

    semantic: SemanticEncoderConfig
    encoder: float
    rest: float

    @classmethod
    def of(cls, config: ModelConfig | None, semantic_config: Path | None) -> "Work":
        """The work of the models of a config; without one, of the published models. Raises CheckpointError."""
        semantic = SemanticEncoderConfig()
        if semantic_config is not None and semantic_config.is_file():
            semantic = SemanticEncoderConfig.read(semantic_config)
        width, inner = semantic.hidden_size, semantic.intermediate_size
        encoder = float(NUM_LAYERS * (4 * width * inner + 7 * width**2))
        return cls(semantic, encoder, PUBLISHED_REST if config is None else _rest(config, width))


@dataclass(frozen=True, slots=True)
class Estimate:
    """Seconds that a build is expected to take: computing on `device`, reading audio in `workers` threads.

    `timed_frames` and `timed_files` are what was measured for that.
    """

    device: str
    compute_seconds: float
    reading_seconds: float
    workers: int
    timed_frames: int
    timed_files: int

    @property
    def seconds(self) -> float:
        """Both run at the same time."""
        return max(self.compute_seconds, self.reading_seconds)


def estimate(
    audio_seconds: float, clips: int, paths: Sequence[str], *, work: Work, device: torch.device, workers: int
) -> Estimate:
    """Expect the time for so many clips with that much audio in all, like the files at `paths`."""
    frames = audio_seconds * FRAMES_PER_SECOND
    length = max(1, min(MOST_FRAMES, round(frames / clips)))
    rows = max(1, FRAMES_AT_ONCE[device.type] // length)
    layer = layer_seconds(work.semantic, rows, length, device) / (rows * length)
    compute = frames * NUM_LAYERS * layer * (1 + work.rest / work.encoder)
    spent, read = reading_speed(paths)
    reading = audio_seconds * (spent / read if read else 0.0) / workers
    return Estimate(str(device), compute, reading, workers, rows * length, len(paths))


def _rest(config: ModelConfig, width: int) -> float:
    """Multiplications a frame outside the encoder; what attention adds with the length is left out."""
    codec = config.semantic_codec
    blocks = codec.vocos_num_layers * 2 * codec.vocos_dim * codec.vocos_intermediate_dim
    quantizer = codec.codebook_size * codec.codebook_dim
    conditioners = sum(_conformer(branch, width) for branch in (config.condition, config.emotion))
    return 7 * width * codec.vocos_dim + blocks + quantizer + conditioners / 2  # Conformers: every second frame


def _conformer(branch: ConditionConfig, width: int) -> float:
    size, bands = branch.output_size, (width - 1) // 2
    subsampling = 9 * size * bands + size**2 * bands
    return subsampling + branch.num_blocks * (2 * size * branch.linear_units + 8 * size**2)


def timed_layer(config: SemanticEncoderConfig, device: torch.device) -> EncoderLayer:
    """An encoder layer of that config, with anything in its weights."""
    with torch.device("meta"):
        return EncoderLayer(config).to_empty(device=device)


def layer_seconds(config: SemanticEncoderConfig, rows: int, length: int, device: torch.device) -> float:
    """Seconds of one encoder layer over a batch of `rows` clips of `length` frames, in float32."""
    layer = timed_layer(config, device)
    with torch.inference_mode():
        for weight in layer.parameters():
            weight.fill_(1 / config.hidden_size)  # any numbers will do that stay within reach of float32
        hidden = torch.rand(rows, length, config.hidden_size, device=device)
        mask = FrameMask.from_lengths(torch.full((rows,), length), length, device)
        room = hidden.new_empty(3, *hidden.shape)
        layer(hidden, mask, room)  # the first time, kernels are made ready
        hidden[0, 0, 0].item()
        rounds, started = 0, time.perf_counter()
        while not rounds or time.perf_counter() - started < MEASURE_SECONDS:
            layer(hidden, mask, room)
            hidden[0, 0, 0].item()
            rounds += 1
        return (time.perf_counter() - started) / rounds


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
