"""Arrays in the .npy format, from their bytes, without a copy: the header of each kind is parsed once."""

import functools
import io
import math
from typing import Any

import numpy as np

from hfprep.errors import StoreError

PREFIX = b"\x93NUMPY\x01\x00"
HEADER_START = len(PREFIX) + 2


def parse_npy(data: memoryview | bytes, sample_id: str, where: str) -> np.ndarray:
    """The array in a .npy file of format 1.0, sharing memory with `data`; StoreError where it is not one, or cut."""
    try:
        if bytes(data[: len(PREFIX)]) != PREFIX:
            raise ValueError("it is not in the .npy format 1.0")
        start = HEADER_START + int.from_bytes(data[len(PREFIX) : HEADER_START], "little")
        dtype, shape, fortran = _header(bytes(data[len(PREFIX) : start]))
        if dtype.hasobject or fortran:
            raise ValueError(f"it holds {dtype}" + (" by columns" if fortran else ""))
        count = math.prod(shape)
        if len(data) - start != count * dtype.itemsize:
            raise ValueError(f"it has {len(data) - start} bytes instead of {count * dtype.itemsize}")
        return np.frombuffer(data, dtype, count, start).reshape(shape)
    except (ValueError, TypeError) as error:
        raise StoreError(f"sample {sample_id!r}: an array in {where} cannot be read: {error}; make it again") from error


@functools.lru_cache(maxsize=65536)
def _header(header: bytes) -> tuple[np.dtype[Any], tuple[int, ...], bool]:
    shape, fortran, dtype = np.lib.format.read_array_header_1_0(io.BytesIO(header))
    return dtype, shape, fortran
