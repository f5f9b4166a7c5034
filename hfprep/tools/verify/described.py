"""The schema of an npy output, from stats.json or the state, even if one of them is damaged.

Provides `StateReader`, which reads the state without changing anything: it takes no lock and moves no damaged file.
"""

import contextlib
import sqlite3
from collections import Counter
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from hfprep.errors import ConfigError, StoreError
from hfprep.io.json_file import DAMAGED
from hfprep.schema import Schema
from hfprep.store.first_version import first_schema, migrate
from hfprep.store.layout import PRIVATE, STATE_FILE, STATS
from hfprep.store.state import SampleState, parse_sample, read_value
from hfprep.store.statistics import read_stats
from hfprep.tools.verify.arrays import read_npy

WIDTHS_SAMPLED = 101
_SELECT = "SELECT finished, seconds, source FROM samples WHERE id = ?"


def npy_schema(root: Path) -> Schema:
    """The schema stored in an output; that of hfprep 0.1.0, which stored none, if none can be read.

    Raises ConfigError if this is not an output, or the files with its schema are missing.
    """
    with contextlib.suppress(*DAMAGED):
        return Schema.parse(stats_of(root)["schema"])
    with contextlib.suppress(StoreError):
        kept: Schema | None = read_value(root / STATE_FILE, "schema", Schema.parse)
        if kept is not None:
            return kept
    if not any((root / name).exists() for name in (PRIVATE, STATS, *first_schema(0).by_name)):
        if any(root.glob("*_manifest.jsonl")):
            raise ConfigError(
                f"{str(root)!r} has manifests, but neither {STATS} nor {STATE_FILE}, which describe the columns; "
                "run the build again"
            )
        raise ConfigError(f"{str(root)!r} contains no features: no manifests, arrays or export")
    return _of_first_version(root)


def stats_of(root: Path) -> dict[str, Any]:
    """stats.json of an output; empty if it cannot be read."""
    with contextlib.suppress(OSError, StoreError):
        return read_stats(root) or {}
    return {}


def _of_first_version(root: Path) -> Schema:
    schema = first_schema(_usual_width(root))
    size = stats_of(root).get("codebook", {}).get("size")
    if not isinstance(size, int):
        return schema
    columns = (replace(column, size=size) if column.kind == "codes" else column for column in schema.columns)
    return replace(schema, columns=tuple(columns))


def _usual_width(root: Path) -> int:
    """The most common width of the first vectors, because 0.1.0 did not store it."""
    widths: Counter[int] = Counter()
    for column in first_schema(0).of_kind("vector"):
        for path in islice((root / column.name).rglob("*.npy"), WIDTHS_SAMPLED):
            array, _ = read_npy(path)
            if array is not None and array.ndim == column.ndim:
                widths[array.shape[column.dims.index(0)]] += 1
    return widths.most_common(1)[0][0] if widths else 0


class StateReader:
    """Reads the database at `path`. Raises sqlite3.DatabaseError on opening if SQLite's check finds damage."""

    def __init__(self, path: Path, schema: Schema) -> None:
        self.schema = schema
        self._db = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)
        try:
            found = self._db.execute("PRAGMA quick_check(1)").fetchone()[0]
            if found != "ok":
                raise sqlite3.DatabaseError(str(found))
            if read_value(path, "version") == 1:
                self._db = _migrated(self._db)
            self.sample("")
        except BaseException:
            self._db.close()
            raise

    def close(self) -> None:
        self._db.close()

    def sample(self, sample_id: str) -> SampleState | None:
        """The state of a sample; nothing counts as finished in a damaged row."""
        row = self._db.execute(_SELECT, (sample_id,)).fetchone()
        try:
            return None if row is None else parse_sample(self.schema, *row)
        except ValueError:
            return SampleState({})


def _migrated(old: sqlite3.Connection) -> sqlite3.Connection:
    """An in-memory copy of a database of hfprep 0.1.0, migrated to the current schema."""
    database = sqlite3.connect(":memory:")
    with contextlib.closing(old):
        old.backup(database)
    migrate(database)
    return database
