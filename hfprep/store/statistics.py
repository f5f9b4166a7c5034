"""stats.json and what it is made from: counts, provenance, codebook use."""

import importlib.metadata
import json
import math
import platform
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from hfprep.store.atomic import write_bytes

PACKAGES = (
    "hfprep",
    "torch",
    "torchaudio",
    "transformers",
    "datasets",
    "numpy",
    "soundfile",
    "sentencepiece",
    "kaldifst",
)


def package_versions() -> dict[str, str]:
    """Versions of Python and of the packages that the numbers depend on; absent ones are left out."""
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def codebook_use(paths: Iterable[Path], size: int) -> dict[str, Any]:
    """How the codes in these .npy files spread over a codebook of `size` rows: size, used, perplexity."""
    counts = np.zeros(size, np.int64)
    with ThreadPoolExecutor(4) as pool:
        for block in _blocks(paths, 4096):
            for codes in pool.map(np.load, block):
                counts += np.bincount(codes, minlength=size)[:size]
    return {"size": size, "used": int((counts > 0).sum()), "perplexity": perplexity(counts)}


def perplexity(counts: np.ndarray) -> float:
    """exp of the entropy of frequencies, int64 (codebook rows,): as many equally frequent rows are as uncertain."""
    shares = counts[counts > 0] / max(1, counts.sum())
    return round(math.exp(-float((shares * np.log(shares)).sum())), 3)


def _blocks(paths: Iterable[Path], length: int) -> Iterable[list[Path]]:
    block: list[Path] = []
    for path in paths:
        block.append(path)
        if len(block) == length:
            yield block
            block = []
    yield block


def write_stats(path: Path, stats: Mapping[str, Any]) -> None:
    """Replace stats.json."""
    write_bytes(path, json.dumps(stats, indent=2, ensure_ascii=False).encode() + b"\n")
