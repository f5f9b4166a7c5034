"""Samples -> one padded batch, under the names that a trainer takes."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hfprep.schema import Schema
from hfprep.store.first_version import first_schema

LABELS = {
    "id": "ids",
    "language": "languages",
    "prompt_id": "prompt_ids",
    "target_id": "target_ids",
    "prompt_language": "prompt_languages",
}


class Item(dict[str, Any]):
    """A sample as a data set gives it: a dict that knows what its columns are, so that `collate` can pad them."""

    def __init__(self, schema: Schema, values: dict[str, Any]) -> None:
        super().__init__(values)
        self.schema = schema

    def __reduce__(self) -> tuple[Any, ...]:
        return Item, (self.schema, dict(self))


def length_name(name: str) -> str:
    """What a batch calls the lengths of a name: text_len -> text_lengths."""
    return f"{name.removesuffix('_len')}_lengths"


def collate(samples: Sequence[dict[str, Any]], schema: Schema | None = None) -> dict[str, Any]:
    """Pad samples of a `FeatureDataset` or a `PairDataset` to one batch of B; ValueError where B would be 0.

    Each column: (B, *dims), int64 or float32, dims that differ filled up with the column's own padding value (0 unless
    the schema says otherwise). For each length, such as text_len, int64 (B,) under text_lengths. ids, languages and, of
    pairs, prompt_ids, target_ids, prompt_languages: lists of B (a language that is not known is None). Other numbers of
    the record, such as lang_id, (B,) under lang_ids. `schema` is only needed for samples that are plain dicts.
    """
    if not samples:
        raise ValueError("samples is empty; a batch needs at least one sample")
    schema = schema or getattr(samples[0], "schema", None) or first_schema(0)
    batch: dict[str, Any] = {LABELS[name]: [item[name] for item in samples] for name in LABELS if name in samples[0]}
    for column in schema.columns:
        values: list[Tensor] = [item[column.name] for item in samples]
        batch[column.name] = pad(values, column.pad)
        for dim, name in enumerate(column.dims):
            if isinstance(name, str):
                batch[length_name(name)] = torch.tensor([value.shape[dim] for value in values], dtype=torch.int64)
    for item in schema.record_fields:
        if item.name in samples[0]:
            batch[f"{item.name}s"] = torch.tensor([sample[item.name] for sample in samples])
    return batch


def pad(values: Sequence[Tensor], value: int) -> Tensor:
    """Tensors of as many dimensions each as one tensor with a leading batch dimension, filled up with `value`."""
    shape = [max(sizes) for sizes in zip(*(tensor.shape for tensor in values), strict=True)]
    if all(list(tensor.shape) == shape for tensor in values):
        return torch.stack(list(values))
    batch = values[0].new_full((len(values), *shape), value)
    for row, tensor in zip(batch, values, strict=True):
        row[tuple(slice(size) for size in tensor.shape)] = tensor
    return batch
