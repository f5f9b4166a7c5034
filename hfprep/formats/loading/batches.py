"""Samples -> one padded batch, under the names that the IndexTTS-2 GPT trainer takes."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

PADDED = ("text_ids", "codes", "condition")
LENGTH_NAMES = {"text_ids": "text_lengths", "codes": "code_lengths", "condition": "condition_lengths"}
LABELS = {
    "id": "ids",
    "language": "languages",
    "prompt_id": "prompt_ids",
    "target_id": "target_ids",
    "prompt_language": "prompt_languages",
}


def collate(samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Pad samples of a `FeatureDataset` or a `PairDataset` with zeros to one batch of B; ValueError where B would be 0.

    text_ids: int64 (B, longest text). codes: int64 (B, most codes). condition: float32 (B, rows, dim).
    emo_vec: float32 (B, dim). text_lengths, code_lengths, condition_lengths: int64 (B,). ids, languages and, of pairs,
    prompt_ids, target_ids, prompt_languages: lists of B (a language that is not known is None).
    """
    if not samples:
        raise ValueError("samples is empty; a batch needs at least one sample")
    batch: dict[str, Any] = {LABELS[name]: [item[name] for item in samples] for name in LABELS if name in samples[0]}
    for name in PADDED:
        values: list[Tensor] = [item[name] for item in samples]
        batch[name] = pad_sequence(values, batch_first=True)
        batch[LENGTH_NAMES[name]] = torch.tensor([len(value) for value in values], dtype=torch.int64)
    batch["emo_vec"] = torch.stack([item["emo_vec"] for item in samples])
    return batch
