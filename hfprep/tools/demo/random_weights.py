"""Writes well-scaled random tensors to checkpoint files, piece by piece.

Provides `write_safetensors` and `write_torch_file`. A tensor's numbers depend only on the seed and its name; its scale
follows from the end of its name. Files of any size are written with one piece of one tensor in memory.
"""

import json
import math
import os
import struct
import zipfile
import zlib
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from torch.serialization import skip_data

PIECE_VALUES = 1 << 22  # 16 MiB of float32
FLOAT_BYTES = 4
NORM_SPREAD = 0.1
BIAS_SPREAD = 0.05
GAIN_SPREAD = 0.2
# With residual branches as large as their input, 17 random layers lose the signal: a minute of demo speech used only 47
# of 256 codes, and 214 with half-size branches.
BRANCH_SCALE = 0.5
ENCODER_LAYERS = "encoder.layers."
BRANCH_ENDS = ("linear_out.weight", "output_dense.weight", "pointwise_conv2.weight")
ZIP_LOCAL_HEADER = struct.Struct("<26xHH")  # ends with the lengths of the name and the extra field

Shapes = Mapping[str, tuple[int, ...]]


def write_safetensors(path: Path, shapes: Shapes, *, seed: int) -> None:
    """Write float32 tensors with these shapes; the metadata marks them as random."""
    header: dict[str, object] = {"__metadata__": {"format": "pt", "random": "true", "seed": str(seed)}}
    offset = 0
    for name, shape in shapes.items():
        size = math.prod(shape) * FLOAT_BYTES
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(encoded)) + encoded)
        for name, shape in shapes.items():
            for piece in random_pieces(name, shape, seed=seed):
                file.write(piece.tobytes())


def write_torch_file(
    path: Path, shapes: Shapes, *, seed: int, holes: Collection[str] = (), under: str | None = None
) -> None:
    """Write a state dict of float32 tensors with these shapes as torch.save does, as the entry `under` if given.

    Tensors in `holes` are zeros, and take no disk space if the file system supports sparse files.
    """
    # skip_data: torch reserves the space in the file, and the numbers are written below.
    with skip_data():
        tensors = {name: torch.empty(shape) for name, shape in shapes.items()}
        torch.save(tensors if under is None else {under: tensors}, path)
    with open(path, "r+b") as file:
        for (name, shape), start in zip(shapes.items(), _storage_offsets(path), strict=True):
            if name in holes:
                continue
            file.seek(start)
            for piece in random_pieces(name, shape, seed=seed):
                file.write(piece.tobytes())


def random_pieces(name: str, shape: tuple[int, ...], *, seed: int) -> Iterator[np.ndarray]:
    """The values of a tensor in row order, float32, in pieces."""
    if name.endswith("pos_enc.pe"):
        yield _sinusoids(shape).ravel()
        return
    mean, spread = _scale(name, shape)
    size = math.prod(shape)
    for number, start in enumerate(range(0, size, PIECE_VALUES)):
        generator = np.random.default_rng([seed, zlib.crc32(name.encode()), number])
        piece = generator.standard_normal(min(PIECE_VALUES, size - start), dtype=np.float32)
        piece *= np.float32(spread)
        piece += np.float32(mean)
        yield piece


def _scale(name: str, shape: tuple[int, ...]) -> tuple[float, float]:
    """Mean and standard deviation that keep a layer's output about as large as its input."""
    kind = name.rsplit(".", 1)[-1]
    if kind == "weight_g":  # of a weight norm: the norm of each output's weights
        return 1.0, GAIN_SPREAD
    if kind == "latents" or name.endswith("codebook.weight"):
        return 0.0, 1.0
    if kind == "running_var":  # of a batch norm: the variance
        return 1.0, NORM_SPREAD
    if len(shape) == 1:
        return (1.0, NORM_SPREAD) if kind in {"weight", "gamma"} else (0.0, BIAS_SPREAD)
    branch = BRANCH_SCALE if name.startswith(ENCODER_LAYERS) and name.endswith(BRANCH_ENDS) else 1.0
    return 0.0, branch / math.sqrt(math.prod(shape[1:]))


def _sinusoids(shape: tuple[int, ...]) -> np.ndarray:
    """Position rows (1, positions, width), sine and cosine interleaved (Vaswani et al. 2017)."""
    positions = np.arange(shape[1])[:, None]
    rates = 10_000.0 ** (-np.arange(0, shape[2], 2) / shape[2])
    table = np.empty(shape, np.float32)
    table[0, :, 0::2] = np.sin(positions * rates)
    table[0, :, 1::2] = np.cos(positions * rates)
    return table


def _storage_offsets(path: Path) -> list[int]:
    """The offset of each tensor's data in a torch file, in the order in which they were saved."""
    with zipfile.ZipFile(path) as archive:
        storages = [
            entry for entry in archive.infolist() if os.path.basename(os.path.dirname(entry.filename)) == "data"
        ]
    storages.sort(key=lambda entry: int(os.path.basename(entry.filename)))
    offsets = []
    with open(path, "rb") as file:
        for entry in storages:
            file.seek(entry.header_offset)
            name_length, extra_length = ZIP_LOCAL_HEADER.unpack(file.read(ZIP_LOCAL_HEADER.size))
            offsets.append(entry.header_offset + ZIP_LOCAL_HEADER.size + name_length + extra_length)
    return offsets
