"""Reading and writing the .npy format.

Headers are parsed here, with a cache: numpy's parser uses `ast`, which takes longer than reading the values, and which
occasionally fails in CPython 3.11 (SystemError) when several threads use it.
"""

import functools
import io
import json
import math
import re
from dataclasses import dataclass
from typing import Any

import numpy as np

MAGIC = b"\x93NUMPY"
_LENGTH_BYTES = {b"\x01\x00": 2, b"\x02\x00": 4}  # size of the header's length field, by format version
HEADER_BYTES = 4096  # more than the header of any numeric array
_LONGEST = 2**48  # of a dimension: numpy raises OverflowError for one that does not fit into 64 bits
_AS_JSON = str.maketrans("'()", '"[]')
_NUMBERS = re.compile(r"[<>|=]?[biufc]\d+")


@dataclass(frozen=True, slots=True)
class Header:
    """The parsed header of a .npy file; its values are at bytes `start` to `end`, the size of the file."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    fortran_order: bool
    start: int
    end: int


def npy_bytes(array: np.ndarray) -> bytes:
    """An array in the .npy format, version 1.0; raises ValueError if it contains Python objects."""
    values = np.ascontiguousarray(array).reshape(array.shape)  # it makes an array of one value one-dimensional
    return b"".join((_prefix(values.dtype, values.shape), values.data))


@functools.lru_cache(maxsize=65536)
def npy_size(dtype: str, shape: tuple[int, ...]) -> int:
    """Size in bytes of an array of that dtype and shape in the .npy format; of any shape, without making the array."""
    described = np.dtype(dtype)
    return len(_prefix(described, shape)) + math.prod(shape) * described.itemsize


@functools.lru_cache(maxsize=4096)
def _prefix(dtype: np.dtype[Any], shape: tuple[int, ...]) -> bytes:
    """What comes before the values of an array, as numpy writes it; raises ValueError for Python objects."""
    if dtype.hasobject:
        raise ValueError(f"an array of dtype {dtype} contains Python objects, which are not written")
    stream = io.BytesIO()
    description = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(stream, description)
    return stream.getvalue()


def npy_header(data: bytes | memoryview) -> Header:
    """The header of a .npy file of numbers; raises ValueError if it is not of version 1.0 or 2.0."""
    if bytes(data[: len(MAGIC)]) != MAGIC:
        raise ValueError("it is not in the .npy format")
    version_end = len(MAGIC) + 2
    width = _LENGTH_BYTES.get(bytes(data[len(MAGIC) : version_end]))
    if width is None:
        raise ValueError("it is not in version 1.0 or 2.0 of the .npy format")
    begin = version_end + width
    length = int.from_bytes(data[version_end:begin], "little")
    if len(data) < begin + length:
        raise ValueError("its header is cut off")
    return parse_header(bytes(data[begin : begin + length]), begin + length)


def parse_npy(data: bytes | memoryview) -> np.ndarray:
    """The array of a .npy file, sharing memory with `data`; raises ValueError unless `data` is exactly one file."""
    header = npy_header(data)
    if len(data) != header.end:
        raise ValueError(f"it has {len(data)} bytes instead of {header.end}")
    return npy_values(data, header)


def npy_values(data: bytes | memoryview, header: Header) -> np.ndarray:
    """The array that follows a header, sharing memory with `data`; raises ValueError if values are missing."""
    if len(data) < header.end:
        raise ValueError(f"it has {len(data)} bytes instead of {header.end}")
    return np.ndarray(header.shape, header.dtype, data, header.start, order="F" if header.fortran_order else "C")


@functools.lru_cache(maxsize=65536)
def parse_header(text: bytes, start: int) -> Header:
    """Parse a header's dictionary: a Python literal of strings, booleans and integers, which is almost JSON."""
    try:
        literal = text.decode("latin-1").translate(_AS_JSON).replace("False", "false").replace("True", "true")
        found = json.loads(re.sub(r",\s*(?=[\]}])", "", literal))
        descr, fortran_order, shape = (found[key] for key in ("descr", "fortran_order", "shape"))
    except (ValueError, TypeError, LookupError, RecursionError):
        raise ValueError("its header cannot be parsed") from None
    if not isinstance(descr, str) or not _NUMBERS.fullmatch(descr):
        raise ValueError(f"it contains {descr!r}, not numbers")
    if not isinstance(shape, list) or not all(type(size) is int and 0 <= size <= _LONGEST for size in shape):
        raise ValueError(f"its shape {shape!r} is invalid")
    try:
        dtype = np.dtype(descr)
    except TypeError:
        raise ValueError(f"it contains {descr!r}, which is not a numeric dtype") from None
    return Header(dtype, tuple(shape), bool(fortran_order), start, start + math.prod(shape) * dtype.itemsize)
