"""Collates samples to a padded batch for a trainer."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import get_worker_info

from hfprep.schema import Schema
from hfprep.store.first_version import first_schema

BY_VALUE_BYTES = 1 << 17  # up to this size, sending a tensor is faster than sharing its memory

LABELS = {
    "id": "ids",
    "language": "languages",
    "prompt_id": "prompt_ids",
    "target_id": "target_ids",
    "prompt_language": "prompt_languages",
}


class Item(dict[str, Any]):
    """A sample of a data set: a dict with its schema, so that `collate` can pad the columns."""

    __slots__ = ("schema",)

    def __init__(self, schema: Schema, values: dict[str, Any]) -> None:
        super().__init__(values)
        self.schema = schema

    def __reduce__(self) -> tuple[Any, ...]:
        return Item, (self.schema, dict(self))


def tensors_of(arrays: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
    """The tensors of a sample: integers as int64, vectors as float32. Copies from `arrays`."""
    return {name: _tensor(values) for name, values in arrays.items()}


def _tensor(values: np.ndarray) -> Tensor:
    return torch.from_numpy(values.astype(np.int64 if values.dtype.kind == "i" else np.float32))


class Rows:
    """The tensors of `count` samples; vectors of a column are rows of one tensor."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._rows: dict[str, Iterator[tuple[Tensor, np.ndarray]]] = {}

    def add(self, arrays: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
        """The tensors of the next sample, as `tensors_of` makes them."""
        return {name: self._vector(name, x) if x.dtype.kind == "f" else _tensor(x) for name, x in arrays.items()}

    def _vector(self, name: str, values: np.ndarray) -> Tensor:
        if name not in self._rows:
            whole = empty_tensor((self._count, *values.shape), torch.float32)
            self._rows[name] = zip(whole, whole.numpy(), strict=True)
        tensor, row = next(self._rows[name])
        if row.shape != values.shape:
            return _tensor(values)
        row[...] = values
        return tensor


class Batch(dict[str, Any]):
    """The result of `collate`: a dict that DataLoader workers send cheaply, with small tensors by value."""

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
    """The name of a length in a batch: text_len -> text_lengths."""
    return f"{name.removesuffix('_len')}_lengths"


def collate(samples: Sequence[dict[str, Any]], schema: Schema | None = None) -> dict[str, Any]:
    """Pad B samples of a `FeatureDataset` or a `PairDataset` to a batch. Raises ValueError if there are none.

    The batch has each column, (B, *dims) int64 or float32, padded with the column's padding value (0 unless the schema
    says otherwise); each length, such as text_len, as text_lengths, int64 (B,); ids and languages, and for pairs
    prompt_ids, target_ids and prompt_languages, as lists (an unknown language is None); and other numbers of the
    record, such as lang_id, as lang_ids (B,). `schema` is only needed for samples that are plain dicts.
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
    """Pad tensors with `value` to a common shape, and stack them along a new first dimension."""
    whole = _whole(values)
    if whole is not None:
        return whole
    shape = [max(sizes) for sizes in zip(*(tensor.shape for tensor in values), strict=True)]
    same = all(list(tensor.shape) == shape for tensor in values)
    if len(shape) == 1 and not same:
        return pad_sequence(list(values), batch_first=True, padding_value=value)
    batch = empty_tensor((len(values), *shape), values[0].dtype)
    if same:
        return torch.stack(list(values), out=batch)
    batch.fill_(value)
    for row, tensor in zip(batch, values, strict=True):
        row[tuple(slice(size) for size in tensor.shape)] = tensor
    return batch


def _whole(values: Sequence[Tensor]) -> Tensor | None:
    """The tensor whose rows are exactly these tensors, in order, as `Rows` makes them; None if there is none."""
    base = values[0]._base
    if base is None or base.shape != (len(values), *values[0].shape) or not base.is_contiguous():
        return None
    same = all(value.dtype == base.dtype for value in values) and all(map(Tensor.is_set_to, values, base))
    return base if same else None


def empty_tensor(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """An uninitialised tensor; a large one in a DataLoader worker is allocated in shared memory."""
    size = math.prod(shape) * dtype.itemsize
    if get_worker_info() is None or size <= BY_VALUE_BYTES:
        return torch.empty(shape, dtype=dtype)
    storage = torch.UntypedStorage._new_shared(size, device="cpu")  # as torch's own collate does
    return torch.empty(0, dtype=dtype).set_(storage, 0, shape, torch.empty(shape, device="meta").stride())
