"""Small codecs of transformers with random weights, for tests."""

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from hfprep.tools.demo.codec import CODEBOOK_SIZE, NUM_CODEBOOKS, SEED, random_mimi, randomise


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


CODECS: Mapping[str, Callable[[], Any]] = {"mimi": random_mimi, "encodec": encodec, "dac": dac}


@functools.cache
def random_codec(family: str) -> Any:
    """The same small codec every time, whose codes follow the sound: as initialised, all of a clip's are the same."""
    with torch.random.fork_rng():
        torch.manual_seed(SEED)
        codec = CODECS[family]()
        randomise(codec)
    return codec


def save_codec(family: str, folder: Path) -> Path:
    """A folder with such a codec, as the hub has them."""
    random_codec(family).save_pretrained(folder)
    return folder
