"""Codes from semantic features computed by transformers itself, as a reference for hfprep's.

Provides `library_codes`: transformers' feature extractor and Wav2Vec2BertModel, on the CPU, one clip at a time, without
hfprep's front end or encoder; then the codec.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import torch

from hfprep.errors import ConfigError
from hfprep.models.configs import NUM_LAYERS
from hfprep.models.input_features import SAMPLING_RATE
from hfprep.models.masking import FrameMask
from hfprep.models.tensor_files import read_torch_file
from hfprep.recipes.finding import ModelFiles
from hfprep.recipes.indextts2.checkpoints import load_semantic_codec
from hfprep.recipes.indextts2.config import ModelConfig


def library_codes(files: ModelFiles, config: ModelConfig) -> Callable[[np.ndarray], Mapping[str, np.ndarray]]:
    """A function from a clip at 16 kHz, float32 (num_samples,), to its codes, int32 (T,).

    Raises ConfigError if transformers is not installed.
    """
    try:
        from transformers import SeamlessM4TFeatureExtractor, Wav2Vec2BertModel
    except ImportError as error:
        raise ConfigError(f"--reference needs transformers ({error}): pip install transformers") from error
    with _quiet():
        extractor = SeamlessM4TFeatureExtractor.from_pretrained(files.semantic_model)
        # Features are the output of the last of these layers; later ones are not needed.
        model = Wav2Vec2BertModel.from_pretrained(
            files.semantic_model, num_hidden_layers=NUM_LAYERS, dtype=torch.float32
        ).eval()
    statistics = read_torch_file(files.w2v_stat)
    mean, std = statistics["mean"].float(), statistics["var"].float().sqrt()
    codec = load_semantic_codec(files.semantic_codec, config).eval()

    @torch.inference_mode()
    def codes(samples: np.ndarray) -> Mapping[str, np.ndarray]:
        inputs = extractor(samples, sampling_rate=SAMPLING_RATE, return_tensors="pt")
        hidden = model(**inputs, output_hidden_states=True).hidden_states[NUM_LAYERS]
        frames = int(inputs["attention_mask"].sum())  # the extractor pads to an even number
        semantic = (hidden[:, :frames] - mean) / std
        mask = FrameMask.from_lengths(torch.tensor([frames]), frames, semantic.device)
        return {"codes": codec(semantic, mask)[0].to(torch.int32).numpy()}

    return codes


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
