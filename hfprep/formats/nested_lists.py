"""A schema's columns as Arrow list types, and arrays of samples as their values.

Dimensions that are the same for all samples are fixed-size lists, others lists. Two fixed dimensions are an `Array2D`,
which `datasets` returns as one array.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from hfprep.schema import Column, Schema


def list_feature(schema: Schema, column: Column, dtype: str) -> Any:
    """The feature of a column whose values are stored in `dtype`."""
    import datasets  # takes a second, and workers do not need it

    sizes = [dim if isinstance(dim, int) else schema.fixed.get(dim) for dim in column.dims]
    if len(sizes) == 2 and None not in sizes:
        return datasets.Array2D((sizes[0], sizes[1]), dtype)
    feature: Any = datasets.Value(dtype)
    for size in reversed(sizes):
        feature = datasets.List(feature) if size is None else datasets.List(feature, length=size)
    return feature


def list_array(values: Sequence[np.ndarray], dtype: pa.DataType) -> pa.Array:
    """Arrays of samples, with as many dimensions as `dtype` has list levels, as an Arrow array of that type."""
    flat = pa.array(np.concatenate([value.reshape(-1) for value in values]))
    return _nested(flat, dtype, np.array([value.shape for value in values], np.int64))


def _nested(flat: pa.Array, dtype: pa.DataType, shapes: np.ndarray) -> pa.Array:
    """Wrap flat values into lists; shapes: int64 (arrays, dimensions), of the arrays at this level."""
    sizes = shapes[:, 0]
    inner = flat if shapes.shape[1] == 1 else _nested(flat, dtype.value_type, np.repeat(shapes[:, 1:], sizes, axis=0))
    if isinstance(dtype, pa.FixedSizeListType):
        return pa.FixedSizeListArray.from_arrays(inner, type=dtype)
    offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), inner, type=dtype)
