"""Outputs of hfprep 0.1.0, which do not say what a sample is: their schema, and the migration of their state.

The schema is data (schema-0.1.0.json), so that the store still knows no recipe.
"""

import json
import sqlite3
from pathlib import Path

from hfprep.schema import Schema

_SCHEMA = Path(__file__).with_name("schema-0.1.0.json")


def first_schema(width: int) -> Schema:
    """The schema of an output that does not name one; `width` is that of its vectors."""
    return Schema.parse(json.loads(_SCHEMA.read_text(encoding="utf-8").replace('"width"', str(width))))


def width_column() -> str:
    """The column whose one dimension is that width."""
    return next(column.name for column in first_schema(0).columns if column.dims == (0,))


def migrate(database: sqlite3.Connection) -> None:
    """Give the samples of a state of version 1, which had a SQL column for each group and length, their present form.

    Runs inside a transaction of the caller's.
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
    # A patch leaves out what is null: groups that are not finished.
    database.execute(
        f"INSERT INTO samples SELECT id, json_patch('{{}}', json_object({', '.join(groups)})), seconds, source "
        "FROM samples_1"
    )
    database.execute("DROP TABLE samples_1")
