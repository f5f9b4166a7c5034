"""Checks arrays against their column: dtype, dimensions, finite values, codes inside the codebook.

Takes arrays, or paths of .npy files, and the output's schema; returns faults as (kind, message).
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from hfprep.io.npy_format import npy_header, npy_values
from hfprep.schema import Column, Schema
from hfprep.tools.verify.faults import FaultKind

Problem = tuple[FaultKind, str]


def read_npy(path: Path) -> tuple[np.ndarray | None, list[Problem]]:
    """Read an artifact of the npy layout; the array is None if it cannot be read. Never runs a pickle."""
    try:
        data = path.read_bytes()
        if not data:
            return None, [(FaultKind.ARTIFACT_UNREADABLE, "the file is empty")]
        header = npy_header(data)
        array = npy_values(data, header)
    except FileNotFoundError:
        return None, [(FaultKind.ARTIFACT_MISSING, "the file does not exist")]
    except OSError as error:
        return None, [(FaultKind.ARTIFACT_UNREADABLE, error.strerror or str(error))]
    except (ValueError, MemoryError) as error:
        return None, [(FaultKind.ARTIFACT_UNREADABLE, f"is not a complete .npy file: {error}")]
    if len(data) > header.end:
        return array, [(FaultKind.ARTIFACT_SIZE, f"{len(data) - header.end} bytes follow after the end of the array")]
    return array, []


def check_array(
    array: np.ndarray, schema: Schema, name: str, lengths: Mapping[str, int], *, half: bool = False
) -> list[Problem]:
    """All faults of an array in the column `name`, for a sample whose record has these lengths.

    With `half`, vectors may be float16.
    """
    column = schema.by_name[name]
    allowed = [column.numpy_dtype, *([np.dtype(np.float16)] if half and column.kind == "vector" else [])]
    if array.dtype not in allowed:
        return [(FaultKind.ARTIFACT_DTYPE, f"is {array.dtype}; it must be {' or '.join(map(str, allowed))}")]
    if array.ndim != column.ndim:
        return [(FaultKind.ARTIFACT_SHAPE, f"has the shape {array.shape}; it must have {column.ndim} dimension(s)")]
    problems = list(_dimensions(array, schema, column, lengths))
    if array.size == 0:
        return problems or [(FaultKind.ARTIFACT_SHAPE, f"is empty: shape {array.shape}")]
    return problems + (_vectors(array) if column.kind == "vector" else _integers(array, column.size))


def _dimensions(array: np.ndarray, schema: Schema, column: Column, lengths: Mapping[str, int]) -> Iterator[Problem]:
    """The faults in the shape of an array of the right rank."""
    for axis, (dim, size) in enumerate(zip(column.dims, array.shape, strict=True)):
        if isinstance(dim, int):
            if size != dim:
                yield FaultKind.ARTIFACT_SHAPE, f"has the shape {array.shape}; dimension {axis} must be {dim}"
        elif dim in lengths and size != lengths[dim]:
            yield FaultKind.ARTIFACT_LENGTH, f"has the shape {array.shape}; its record says {dim} {lengths[dim]}"
        elif size != schema.fixed.get(dim, size):
            yield FaultKind.ARTIFACT_SHAPE, f"has the shape {array.shape}; {dim} is always {schema.fixed[dim]}"


def _vectors(array: np.ndarray) -> list[Problem]:
    finite = np.isfinite(array)
    if not finite.all():
        return [(FaultKind.NOT_FINITE, f"{int((~finite).sum())} of {array.size} values are NaN or infinite")]
    rows = array.reshape(-1, array.shape[-1])
    empty_rows = int((~rows.any(axis=1)).sum())
    if empty_rows:  # models never return exact zero vectors, but a file system that lost its last blocks does
        return [(FaultKind.ALL_ZERO, f"{empty_rows} of {len(rows)} vectors are all zero")]
    return []


def _integers(array: np.ndarray, size: int | None) -> list[Problem]:
    lowest, highest = int(array.min()), int(array.max())
    if lowest >= 0 and (size is None or highest < size):
        return []
    allowed = "0 or more" if size is None else f"from 0 to {size - 1}"
    found = lowest if lowest < 0 else highest
    at = ", ".join(str(int(index)) for index in np.argwhere(array == found)[0])
    return [(FaultKind.OUT_OF_RANGE, f"has the value {found} at position {at}; values must be {allowed}")]
