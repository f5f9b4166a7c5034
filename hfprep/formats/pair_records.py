"""A pair on disk: a JSON object made from the records of its two utterances.

Voice and emotion come from the prompt (vectors), the content from the target (tokens and codes). The target's vectors
of fixed size are listed too, for trainers that use them instead.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hfprep.formats.npy import NpySet
from hfprep.formats.npz import FEATURES
from hfprep.schema import Column, Schema, record_fields
from hfprep.store.first_version import first_schema

PROMPT, TARGET = "prompt", "target"


def pair_schema(output: Path) -> Schema:
    """The schema of an npy output; if it records none, that of hfprep 0.1.0, without sizes."""
    return NpySet(output).origin.schema or first_schema(0)


def role_of(column: Column) -> str:
    """The half of a pair that a column is taken from."""
    return PROMPT if column.kind == "vector" else TARGET


def path_field(role: str, column: Column) -> str:
    """The field of a pair with the path of a column's file."""
    return f"{role}_{column.name}_path"


def pair_record(schema: Schema, prompt: dict[str, Any], target: dict[str, Any]) -> dict[str, Any]:
    """The record of a pair, from the manifest records of its two utterances.

    Raises KeyError if a record lacks a field.
    """
    vectors = [column for column in schema.columns if role_of(column) == PROMPT]
    spoken = [column for column in schema.columns if role_of(column) == TARGET]
    return {
        "id": f"{target['id']}__{prompt['id']}",
        "speaker": target["speaker"],
        "prompt_id": prompt["id"],
        "prompt_audio_path": prompt["audio_path"],
        **_arrays(PROMPT, vectors, prompt),
        "prompt_duration": prompt["duration"],
        "prompt_language": prompt["language"],
        **{f"prompt_{item.name}": prompt[item.name] for item in schema.record_fields},
        "target_id": target["id"],
        "target_audio_path": target["audio_path"],
        "target_text": target["text"],
        **_arrays(TARGET, spoken, target),
        **_arrays(TARGET, [column for column in vectors if not column.lengths], target),
        "target_language": target["language"],
        **{f"target_{item.name}": target[item.name] for item in schema.record_fields},
    }


def _arrays(role: str, columns: list[Column], record: dict[str, Any]) -> dict[str, Any]:
    """The fields of these columns: each path, followed by the lengths that earlier columns do not have."""
    fields: dict[str, Any] = {}
    for column in columns:
        fields[path_field(role, column)] = record[f"{column.name}_path"]
        for name in column.lengths:
            fields.setdefault(f"{role}_{name}", record[name])
    return fields


def npz_pair_record(prompt: dict[str, Any], target: dict[str, Any], folder: Path | None) -> dict[str, Any]:
    """The record of a pair of .npz files, from two records of `export_npz`.

    With a `folder`, paths are absolute below it.
    """

    def place(features: str) -> str:
        return features if folder is None else (folder / features).as_posix()

    return {
        "id": f"{target['id']}__{prompt['id']}",
        "target_features": place(target["features"]),
        "prompt_features": place(prompt["features"]),
        "speaker": target["speaker"],
        "lang": target["lang"],
        "lang_alias": target["lang_alias"],
        "prompt_lang": prompt["lang"],
        "cross_lingual": prompt["lang"] != target["lang"],
        "text_len": target["text_len"],
        "code_len": target["code_len"],
    }


def read_npz_pair(schema: Schema, pair: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The record of a pair of .npz files, with the field names of `pair_record` as far as it has them.

    Raises KeyError if it lacks a field, ValueError if a file is outside the folder.
    """
    found: dict[str, Any] = {"id": pair["id"], "speaker": pair["speaker"]}
    for role, language in ((PROMPT, pair["prompt_lang"]), (TARGET, pair["lang"])):
        file = folder.absolute() / pair[f"{role}_features"]
        sample_id = file.relative_to(folder.absolute() / FEATURES).with_suffix("").as_posix()
        found |= {f"{role}_features": pair[f"{role}_features"], f"{role}_id": sample_id, f"{role}_language": language}
        found |= {f"{role}_{name}": value for name, value in record_fields(schema, {"language": language}).items()}
    return found | {f"{TARGET}_{name}": pair[name] for name in schema.lengths}
