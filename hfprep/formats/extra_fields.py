"""The source manifest's other fields: stored beside an npy output, and as typed columns in Arrow.

The npy manifests do not have them. `write_extra_fields` writes them to .hfprep/extra.jsonl, one line per planned row,
in source order; `read_extra_fields` joins them with a manifest's entries in one pass.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hfprep.formats.positioned import LineFile
from hfprep.formats.samples import NO_EXTRA
from hfprep.io.atomic import write_lines
from hfprep.io.json_text import is_encodable, json_text
from hfprep.store.layout import PRIVATE, json_line

EXTRA_FIELDS = "extra.jsonl"
INT64 = 2**63
COLUMN_TYPES = ("bool", "int64", "float64", "string")


def extra_path(root: Path) -> Path:
    """The file of an npy output with the other fields."""
    return root / PRIVATE / EXTRA_FIELDS


def write_extra_fields(root: Path, rows: Iterable[tuple[str, str]]) -> None:
    """Write (id, other fields as JSON) of all rows in source order; no file if no row has any."""
    path = extra_path(root)
    any_field = False

    def lines() -> Iterator[bytes]:
        nonlocal any_field
        for sample_id, extra in rows:
            any_field = any_field or extra != NO_EXTRA
            yield json_line({"id": sample_id, "extra": extra})

    write_lines(path, lines())
    if not any_field:
        path.unlink()


def read_extra_fields(root: Path, ids: Iterable[str]) -> Iterator[str]:
    """The other fields of these ids as JSON; "{}" for ids that are not in the file, or if there is no file.

    For ids in source order, the file is read once.
    """
    path = extra_path(root)
    if not path.is_file():
        yield from (NO_EXTRA for _ in ids)
        return
    lines: LineFile | None = None
    with open(path, "rb") as stream:
        for sample_id in ids:
            if lines is None:
                row = next((row for line in stream if (row := json.loads(line))["id"] == sample_id), None)
                if row is not None:
                    yield row["extra"]
                    continue
                lines = LineFile(path)  # not in this order, or from another manifest
                numbers = {json.loads(line)["id"]: number for number, line in enumerate(lines.lines())}
            number = numbers.get(sample_id)
            yield NO_EXTRA if number is None else json.loads(lines.line(number))["extra"]


@dataclass(frozen=True)
class ExtraColumn:
    """A field of the source manifest as a column: its field, the column's name and its Arrow type."""

    field: str
    name: str
    dtype: str

    @classmethod
    def parse(cls, record: Mapping[str, Any]) -> "ExtraColumn":
        """The column of a stored record. Raises KeyError, TypeError or ValueError for anything else."""
        if record["dtype"] not in COLUMN_TYPES:
            raise ValueError(f"{record['dtype']!r} is not the type of a column")
        return cls(str(record["field"]), str(record["name"]), record["dtype"])

    def value(self, extra: Mapping[str, Any]) -> Any:
        """The column's value for a row's fields. Values of another type become JSON text."""
        value = extra.get(self.field)
        if value is None:
            return None
        if self.dtype == "string":
            return value if isinstance(value, str) and is_encodable(value) else json_text(value)
        return float(value) if self.dtype == "float64" else value


class ExtraColumns:
    """Collects the names and types of other fields: call `see` for every row, then `columns`."""

    def __init__(self) -> None:
        self._kinds: dict[str, set[str]] = {}

    def see(self, extra: str) -> None:
        if extra != NO_EXTRA:
            for name, value in json.loads(extra).items():
                self._kinds.setdefault(name, set()).update({_kind(value)} - {"null"})

    def columns(self, taken: Iterable[str]) -> list[ExtraColumn]:
        """A column for each field, with the field's name unless that is taken."""
        used = set(taken)
        columns = []
        for name, kinds in self._kinds.items():
            free = name
            while free in used:
                free = f"extra_{free}"
            used.add(free)
            columns.append(ExtraColumn(name, free, _column_type(kinds)))
        return columns


def rebuilt(columns: Iterable[ExtraColumn], values: Mapping[str, Any]) -> str:
    """The JSON object restored from typed columns, which may differ from the original."""
    extra = {column.field: values[column.name] for column in columns if values[column.name] is not None}
    return json_text(extra) if extra else NO_EXTRA


def _kind(value: Any) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "bool"
        case int():
            return "int64" if -INT64 <= value < INT64 else "json"
        case float():
            return "float64"
        case str():
            return "string"
    return "json"


def _column_type(kinds: set[str]) -> str:
    if len(kinds) == 1 and "json" not in kinds:
        return next(iter(kinds))
    return "float64" if kinds == {"int64", "float64"} else "string"
