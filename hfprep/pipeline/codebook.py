"""How the codes of an output's samples are spread over the codebook, for stats.json.

Codes are counted as batches complete, and the counts are stored in the state and added up over runs as long as every
run only adds samples. If samples changed or were removed, or a run was killed, all codes are read again.
"""

import base64
import zlib
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from hfprep.io.chunks import chunks_of
from hfprep.schema import Features, Schema
from hfprep.store.layout import PROGRESS, NpyOutput
from hfprep.store.state import State
from hfprep.store.statistics import codebook_summary
from hfprep.store.values import whole_number

KEY = "code_counts"  # in the state
SAMPLES_TOGETHER = 256
Counted = tuple[np.ndarray, np.ndarray]  # codes, ascending, and the count of each


def count_codes(schema: Schema, features: Iterable[Features]) -> Counted | None:
    """Distinct codes of some samples and their counts: int64 (distinct codes,) each; None if there are none."""
    columns = [column.name for column in schema.of_kind("codes")[:1]]
    arrays = [item.arrays[name].reshape(-1) for item in features for name in columns if name in item.arrays]
    if not arrays:
        return None
    values, counts = np.unique(np.concatenate(arrays), return_counts=True)
    return values.astype(np.int64), counts


def listed_ids(output: NpyOutput) -> Iterator[str]:
    """Ids of an output's complete samples, in source order."""
    with open(output.root / PROGRESS, encoding="utf-8", newline="\n") as lines:
        yield from (line.rstrip("\n") for line in lines)


class CodebookUse:
    """The code counts of one output: of earlier runs, plus those of this run."""

    def __init__(self, state: State, schema: Schema) -> None:
        self._state = state
        columns = schema.of_kind("codes")[:1]
        self.column = columns[0] if columns and columns[0].size else None
        self.counts = np.zeros(self.column.size if self.column and self.column.size else 0, np.int64)
        self._samples: int | None = 0
        saved: tuple[int, np.ndarray] | None = state.get(KEY, _parse)
        if saved is not None and len(saved[1]) == len(self.counts):
            self._samples, counts = saved
            self.counts += counts

    def begin(self, *, reused: int, changed: bool) -> None:
        """Call before rows are computed: drops saved counts that are not exactly those of the reused samples."""
        if changed or reused != self._samples:
            self._samples = None
        self._state.put(KEY, None)

    def add(self, samples: int, codes: Counted | None) -> None:
        """Add a batch of new samples."""
        if self._samples is None or codes is None:
            return
        np.add.at(self.counts, codes[0], codes[1])
        self._samples += samples

    def summary(self, ids: Iterable[str], count: int, read: Any) -> dict[str, Any]:
        """Codebook use of the listed samples for stats.json; `read(column, ids)` returns codes if they must be read."""
        if self.column is None:
            return {}
        if self._samples != count:
            self.counts[:] = 0
            for block in chunks_of(ids, SAMPLES_TOGETHER):
                codes = read(self.column, block)
                self.counts += np.bincount(codes, minlength=len(self.counts))[: len(self.counts)]
            self._samples = count
        packed = base64.b64encode(zlib.compress(self.counts.tobytes(), 1)).decode()
        self._state.put(KEY, {"size": len(self.counts), "samples": count, "counts": packed})
        return codebook_summary(self.counts)


def _parse(saved: Any) -> tuple[int, np.ndarray]:
    """The number of counted samples, and the count of each code, int64 (codebook size,), as `summary` stores them."""
    try:
        counts = zlib.decompress(base64.b64decode(saved["counts"]))
    except zlib.error as error:
        raise ValueError(str(error)) from error
    return whole_number(saved["samples"]), np.frombuffer(counts, np.int64)
