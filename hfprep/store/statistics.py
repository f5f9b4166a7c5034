"""stats.json: package versions, codebook use, reading and writing it."""

import functools
import importlib.metadata
import math
import platform
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from hfprep.io.atomic import write_json
from hfprep.io.chunks import chunks_of
from hfprep.io.json_file import read_json
from hfprep.store.layout import READING_THREADS, STATS, NpyOutput

BLOCK = 256  # files read together
PACKAGES = (
    "hfprep",
    "torch",
    "transformers",
    "datasets",
    "numpy",
    "soundfile",
    "sentencepiece",
    "kaldifst",
    "WeTextProcessing",
)


@functools.cache
def package_versions() -> dict[str, str]:
    """Versions of Python and of the packages that the numbers depend on; absent ones are left out."""
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def codebook_use(output: NpyOutput, ids: Iterable[str]) -> dict[str, Any]:
    """How the codes of these samples are spread over the codebook: size, used (rows), perplexity.

    Reads all of their codes. Raises StoreError if one file cannot be read.
    """
    column = next(iter(output.schema.of_kind("codes")), None)
    if column is None or column.size is None:
        return {}
    counts = np.zeros(column.size, np.int64)
    with ThreadPoolExecutor(READING_THREADS) as pool:
        for blocks in chunks_of(chunks_of(ids, BLOCK), READING_THREADS):
            for codes in pool.map(lambda block: _read_codes(output, column.name, block), blocks):
                counts += np.bincount(codes, minlength=column.size)[: column.size]
    return codebook_summary(counts)


def codebook_summary(counts: np.ndarray) -> dict[str, Any]:
    """Codebook use as in stats.json, from frequencies of codes, int64 (codebook rows,)."""
    return {"size": len(counts), "used": int((counts > 0).sum()), "perplexity": perplexity(counts)}


def _read_codes(output: NpyOutput, column: str, ids: Iterable[str]) -> np.ndarray:
    """All codes of these samples, int32 (codes,)."""
    return np.concatenate([output.read(column, sample_id).reshape(-1) for sample_id in ids])


def perplexity(counts: np.ndarray) -> float:
    """Perplexity of frequencies, int64 (codebook rows,): exp of their entropy."""
    shares = counts[counts > 0] / max(1, counts.sum())
    return round(math.exp(-float((shares * np.log(shares)).sum())), 3)


def parse_stats(value: Any) -> dict[str, Any]:
    """The content of a stats.json, in which the parts that are objects are objects. Raises TypeError or ValueError."""
    stats = dict(value)
    for name in ("settings", "sha256", "codebook", "rejected", "versions", "schema"):
        if not isinstance(stats.get(name, {}), dict):
            raise TypeError(f"{name} is not an object")
    if not isinstance(stats.get("settings", {}).get("val_ratio"), float | int | None):
        raise TypeError("val_ratio is not a number")
    return stats


def read_stats(root: Path) -> dict[str, Any] | None:
    """The stats.json of an output, None if there is none; raises StoreError if it is damaged."""
    try:
        return read_json(root / STATS, parse_stats, "run the build again, which writes it")
    except FileNotFoundError:
        return None


def write_stats(path: Path, stats: Mapping[str, Any]) -> None:
    """Replace stats.json."""
    write_json(path, stats)
