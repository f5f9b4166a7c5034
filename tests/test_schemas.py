"""schemas/ against the code and against what a real build writes."""

import copy
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

import hfprep
from hfprep.errors import Reason, RejectedSample
from hfprep.inputs.manifest.rows import AudioFinder, check_id, parse_line
from hfprep.schema import Rejection, Utterance, manifest_record, metadata_of
from scripts.record_schemas import files
from tests.sample_schemas import speech_schema

RECORD = "record-indextts-2"
SCHEMA = speech_schema()
LENGTHS = {"text_len": 4, "code_len": 124, "condition_len": 32}
SCHEMAS = Path(__file__).resolve().parent.parent / "schemas"
NAMES = ("manifest", RECORD, "rejected", "stats")


def schema(name: str) -> dict[str, Any]:
    return json.loads((SCHEMAS / f"{name}.schema.json").read_text(encoding="utf-8"))


def faults(name: str, document: Any) -> list[str]:
    """Where a document departs from a schema, one line a fault."""
    found = Draft202012Validator(schema(name)).iter_errors(document)
    return [f"{'/'.join(map(str, error.absolute_path))}: {error.message}" for error in found]


def json_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("path", sorted(SCHEMAS.iterdir()), ids=lambda path: path.name)
def test_every_schema_is_valid_and_named_after_its_file(path: Path) -> None:
    name = path.name.removesuffix(".schema.json")
    document = schema(name)
    Draft202012Validator.check_schema(document)
    assert document["$id"] == f"urn:hfprep:schema:{name}"
    assert document["title"]
    assert document["description"]


@pytest.mark.parametrize("name", NAMES)
def test_schemas_describe_every_field(name: str) -> None:
    document = schema(name)
    assert set(document["required"]) <= set(document["properties"])
    for field, description in document["properties"].items():
        assert description.get("title"), f"{name}: {field} has no title"
        assert description.get("description"), f"{name}: {field} has no description"


@pytest.mark.parametrize("path", files(), ids=lambda path: path.name)
def test_record_schemas_follow_from_the_recipes(path: Path) -> None:
    assert path.read_text(encoding="utf-8") == files()[path], "run python scripts/record_schemas.py"


def test_reasons_are_those_of_the_code() -> None:
    reasons = [reason.value for reason in Reason]
    assert [choice["const"] for choice in schema("rejected")["properties"]["reason"]["oneOf"]] == reasons
    assert all(choice["description"] for choice in schema("rejected")["properties"]["reason"]["oneOf"])
    assert schema("stats")["properties"]["rejected"]["propertyNames"]["enum"] == reasons


@pytest.mark.parametrize("reason", Reason)
def test_a_rejection_of_each_reason_is_valid(reason: Reason) -> None:
    assert faults("rejected", Rejection(3, None, reason, "what was found").record()) == []


@pytest.mark.parametrize(
    "change", [{"line": 0}, {"line": "3"}, {"id": 7}, {"reason": "bad"}, {"message": ""}, {"more": 1}], ids=str
)
def test_a_wrong_rejection_is_seen(change: dict[str, Any]) -> None:
    right = Rejection(3, "a", Reason.AUDIO_EMPTY, "the file holds no samples").record()
    assert faults("rejected", right | change)


def test_records_are_valid() -> None:
    full = Utterance(1, "a/b", "Hello.", "./wavs/b.wav", "wavs/b.wav", "s1", "en", 2.5)
    bare = Utterance(2, "7", "Hello.", "b.wav", "b.wav")
    for utterance in (full, bare):
        record = manifest_record(SCHEMA, metadata_of(utterance, 2.48), LENGTHS)
        assert faults(RECORD, record) == []
        assert list(record) == schema(RECORD)["required"]


@pytest.mark.parametrize(
    "change",
    [{"text_len": 0}, {"code_len": 1.5}, {"codes_path": "text_ids/a.npy"}, {"duration": -1}, {"id": 7}, {"more": 1}],
    ids=str,
)
def test_a_wrong_record_is_seen(change: dict[str, Any]) -> None:
    utterance = Utterance(1, "a", "Hello.", "a.wav", "a.wav")
    record = manifest_record(SCHEMA, metadata_of(utterance, 2.48), LENGTHS)
    assert faults(RECORD, record | change)


@pytest.mark.parametrize("field", ["id", "audio_path", "text_len", "emo_vec_path"])
def test_a_record_without_a_field_is_seen(field: str) -> None:
    utterance = Utterance(1, "a", "Hello.", "a.wav", "a.wav")
    record = manifest_record(SCHEMA, metadata_of(utterance, 2.48), LENGTHS)
    del record[field]
    assert faults(RECORD, record) == [f": '{field}' is a required property"]


def test_the_golden_manifest_is_valid(golden_small: Path) -> None:
    lines = json_lines(golden_small / "manifest.jsonl")
    assert len(lines) == 8
    assert [fault for line in lines for fault in faults("manifest", line)] == []


RIGHT = {"id": "a", "text": "Hello.", "audio": "a.wav"}


@pytest.mark.parametrize(
    ("row", "valid"),
    [
        (RIGHT, True),
        (RIGHT | {"id": 42}, True),
        (RIGHT | {"id": "a/b.c d"}, True),
        (RIGHT | {"id": "…/ü"}, True),
        (RIGHT | {"speaker": "s", "language": "en", "duration": 1.5}, True),
        (RIGHT | {"speaker": None, "language": None, "duration": None}, True),
        (RIGHT | {"speaker": 7, "duration": 0}, True),
        (RIGHT | {"mood": ["glad", 1]}, True),
        ([RIGHT], False),
        ({"id": "a", "text": "Hello."}, False),
        ({"text": "Hello.", "audio": "a.wav"}, False),
        (RIGHT | {"id": None}, False),
        (RIGHT | {"id": True}, False),
        (RIGHT | {"id": 1.5}, False),
        (RIGHT | {"id": "../a"}, False),
        (RIGHT | {"id": "/a"}, False),
        (RIGHT | {"id": "a\n"}, False),
        (RIGHT | {"text": None}, False),
        (RIGHT | {"text": " \u3000"}, False),
        (RIGHT | {"audio": ""}, False),
        (RIGHT | {"audio": None}, False),
        (RIGHT | {"audio": "a\0.wav"}, False),
        (RIGHT | {"speaker": ["s"]}, False),
        (RIGHT | {"language": 1.5}, False),
        (RIGHT | {"duration": -1}, False),
        (RIGHT | {"duration": "2"}, False),
    ],
    ids=str,
)
def test_reader_and_schema_agree_on_a_line(row: Any, valid: bool, tmp_path: Path) -> None:
    finder = AudioFinder(tmp_path / "manifest.jsonl")
    assert isinstance(parse_line(1, json.dumps(row).encode(), finder, None), Utterance) is valid
    assert (faults("manifest", row) == []) is valid


PIECES = ["a", "é", ".", "..", "/", ".npy", "\\", "\n", "\0", "\x7f", " ", ":"]


@given(st.lists(st.sampled_from(PIECES), max_size=6).map("".join))
def test_reader_and_schema_agree_on_an_id(sample_id: str) -> None:
    try:
        check_id(sample_id)
        valid = True
    except RejectedSample:
        valid = False
    assert (faults("manifest", RIGHT | {"id": sample_id}) == []) is valid


@dataclass(frozen=True)
class Build:
    """A finished build: its folder, its stats, and how many lines its manifest has."""

    output: Path
    stats: dict[str, Any]
    lines: int


BAD_LINES = [
    b"{not json",
    b'{"id": "no-audio", "text": "Hello."}',
    b'{"id": "synth0", "text": "Again.", "audio": "a.wav"}',
    b'{"id": "../out", "text": "Hello.", "audio": "a.wav"}',
    b'{"id": "empty", "text": " ", "audio": "a.wav"}',
    b'{"id": "gone", "text": "Hello.", "audio": "no-such-file.wav"}',
    b'{"id": "latin-1", "text": "\xe9", "audio": "a.wav"}',
]
BAD_REASONS = {
    "invalid_json": 1,
    "missing_field": 1,
    "duplicate_id": 1,
    "invalid_id": 1,
    "empty_text": 1,
    "audio_missing": 1,
    "invalid_encoding": 1,
}


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory, golden_small: Path) -> Build:
    """The real build on the golden recordings and a line of each kind that it must refuse."""
    folder = tmp_path_factory.mktemp("schemas")
    good = json_lines(golden_small / "manifest.jsonl")
    for row in good:
        row["audio"] = str(golden_small / row["audio"])
    lines = [json.dumps(row).encode() for row in good] + BAD_LINES
    (folder / "manifest.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    models, output = golden_small / "checkpoints", folder / "out"
    hfprep.build(
        hfprep.BuildConfig(manifest=folder / "manifest.jsonl", models=models, output_dir=output, val_ratio=0.3)
    )
    stats = json.loads((output / "stats.json").read_text(encoding="utf-8"))
    return Build(output, stats, len(lines))


@pytest.mark.parametrize("split", ["train", "val"])
def test_what_a_build_lists_is_valid(build: Build, split: str) -> None:
    records = json_lines(build.output / f"{split}_manifest.jsonl")
    assert records
    assert [fault for record in records for fault in faults(RECORD, record)] == []
    assert len(records) == build.stats[split]


def test_what_a_build_rejects_is_valid(build: Build) -> None:
    rejections = json_lines(build.output / "rejected.jsonl")
    assert [fault for rejection in rejections for fault in faults("rejected", rejection)] == []
    assert sorted(rejection["line"] for rejection in rejections) == list(range(9, 16))


def test_the_stats_of_a_build_are_valid_and_add_up(build: Build) -> None:
    stats = build.stats
    assert faults("stats", stats) == []
    assert {reason: count for reason, count in stats["rejected"].items() if count} == BAD_REASONS
    assert stats["accepted"] == stats["total"] == stats["train"] + stats["val"] == 8
    assert stats["pending"] == 0
    assert stats["accepted"] + sum(stats["rejected"].values()) + stats["capped"] == stats["lines_read"] == build.lines


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("total", -1),
        ("hours", "1.5"),
        ("precision", ""),
        ("sha256", {}),
        ("sha256/gpt", "not a checksum"),
        ("versions/torch", None),
        ("rejected/no_such_reason", 1),
        ("codebook/used", 1.5),
        ("overlong/more", 1),
        ("more", 1),
    ],
)
def test_wrong_stats_are_seen(build: Build, path: str, value: Any) -> None:
    stats = copy.deepcopy(build.stats)
    *parents, last = path.split("/")
    target = stats
    for name in parents:
        target = target[name]
    target[last] = value
    assert faults("stats", stats)


@pytest.mark.parametrize("field", ["total", "sha256", "versions", "rejected", "codebook", "settings"])
def test_stats_without_a_field_are_seen(build: Build, field: str) -> None:
    stats = {name: value for name, value in build.stats.items() if name != field}
    assert faults("stats", stats) == [f": '{field}' is a required property"]
