"""The state of an output, read without changing anything: no lock is taken, no damaged file is set aside."""

import contextlib
import json
import sqlite3
from pathlib import Path
from typing import Any

from hfprep.store.first_version import migrate
from hfprep.store.state import SampleState, parse_sample

_SELECT = "SELECT finished, seconds, source FROM samples WHERE id = ?"


class StateReader:
    """Reads the database at `path`; sqlite3.DatabaseError, at once, where SQLite's own check finds damage."""

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
        """A value that the build keeps under `key`, None if there is none."""
        row = self._db.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        return None if row is None else json.loads(row[0])

    def sample(self, sample_id: str) -> SampleState | None:
        """What the state holds of a sample; of a row that is damaged nothing counts as finished."""
        row = self._db.execute(_SELECT, (sample_id,)).fetchone()
        try:
            return None if row is None else parse_sample(*row)
        except ValueError:
            return SampleState({})


def _migrated(old: sqlite3.Connection) -> sqlite3.Connection:
    """A copy in memory, in the present form, of a database that hfprep 0.1.0 wrote."""
    database = sqlite3.connect(":memory:")
    with contextlib.closing(old):
        old.backup(database)
    migrate(database)
    return database
