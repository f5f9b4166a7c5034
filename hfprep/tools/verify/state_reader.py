"""Reads the state of an output without changing anything: takes no lock, moves no damaged file."""

import contextlib
import json
import sqlite3
from pathlib import Path
from typing import Any

from hfprep.store.first_version import migrate
from hfprep.store.state import SampleState, parse_sample

_SELECT = "SELECT finished, seconds, source FROM samples WHERE id = ?"


class StateReader:
    """Reads the database at `path`. Raises sqlite3.DatabaseError on opening if SQLite's check finds damage."""

    def __init__(self, path: Path) -> None:
        self._db = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)
        try:
            found = self._db.execute("PRAGMA quick_check(1)").fetchone()[0]
            if found != "ok":
                raise sqlite3.DatabaseError(str(found))
            if self.get("version") == 1:
                self._db = _migrated(self._db)
            self.sample("")
        except BaseException:
            self._db.close()
            raise

    def close(self) -> None:
        self._db.close()

    def get(self, key: str) -> Any:
        """The value under `key`, None if there is none."""
        row = self._db.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        return None if row is None else json.loads(row[0])

    def sample(self, sample_id: str) -> SampleState | None:
        """The state of a sample; nothing counts as finished in a damaged row."""
        row = self._db.execute(_SELECT, (sample_id,)).fetchone()
        try:
            return None if row is None else parse_sample(*row)
        except ValueError:
            return SampleState({})


def _migrated(old: sqlite3.Connection) -> sqlite3.Connection:
    """An in-memory copy of a database of hfprep 0.1.0, migrated to the current schema."""
    database = sqlite3.connect(":memory:")
    with contextlib.closing(old):
        old.backup(database)
    migrate(database)
    return database
