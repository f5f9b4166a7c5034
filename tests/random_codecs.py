"""Small codecs of transformers with random weights, for tests."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

CODEBOOK_SIZE = 64
NUM_CODEBOOKS = 4


def mimi() -> Any:
    """24 kHz, 12.5 codes a second, causal."""
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


def encodec() -> Any:
    """24 kHz, 75 codes a second, causal."""
    from transformers import EncodecConfig, EncodecModel

    return EncodecModel(
        EncodecConfig(
            hidden_size=16,
            num_filters=4,
            num_lstm_layers=1,
            codebook_size=CODEBOOK_SIZE,
            target_bandwidths=[0.9, 1.8],  # 75 codes a second of 6 bits: two or four codebooks
        )
    )


def dac() -> Any:
    """16 kHz, 31.25 codes a second, not causal: padding reaches real frames."""
    from transformers import DacConfig, DacModel

    return DacModel(
        DacConfig(
            encoder_hidden_size=4,
            decoder_hidden_size=64,
            codebook_size=CODEBOOK_SIZE,
            codebook_dim=8,
            n_codebooks=NUM_CODEBOOKS,
        )
    )


CODECS: Mapping[str, Callable[[], Any]] = {"mimi": mimi, "encodec": encodec, "dac": dac}


def random_codec(family: str) -> Any:
    """The same small codec every time, whose codes follow the sound: as initialised, all of a clip's are the same."""
    with torch.random.fork_rng():
        torch.manual_seed(4)
        codec = CODECS[family]().eval()
        for name, values in codec.state_dict().items():
            if name.endswith(("embed", "embed_sum", "codebook.weight")):
                values.normal_()
            elif name.endswith(("weight", "weight.original1")) and values.ndim == 3:
                values.normal_(std=1.5 * (values.shape[1] * values.shape[2]) ** -0.5)
            elif name.endswith("weight.original0"):  # the norms of weights
                values.mul_(2.0)
            elif name.endswith("bias"):
                values.normal_(std=0.01)
    return codec


def save_codec(family: str, folder: Path) -> Path:
    """A folder with such a codec, as the hub has them."""
    random_codec(family).save_pretrained(folder)
    return folder
