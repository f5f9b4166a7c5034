"""The .npy format: what numpy saves is read as numpy reads it, all else is refused, in any number of threads."""

import ast
import gc
import io
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from hfprep.io import npy_format
from hfprep.io.npy_format import npy_bytes, npy_header, parse_npy

SHAPES = [(), (0,), (1,), (28,), (32, 1280), (2, 0, 3), (2, 3, 4)]


def saved(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def with_header(text: str, values: bytes = b"", version: int = 1) -> bytes:
    header = text.encode()
    return b"\x93NUMPY" + bytes([version, 0]) + len(header).to_bytes(2 * version, "little") + header + values


@pytest.mark.parametrize("dtype", ["<i4", "<i8", "|u1", "|b1", "<f2", "<f4", "<f8", ">f4", "<c8"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("order", ["C", "F"])
def test_what_numpy_saves_is_read_as_numpy_reads_it(dtype: str, shape: tuple[int, ...], order: str) -> None:
    array = np.array(np.random.default_rng(0).integers(0, 100, shape).astype(dtype), order="F" if order == "F" else "C")
    data = saved(array)
    found = parse_npy(data)
    assert (found.dtype, found.shape) == (array.dtype, array.shape)
    np.testing.assert_array_equal(found, np.load(io.BytesIO(data)))
    assert npy_header(data[: npy_format.HEADER_BYTES]).end == len(data)
    assert npy_bytes(array) == saved(np.asarray(array, order="C"))


def test_objects_are_not_written() -> None:
    with pytest.raises(ValueError, match="Python objects"):
        npy_bytes(np.array([object()]))


@pytest.mark.parametrize(
    "data",
    [
        with_header("{'shape': (2,), 'fortran_order': False, 'descr': '<i4'}\n", bytes(8)),
        with_header("{'descr':'<i4','fortran_order':False,'shape':(2,)}", bytes(8)),
        with_header("{'descr': '<i4', 'fortran_order': False, 'shape': (2,), }   \n", bytes(8), version=2),
    ],
    ids=["another order", "no spaces", "version 2"],
)
def test_headers_of_other_writers_are_read(data: bytes) -> None:
    np.testing.assert_array_equal(parse_npy(data), np.load(io.BytesIO(data)))


GOOD = saved(np.arange(28, dtype=np.int32))
REFUSED = {
    "nothing": (b"", "not in the .npy format"),
    "another format": (b"RIFF" + GOOD[4:], "not in the .npy format"),
    "version 9": (GOOD[:6] + b"\x09" + GOOD[7:], "version"),
    "cut in its header": (GOOD[:40], "cut off"),
    "cut in its values": (GOOD[:-1], f"{len(GOOD) - 1} bytes instead of {len(GOOD)}"),
    "followed by more": (GOOD + b"x", f"{len(GOOD) + 1} bytes instead of {len(GOOD)}"),
    "objects": (saved(np.arange(3, dtype=np.float32)).replace(b"<f4", b"|O "), "not numbers"),
    "text": (saved(np.array(["a"])), "not numbers"),
    "fields": (saved(np.zeros(2, [("a", "<i4")])), "not numbers"),
    "no such number": (with_header("{'descr': '<f3', 'fortran_order': False, 'shape': ()}", bytes(3)), "not a numeric"),
    "no shape": (with_header("{'descr': '<f4', 'fortran_order': False}"), "cannot be parsed"),
    "a shape of numbers below 0": (with_header("{'descr': '<f4', 'fortran_order': False, 'shape': (-1,)}"), "shape"),
    "an endless shape": (
        with_header("{'descr': '<f4', 'fortran_order': False, 'shape': (0, 1" + "0" * 40 + ")}"),
        "shape",
    ),
    "code": (with_header("__import__('os').system('true')"), "cannot be parsed"),
    "nested too deep": (with_header("[" * 60_000), "cannot be parsed"),
    "no text": (with_header("\0" * 64), "cannot be parsed"),
}


@pytest.mark.parametrize(("data", "message"), REFUSED.values(), ids=REFUSED)
def test_what_is_no_array_of_numbers_is_refused_with_the_reason(data: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_npy(data)


@pytest.fixture
def switching() -> Iterator[None]:
    """Threads change places whenever Python collects garbage, as they do now and then in a long run."""

    def give_way(phase: str, info: dict[str, int]) -> None:
        time.sleep(0)

    thresholds = gc.get_threshold()
    gc.callbacks.append(give_way)
    gc.set_threshold(5)
    yield
    gc.set_threshold(*thresholds)
    gc.callbacks.remove(give_way)


def test_headers_are_read_without_the_parser_that_threads_break(
    switching: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CPython 3.11 counts the depth of `ast` trees for all threads together, and says SystemError where they differ."""

    def refused(*args: object, **options: object) -> None:
        raise SystemError("AST constructor recursion depth mismatch")

    monkeypatch.setattr(ast, "literal_eval", refused)
    # Each header anew, as if it were another.
    monkeypatch.setattr(npy_format, "parse_header", npy_format.parse_header.__wrapped__)

    def read(depth: int) -> None:
        if depth:
            read(depth - 1)
        else:
            for _ in range(200):
                np.testing.assert_array_equal(parse_npy(GOOD), np.arange(28))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(read, range(8)))
