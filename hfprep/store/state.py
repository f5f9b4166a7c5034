"""The record of finished samples: one row per sample in an SQLite database inside the output directory.

For each finished column group, a row has the fingerprint it was computed with and the lengths of its columns. It is
written after the artifacts are in place and cleared before they are overwritten, so it never claims more than is on
disk. Memory does not grow with the number of rows.
"""

import contextlib
import functools
import json
import logging
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hfprep.errors import Reason, StoreError
from hfprep.io.atomic import observe
from hfprep.io.chunks import chunks_of
from hfprep.io.json_file import DAMAGED
from hfprep.schema import MAX_LENGTH, MAX_SECONDS, Rejection, Schema
from hfprep.store.first_version import migrate
from hfprep.store.values import Parse, as_stored, whole_number

log = logging.getLogger(__name__)

STATE_VERSION = 2
_SCHEMA = """
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS samples (
    id TEXT PRIMARY KEY, finished TEXT NOT NULL DEFAULT '{}', seconds REAL, source TEXT
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS shard_files (
    serial INTEGER PRIMARY KEY, split TEXT NOT NULL, number INTEGER NOT NULL, name TEXT NOT NULL,
    samples INTEGER NOT NULL, used INTEGER NOT NULL, num_bytes INTEGER NOT NULL, sha256 TEXT NOT NULL,
    layout TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS places (
    id TEXT PRIMARY KEY, shard INTEGER NOT NULL, row INTEGER NOT NULL, start INTEGER NOT NULL, size INTEGER NOT NULL,
    entry BLOB NOT NULL, stale TEXT NOT NULL DEFAULT '[]'
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS places_by_shard ON places (shard, row);
"""
_SCAN_SCHEMA = """
CREATE TABLE scanned (id TEXT PRIMARY KEY, line INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE rejected (line INTEGER PRIMARY KEY, id TEXT, reason TEXT NOT NULL, message TEXT NOT NULL);
"""
_SELECT_SAMPLES = "SELECT id, finished, seconds, source FROM samples WHERE id IN (SELECT value FROM json_each(?))"
_FINISH = """
INSERT INTO samples (id, finished, seconds, source) VALUES (?, ?, ?, ?) ON CONFLICT (id) DO UPDATE SET
    finished = json_patch(finished, excluded.finished),
    seconds = coalesce(excluded.seconds, seconds), source = coalesce(excluded.source, source)
"""
SELECTED_TOGETHER = 512
# Damaged text is detected when it is parsed.
_read_text = functools.partial(str, encoding="utf-8", errors="replace")
BUSY_SECONDS = 600.0  # that one connection waits for another; reads and commits take milliseconds on a working disk


class Finished(NamedTuple):
    """A finished group of a sample: the fingerprint it was computed with, and the lengths of its columns."""

    fingerprint: str
    lengths: dict[str, int]


class SampleState(NamedTuple):
    """The database's row of one sample; `groups` has only finished groups."""

    groups: dict[str, Finished]
    seconds: float | None = None
    source: str | None = None

    @property
    def finished(self) -> frozenset[str]:
        """The groups that are finished, with any fingerprint."""
        return frozenset(self.groups)

    @property
    def computed_from(self) -> dict[str, Any]:
        """`source` as an object (see `source_of`); empty if it is unknown or damaged."""
        with contextlib.suppress(ValueError, TypeError, RecursionError):
            return dict(json.loads(self.source or "{}"))
        return {}

    @property
    def lengths(self) -> dict[str, int]:
        """The lengths of the columns of all finished groups."""
        return {name: length for group in self.groups.values() for name, length in group.lengths.items()}

    @property
    def fingerprints(self) -> dict[str, str]:
        return {name: group.fingerprint for name, group in self.groups.items()}

    def missing(self, wanted: Mapping[str, str]) -> frozenset[str]:
        """The groups whose stored fingerprint is not the wanted one."""
        groups = self.groups
        missing = [name for name, wish in wanted.items() if name not in groups or groups[name][0] != wish]
        return frozenset(missing)


def parse_sample(schema: Schema, finished: str, seconds: float | None, source: str | None) -> SampleState:
    """A sample's state from its row in the database; raises ValueError if that is damaged.

    Groups that the schema does not have are left out.
    """
    groups = {}
    try:
        for name, (fingerprint, lengths) in json.loads(finished).items():
            expected = schema.group_lengths.get(name)
            if expected is None:
                continue
            if not isinstance(fingerprint, str):
                raise ValueError("a fingerprint is not text")
            if lengths.keys() != expected:
                raise ValueError(f"the lengths of {name} are not those of its columns")
            for length in lengths.values():
                if type(length) is not int or not 0 <= length <= MAX_LENGTH:
                    raise ValueError("a length is not a whole number, or too large")
            groups[name] = Finished(fingerprint, lengths)
    except (TypeError, AttributeError, RecursionError) as error:
        raise ValueError(str(error)) from error
    if source is not None and not (isinstance(source, str) and source.startswith("{") and source.endswith("}")):
        raise ValueError("its source is not a JSON object")
    if seconds is not None and not (isinstance(seconds, float | int) and 0 <= seconds <= MAX_SECONDS):
        raise ValueError("its length in seconds is not a number, or out of range")
    return SampleState(groups, seconds, source)


class SampleReader:
    """Reads the samples of a state that another connection may write to. Use from one thread at a time."""

    def __init__(self, path: Path, schema: Schema) -> None:
        self.path = path
        self.schema = schema
        with _explained(path):
            self._db = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=BUSY_SECONDS)
            self._db.text_factory = _read_text

    def close(self) -> None:
        self._db.close()

    def samples(self, sample_ids: Iterable[str]) -> tuple[list[SampleState | None], list[str]]:
        """The committed state of each of these samples, in order, and the ids whose rows are damaged: they have None.

        `State.samples` removes damaged rows.
        """
        found: list[SampleState | None] = []
        damaged = []
        for block in chunks_of(sample_ids, SELECTED_TOGETHER):
            known = {}
            for sample_id, *values in _selected(self._db, self.path, block):
                try:
                    known[sample_id] = parse_sample(self.schema, *values)
                except ValueError:
                    damaged.append(sample_id)
            found += map(known.get, block)
        return found, damaged


class State:
    """The database of one output directory, for samples of one schema. Use from one thread at a time.

    Data of this run only (ids seen, rejections) is kept in a separate temporary database, the new file `scan`; None
    keeps it in memory.
    """

    def __init__(self, path: Path, schema: Schema, scan: Path | None = None) -> None:
        self.path = path
        self.schema = schema
        with _explained(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                self._db = _open(path)
            except sqlite3.DatabaseError as error:
                if isinstance(error, sqlite3.OperationalError):  # locked, full, read-only: not the file's content
                    raise
                aside = path.with_name(path.name + ".damaged")
                path.replace(aside)
                log.warning("%s: %s; it was renamed to %s; no sample counts as finished", path, error, aside.name)
                self._db = _open(path)
            self._scan = sqlite3.connect(scan or ":memory:", isolation_level=None, check_same_thread=False)
            self._scan.execute("PRAGMA journal_mode=OFF")
            self._scan.executescript(_SCAN_SCHEMA)
            self._scan.execute("BEGIN")  # never committed: not needed after this process
        version = self.get("version", whole_number)
        if version is None:
            self.put("version", STATE_VERSION)
        elif version == 1:
            log.info("%s was written by hfprep 0.1.0; it is converted to the current format", path)
            with self.transaction():
                migrate(self._db)
                self.put("version", STATE_VERSION)
        elif version != STATE_VERSION:
            raise StoreError(
                f"{path} was written by another version of hfprep (format {version}); use a new --output-dir"
            )

    def close(self) -> None:
        self._db.close()
        self._scan.close()

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """Commit all changes made inside together, or none of them."""
        with _explained(self.path):
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                observe("before-commit", self.path)
                self._db.execute("COMMIT")
                observe("after-commit", self.path)
            except BaseException:
                if self._db.in_transaction:
                    with contextlib.suppress(sqlite3.Error):  # report the first error
                        self._db.execute("ROLLBACK")
                raise

    def query(self, statement: str, *values: Any) -> list[tuple[Any, ...]]:
        """The rows that a statement returns; for other modules' tables."""
        with _explained(self.path):
            return self._db.execute(statement, values).fetchall()

    def query_many(self, statement: str, rows: Iterable[Sequence[Any]]) -> None:
        """Execute a statement once for each row of values."""
        with _explained(self.path):
            self._db.executemany(statement, rows)

    def get(self, key: str, parse: Parse = as_stored) -> Any:
        """What `parse` makes of the value stored under `key`; None if there is none, or if it is damaged."""
        with _explained(self.path):
            return _value(self._db, self.path, key, parse)

    def put(self, key: str, value: Any) -> None:
        """Store a JSON value under `key`; writes nothing if it is unchanged."""
        if self.get(key) == value:
            return
        with _explained(self.path):
            self._db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, json.dumps(value)))

    def sample(self, sample_id: str) -> SampleState | None:
        return next(self.samples([sample_id]))

    def samples(self, sample_ids: Iterable[str]) -> Iterator[SampleState | None]:
        """The stored state of each of these samples, in order."""
        for block in chunks_of(sample_ids, SELECTED_TOGETHER):
            known = {row[0]: self._parsed(*row) for row in _selected(self._db, self.path, block)}
            yield from map(known.get, block)

    def _parsed(self, sample_id: str, *values: Any) -> SampleState | None:
        """A sample's state; None if its row is damaged, which is then removed."""
        try:
            return parse_sample(self.schema, *values)
        except ValueError as error:
            log.warning("%s: the row of sample %r is damaged (%s); it is computed again", self.path, sample_id, error)
            with _explained(self.path):
                self._db.execute("DELETE FROM samples WHERE id = ?", (sample_id,))
            return None

    def is_empty(self) -> bool:
        with _explained(self.path):
            return self._db.execute("SELECT 1 FROM samples LIMIT 1").fetchone() is None

    def first_lines(self, ids: Sequence[tuple[str, int]]) -> list[int]:
        """The line that each id was first seen on in this scan, given with its own line: that one, if the id is new."""
        with _explained(self.path):
            new = self._scan.executemany("INSERT OR IGNORE INTO scanned VALUES (?, ?)", ids).rowcount
            if new == len(ids):
                return [line for _, line in ids]
            select = "SELECT line FROM scanned WHERE id = ?"
            return [self._scan.execute(select, (sample_id,)).fetchone()[0] for sample_id, _ in ids]

    def reject(self, rejection: Rejection) -> None:
        """Store a rejection, at most one per line."""
        row = (rejection.line, rejection.id, rejection.reason.value, rejection.message)
        with _explained(self.path):
            self._scan.execute("INSERT OR REPLACE INTO rejected VALUES (?, ?, ?, ?)", row)

    def rejections(self) -> Iterator[Rejection]:
        """All rejections, by line."""
        with _explained(self.path):
            for line, sample_id, reason, message in self._scan.execute("SELECT * FROM rejected ORDER BY line"):
                yield Rejection(line, sample_id, Reason(reason), message)

    def rejection_counts(self) -> dict[str, int]:
        """How many lines were rejected for each reason."""
        with _explained(self.path):
            return dict(self._scan.execute("SELECT reason, count(*) FROM rejected GROUP BY reason ORDER BY reason"))

    def begin(self, samples: Iterable[tuple[str, Iterable[str]]]) -> None:
        """Record that these groups are about to be overwritten: until `finish` they do not count as finished."""
        rows = [(sample_id, json.dumps(dict.fromkeys(groups))) for sample_id, groups in samples]
        with _explained(self.path):
            self._db.executemany("INSERT OR IGNORE INTO samples (id) VALUES (?)", ((row[0],) for row in rows))
            self._db.executemany("UPDATE samples SET finished = json_patch(finished, ?2) WHERE id = ?1", rows)

    def finish(
        self,
        sample_id: str,
        groups: Mapping[str, Finished],
        *,
        seconds: float | None = None,
        source: str | None = None,
    ) -> None:
        """Record that the columns of these groups are on disk; other groups, and None values, do not change."""
        with _explained(self.path):
            self._db.execute(_FINISH, (sample_id, json.dumps(groups), seconds, source))


def read_value(path: Path, key: str, parse: Parse = as_stored) -> Any:
    """A value of the state at `path`, as `State.get` returns it, without writing to disk; None if there is no file."""
    if not path.is_file():
        return None
    with (
        _explained(path),
        contextlib.closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as database,
    ):
        return _value(database, path, key, parse)


def copy_state(source: Path, target: Path) -> None:
    """A consistent copy of a database that may be open elsewhere. Raises StoreError."""
    try:
        reading = sqlite3.connect(f"{source.absolute().as_uri()}?mode=ro", uri=True)
        writing = sqlite3.connect(target)
        try:
            reading.backup(writing)
        finally:
            reading.close()
            writing.close()
    except sqlite3.Error as error:
        raise StoreError(
            f"the state in {source} cannot be copied to {target}: {error}; check the disk of {target}"
        ) from error


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn an error of the database at `path` into a StoreError that says what to do."""
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        advice = "check that its disk has free space and is writable, then run the same command again"
        if "malformed" in str(error) or "not a database" in str(error):
            advice = "move it away and run the same command again (with --skip-existing to adopt what is on disk)"
        raise StoreError(f"the state in {path} cannot be used: {error}; {advice}") from error


def _selected(db: sqlite3.Connection, path: Path, ids: Sequence[str]) -> list[tuple[Any, ...]]:
    """The rows of these samples that exist."""
    with _explained(path):
        return db.execute(_SELECT_SAMPLES, (json.dumps(ids),)).fetchall()


def _value(db: sqlite3.Connection, path: Path, key: str, parse: Parse) -> Any:
    row = db.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
    try:
        return None if row is None else parse(json.loads(row[0]))
    except DAMAGED as error:
        log.warning("%s: the value of %r is damaged (%r) and counts as missing", path, key, error)
        return None


def _open(path: Path) -> sqlite3.Connection:
    db = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
    db.text_factory = _read_text
    try:
        db.execute("PRAGMA journal_mode=TRUNCATE")
        db.execute("PRAGMA synchronous=FULL")
        db.executescript(_SCHEMA)
        db.execute("PRAGMA cache_size=-65536")
    except BaseException:
        db.close()
        raise
    return db
