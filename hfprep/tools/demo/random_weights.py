"""Random tensors that are well scaled, written to checkpoint files piece by piece.

Provides `write_safetensors` and `write_torch_file`. Takes names and shapes; a tensor's numbers depend on the seed and
on its own name alone. A file of any size is written with one piece of one tensor in memory. Knows nothing of models but
how their tensors' names end.
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
# With branches as strong as what they are added to, 17 random layers forget the sound: 47 of 256 codes were ever used
# in a minute of demo speech, and 214 with half of it.
BRANCH_SCALE = 0.5
ENCODER_LAYERS = "encoder.layers."
BRANCH_ENDS = ("linear_out.weight", "output_dense.weight", "pointwise_conv2.weight")
ZIP_LOCAL_HEADER = struct.Struct("<26xHH")  # ends with the lengths of the name and of the extra field

Shapes = Mapping[str, tuple[int, ...]]


def write_safetensors(path: Path, shapes: Shapes, *, seed: int) -> None:
    """Write float32 tensors of these shapes; the file's metadata says that they are random."""
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
    """Write a state dict of float32 tensors of these shapes as torch.save does; with `under` it is that entry's value.

    Tensors named in `holes` are zeros, and take no room on the disk where the file system has sparse files.
    """
    # Memory that is never touched costs nothing: torch leaves the room in the file, and the numbers follow.
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
    """The values of a tensor in row order, float32, a piece at a time."""
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
    """Mean and spread that keep a layer's output about as large as its input."""
    kind = name.rsplit(".", 1)[-1]
    if kind == "weight_g":  # of a weight norm: the length of each output's weights
        return 1.0, GAIN_SPREAD
    if kind == "latents" or name.endswith("codebook.weight"):
        return 0.0, 1.0
    if kind == "running_var":  # of a batch norm: what it divides by
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
    """Where each tensor's numbers start in a torch file, in the order in which they were saved."""
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
