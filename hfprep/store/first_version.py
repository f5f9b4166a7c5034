"""Outputs of hfprep 0.1.0, which contain no schema: their schema, and the migration of their state.

The schema is a data file (schema-0.1.0.json), so that the store does not depend on a recipe.
"""

import json
import sqlite3
from pathlib import Path

from hfprep.schema import Schema

_NAMES = {"arrow": "{split}/data-{number:05d}.arrow", "webdataset": "{split}-{number:06d}.tar"}
_SCHEMA = Path(__file__).with_name("schema-0.1.0.json")


def first_schema(width: int) -> Schema:
    """The schema of an output that contains none; `width` is the dimension of its vectors."""
    return Schema.parse(json.loads(_SCHEMA.read_text(encoding="utf-8").replace('"width"', str(width))))


def width_column() -> str:
    """The column whose only dimension is that width."""
    return next(column.name for column in first_schema(0).columns if column.dims == (0,))


def migrate(database: sqlite3.Connection) -> None:
    """Convert the samples of a version 1 state, which had a SQL column for each group and length, to the current form.

    Runs inside the caller's transaction.
    """
    schema = first_schema(0)
    groups = []
    for name in schema.group_names:
        lengths = dict.fromkeys(length for column in schema.columns_of([name]) for length in column.lengths)
        items = ", ".join(f"'{length}', {length}" for length in lengths)
        finished = f"json_array(lower(hex({name})), json_object({items}))"
        groups.append(f"'{name}', CASE WHEN {name} IS NOT NULL THEN {finished} END")
    database.execute("ALTER TABLE samples RENAME TO samples_1")
    database.execute(
        "CREATE TABLE samples (id TEXT PRIMARY KEY, finished TEXT NOT NULL DEFAULT '{}', seconds REAL, source TEXT) "
        "WITHOUT ROWID"
    )
    # json_patch drops null values: groups that are not finished.
    database.execute(
        f"INSERT INTO samples SELECT id, json_patch('{{}}', json_object({', '.join(groups)})), seconds, source "
        "FROM samples_1"
    )
    if database.execute("SELECT 1 FROM sqlite_master WHERE name = 'packed'").fetchone():
        _migrate_shards(database, schema)
    database.execute("DROP TABLE samples_1")


def _migrate_shards(database: sqlite3.Connection, schema: Schema) -> None:
    """Convert the tables of shards that were written from npy artifacts: their names, and where each sample is.

    Groups of a sample that have been computed again since then are `stale`; their values are in the artifacts.
    """
    kept = database.execute("SELECT value FROM meta WHERE key = 'packed_format'").fetchone()
    name_of = _NAMES[json.loads(kept[0])] if kept is not None and json.loads(kept[0]) else ""
    numbers: dict[str, int] = {}
    rows = database.execute(
        "SELECT serial, split, number, name, samples, num_bytes, sha256 FROM shards "
        "ORDER BY number IS NULL, number, serial"
    ).fetchall()
    for serial, split, place, name, samples, num_bytes, sha256 in rows:
        number = numbers.get(split, 0) if place is None else place
        numbers[split] = max(numbers.get(split, 0), number + 1)
        named = name.partition("/")[2] or name_of.format(split=split, number=number)
        values = (serial, split, number, named, samples, num_bytes, num_bytes, sha256, "")
        database.execute("INSERT INTO shard_files VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", values)
    other = ", ".join(
        f"CASE WHEN packed.{name} IS NOT samples_1.{name} THEN '{name}' END" for name in schema.group_names
    )
    stale = f"(SELECT json_group_array(value) FROM json_each(json_array({other})) WHERE value IS NOT NULL)"
    database.execute(
        "INSERT INTO places (id, shard, row, start, size, entry, stale) "
        f"SELECT packed.id, shard, row, 0, 0, entry, {stale} FROM packed JOIN samples_1 ON samples_1.id = packed.id"
    )
    database.execute("DROP TABLE packed")
    database.execute("DROP TABLE shards")
