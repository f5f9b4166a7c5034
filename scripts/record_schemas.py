"""Writes schemas/record-<recipe>.schema.json for every recipe, from its Schema. Run it after changing one.

usage: python scripts/record_schemas.py
"""

import json
from pathlib import Path
from typing import Any

from hfprep.recipes.registry import NAMES, recipe
from hfprep.schema import Schema

ROOT = Path(__file__).resolve().parent.parent
METADATA = {
    "id": ("Sample id", "The input manifest's id, as a string. Each id is either in train or in val.", "string"),
    "audio_path": ("Audio path", "The value of audio in the input manifest, without a leading ./.", "string"),
    "text": ("Transcript", "The input manifest's text, unchanged.", "string"),
    "speaker": ("Speaker", "The input manifest's speaker, or null.", ["string", "null"]),
    "language": (
        "Language",
        "The language used: --language, else the row's `language`, else null.",
        ["string", "null"],
    ),
    "duration": (
        "Duration",
        "Seconds: the value in the input manifest, else the length of the decoded audio.",
        ["number", "null"],
    ),
}  # fmt: skip


def record_schema(schema: Schema, optional: frozenset[str] = frozenset()) -> dict[str, Any]:
    """The JSON Schema of a recipe's manifest records; columns of `optional` groups may be missing."""
    properties: dict[str, Any] = {}
    absent: set[str] = set()
    for name, (title, description, kind) in METADATA.items():
        properties[name] = {"title": title, "description": description, "type": kind}
        if kind == "string":
            properties[name]["minLength"] = 1
    properties["duration"]["minimum"] = 0
    for column in schema.columns:
        shape = ", ".join(map(str, column.dims)) + ("," if len(column.dims) == 1 else "")
        properties[f"{column.name}_path"] = {
            "title": f"File of {column.name}",
            "description": f"NumPy file, {column.dtype}, shape ({shape}): {column.about}.",
            "type": "string",
            "pattern": f"^{column.name}/.+\\.npy$",
        }
        if column.group in optional:
            absent |= {f"{column.name}_path", *column.lengths}
        for length in column.lengths:
            properties.setdefault(length, {
                "title": f"Length {length}",
                "description": f"The dimension {length} of {column.name}, without padding.",
                "type": "integer",
                "minimum": 1,
            })  # fmt: skip
    for item in schema.record_fields:
        properties[item.name] = {
            "title": item.name,
            "description": f"Follows from the record's {item.source}.",
            "enum": sorted({*item.values.values(), item.default}),
        }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"urn:hfprep:schema:record-{schema.recipe}",
        "title": f"Output record of {schema.recipe}",
        "description": "One line of train_manifest.jsonl or val_manifest.jsonl: one complete sample, listed only when "
        "all its files are on disk. Lines are in the order of the input manifest. Paths are relative to the "
        "manifest's folder, with forward slashes.",
        "type": "object",
        "properties": properties,
        "required": [name for name in properties if name not in absent],
        "additionalProperties": False,
    }


def files() -> dict[Path, str]:
    """The expected content of the schema files, by path."""
    found = {}
    for made in map(recipe, NAMES):
        content = record_schema(made.published, made.optional)
        found[ROOT / "schemas" / f"record-{made.name}.schema.json"] = json.dumps(content, indent=2) + "\n"
    return found


if __name__ == "__main__":
    for path, content in files().items():
        path.write_text(content, encoding="utf-8")
