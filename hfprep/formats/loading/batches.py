"""Samples -> one padded batch, under the names that a trainer takes."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from hfprep.schema import Schema
from hfprep.store.first_version import first_schema

BY_VALUE_BYTES = 1 << 17  # of a tensor: to share memory with another process takes longer than to send it so much

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


class Rows:
    """The tensors of so many samples, one after another: vectors are rows of one tensor for each column."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._taken = 0
        self._room: dict[str, Tensor] = {}

    def add(self, arrays: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
        """The tensors of the next sample: integers as int64, vectors as float32. Nothing of `arrays` stays in use."""
        row, self._taken = self._taken, self._taken + 1
        found = {}
        for name, values in arrays.items():
            if values.dtype.kind == "i":
                found[name] = torch.from_numpy(values.astype(np.int64))
                continue
            if name not in self._room:
                self._room[name] = room((self._count, *values.shape), torch.float32)
            place = self._room[name][row]
            found[name] = place if place.shape == values.shape else torch.empty(values.shape)
            found[name].numpy()[...] = values
        return found


class Batch(dict[str, Any]):
    """What `collate` gives: a dict that a DataLoader's worker sends with little effort, small tensors by value."""

    def __reduce__(self) -> tuple[Any, ...]:
        sent = {name: value.numpy() for name, value in self.items() if _is_small(value)}
        return _received, ({name: value for name, value in self.items() if name not in sent}, sent, list(self))


def _is_small(value: Any) -> bool:
    plain = isinstance(value, Tensor) and value.device.type == "cpu" and not value.requires_grad
    return plain and value.dtype in (torch.int64, torch.float32) and value.nbytes <= BY_VALUE_BYTES


def _received(others: dict[str, Any], sent: dict[str, np.ndarray], order: list[str]) -> Batch:
    values = others | {name: torch.from_numpy(value) for name, value in sent.items()}
    return Batch((name, values[name]) for name in order)


def length_name(name: str) -> str:
    """What a batch calls the lengths of a name: text_len -> text_lengths."""
    return f"{name.removesuffix('_len')}_lengths"


def collate(samples: Sequence[dict[str, Any]], schema: Schema | None = None) -> dict[str, Any]:
    """Pad samples of a `FeatureDataset` or a `PairDataset` to one batch of B; ValueError if B would be 0.

    Each column: (B, *dims), int64 or float32, dims that differ filled up with the column's own padding value (0 unless
    the schema says otherwise). For each length, such as text_len, int64 (B,) under text_lengths. ids, languages and, of
    pairs, prompt_ids, target_ids, prompt_languages: lists of B (a language that is not known is None). Other numbers of
    the record, such as lang_id, (B,) under lang_ids. `schema` is only needed for samples that are plain dicts.
    """
    if not samples:
        raise ValueError("samples is empty; a batch needs at least one sample")
    schema = schema or getattr(samples[0], "schema", None) or first_schema(0)
    batch = Batch((LABELS[name], [item[name] for item in samples]) for name in LABELS if name in samples[0])
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
    together = _whole(values)
    if together is not None:
        return together
    shape = [max(sizes) for sizes in zip(*(tensor.shape for tensor in values), strict=True)]
    batch = room((len(values), *shape), values[0].dtype)
    if all(list(tensor.shape) == shape for tensor in values):
        return torch.stack(list(values), out=batch)
    batch.fill_(value)
    for row, tensor in zip(batch, values, strict=True):
        row[tuple(slice(size) for size in tensor.shape)] = tensor
    return batch


def _whole(values: Sequence[Tensor]) -> Tensor | None:
    """The tensor whose rows these are, all of them and in order, as a data set reads them; None if there is none."""
    base = values[0]._base
    if base is None or base.shape != (len(values), *values[0].shape) or not base.is_contiguous():
        return None
    size = base[0].nbytes
    for number, value in enumerate(values):
        same = value._base is base and value.shape == base.shape[1:] and value.dtype == base.dtype
        if not same or not value.is_contiguous() or value.data_ptr() != base.data_ptr() + number * size:
            return None
    return base


def room(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """A tensor without values; in a DataLoader's worker a large one is in shared memory from the start."""
    size = math.prod(shape) * dtype.itemsize
    if get_worker_info() is None or size <= BY_VALUE_BYTES:
        return torch.empty(shape, dtype=dtype)
    storage = torch.UntypedStorage._new_shared(size, device="cpu")  # as torch's own collate does
    return torch.empty(0, dtype=dtype).set_(storage, 0, shape, torch.empty(shape, device="meta").stride())
