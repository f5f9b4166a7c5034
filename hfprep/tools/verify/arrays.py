"""Whether an array is what its column asks for: dtype, rank, shape, finite values, codes inside the codebook.

Takes arrays, or paths of .npy files; gives faults as (kind, message). Knows nothing of manifests or folders.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hfprep.io.npy_format import npy_header, npy_values
from hfprep.schema import COLUMNS
from hfprep.tools.verify.faults import FaultKind

Problem = tuple[FaultKind, str]


@dataclass(frozen=True, slots=True)
class Bounds:
    """What values may be: rows of the codebook, pieces of the tokenizer, width of the latents; None is not checked."""

    codebook_size: int | None = None
    vocab_size: int | None = None
    model_dim: int | None = None
    condition_len: int | None = None


def read_npy(path: Path) -> tuple[np.ndarray | None, list[Problem]]:
    """Read an artifact of the npy layout; the array is None where it cannot be read. Never runs a pickle."""
    try:
        data = path.read_bytes()
        if not data:
            return None, [(FaultKind.ARTIFACT_UNREADABLE, "the file is empty")]
        header = npy_header(data)
        array = npy_values(data, header)
    except FileNotFoundError:
        return None, [(FaultKind.ARTIFACT_MISSING, "there is no such file")]
    except OSError as error:
        return None, [(FaultKind.ARTIFACT_UNREADABLE, error.strerror or str(error))]
    except (ValueError, MemoryError) as error:
        return None, [(FaultKind.ARTIFACT_UNREADABLE, f"is not a whole .npy file: {error}")]
    if len(data) > header.end:
        return array, [(FaultKind.ARTIFACT_SIZE, f"{len(data) - header.end} bytes follow after the array's end")]
    return array, []


def check_array(
    array: np.ndarray, name: str, bounds: Bounds, length: int | None, dtypes: tuple[np.dtype, ...] | None = None
) -> list[Problem]:
    """Everything wrong with one array of the column `name` whose first dimension should be `length`.

    `dtypes`: allowed ones, where a format stores another than the column's own.
    """
    column = COLUMNS[name]
    allowed = dtypes or (column.dtype,)
    if array.dtype not in allowed:
        return [(FaultKind.ARTIFACT_DTYPE, f"is {array.dtype}; it must be {' or '.join(map(str, allowed))}")]
    if array.ndim != column.ndim:
        return [(FaultKind.ARTIFACT_SHAPE, f"has the shape {array.shape}; it must have {column.ndim} dimension(s)")]
    problems = list(_lengths(array, name, bounds, length))
    if array.size == 0:
        return problems or [(FaultKind.ARTIFACT_SHAPE, f"is empty: shape {array.shape}")]
    if array.dtype.kind == "f":
        problems += _vectors(array)
    else:
        limit = bounds.codebook_size if name == "codes" else bounds.vocab_size
        problems += _integers(array, limit)
    return problems


def _lengths(array: np.ndarray, name: str, bounds: Bounds, length: int | None) -> list[Problem]:
    if length is not None and name != "emo_vec" and len(array) != length:
        return [(FaultKind.ARTIFACT_LENGTH, f"has {len(array)} rows; its record says {length}")]
    if name == "condition" and bounds.condition_len is not None and len(array) != bounds.condition_len:
        return [(FaultKind.ARTIFACT_SHAPE, f"has {len(array)} latents; the other samples have {bounds.condition_len}")]
    width = array.shape[-1]
    if array.dtype.kind == "f" and bounds.model_dim is not None and width != bounds.model_dim:
        return [(FaultKind.ARTIFACT_SHAPE, f"is {width} wide; the other samples are {bounds.model_dim} wide")]
    return []


def _vectors(array: np.ndarray) -> list[Problem]:
    finite = np.isfinite(array)
    if not finite.all():
        return [(FaultKind.NOT_FINITE, f"{int((~finite).sum())} of {array.size} values are NaN or infinite")]
    empty_rows = int((~np.atleast_2d(array).any(axis=1)).sum())
    if empty_rows:  # no model gives an exact zero vector; a file system that lost its last blocks does
        return [(FaultKind.ALL_ZERO, f"{empty_rows} of {len(np.atleast_2d(array))} vectors are all zero")]
    return []


def _integers(array: np.ndarray, limit: int | None) -> list[Problem]:
    lowest, highest = int(array.min()), int(array.max())
    if lowest < 0 or (limit is not None and highest >= limit):
        allowed = "0 or more" if limit is None else f"from 0 to {limit - 1}"
        found = lowest if lowest < 0 else highest
        at = int(np.flatnonzero(array == found)[0])
        return [(FaultKind.OUT_OF_RANGE, f"holds {found} at position {at}; values must be {allowed}")]
    return []
