"""A small neural codec with random weights, to try the recipe `codec`: Mimi's architecture in miniature."""

from pathlib import Path
from typing import Any

import torch

CODEBOOK_SIZE = 64
NUM_CODEBOOKS = 4
SEED = 4


def make_codec(folder: Path) -> None:
    """Write a random codec to a folder in the hub's format: 24 kHz, four codebooks at 12.5 codes per second."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    with torch.random.fork_rng():
        torch.manual_seed(SEED)
        codec = random_mimi()
        randomise(codec)
    codec.save_pretrained(folder)


def random_mimi() -> Any:
    """A small Mimi model as the library initialises it."""
    from transformers import MimiConfig, MimiModel

    return MimiModel(
        MimiConfig(
            hidden_size=32,
            num_filters=4,
            num_hidden_layers=1,
            intermediate_size=32,
            num_attention_heads=2,
            num_key_value_heads=2,
            head_dim=16,
            sliding_window=10,
            codebook_size=CODEBOOK_SIZE,
            codebook_dim=16,
            vector_quantization_hidden_dimension=16,
            num_quantizers=NUM_CODEBOOKS,
            upsample_groups=32,
        )
    )


def randomise(codec: Any) -> None:
    """Draw weights with which codes vary with the audio: as initialised, all codes of a clip are the same."""
    for name, values in codec.eval().state_dict().items():
        if name.endswith(("embed", "embed_sum", "codebook.weight")):
            values.normal_()
        elif name.endswith(("weight", "weight.original1")) and values.ndim == 3:
            values.normal_(std=1.5 * (values.shape[1] * values.shape[2]) ** -0.5)
        elif name.endswith("weight.original0"):  # the norms of weights
            values.mul_(2.0)
        elif name.endswith("bias"):
            values.normal_(std=0.01)
