"""Semantic features computed by transformers itself, as a reference for hfprep's.

Provides `LibraryEncoder`: transformers' feature extractor and Wav2Vec2BertModel, on the CPU, one clip at a time,
without hfprep's front end or encoder.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from hfprep.errors import ConfigError
from hfprep.models.configs import NUM_LAYERS
from hfprep.models.tensor_files import read_torch_file

SAMPLING_RATE = 16000


class LibraryEncoder:
    """Clips to normalised semantic features. Raises ConfigError if transformers is not installed."""

    def __init__(self, folder: Path, statistics: Path) -> None:
        try:
            from transformers import SeamlessM4TFeatureExtractor, Wav2Vec2BertModel
        except ImportError as error:
            raise ConfigError(f"--reference needs transformers ({error}): pip install transformers") from error
        with _quiet():
            self.extractor = SeamlessM4TFeatureExtractor.from_pretrained(folder)
            # Features are the output of the last of these layers; later ones are not needed.
            model = Wav2Vec2BertModel.from_pretrained(folder, num_hidden_layers=NUM_LAYERS, dtype=torch.float32)
        self.model = model.eval()
        found = read_torch_file(statistics)
        self.mean, self.std = found["mean"].float(), found["var"].float().sqrt()

    def __call__(self, samples: np.ndarray) -> Tensor:
        """Samples at 16 kHz, float32 (num_samples,), to features (1, T, D) float32."""
        inputs = self.extractor(samples, sampling_rate=SAMPLING_RATE, return_tensors="pt")
        with torch.inference_mode():
            hidden = self.model(**inputs, output_hidden_states=True).hidden_states[NUM_LAYERS]
        frames = int(inputs["attention_mask"].sum())  # the extractor pads to an even number
        return (hidden[:, :frames] - self.mean) / self.std


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress the library's progress bar and its warnings about unused layers."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    bar = logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bar:
            logging.enable_progress_bar()
