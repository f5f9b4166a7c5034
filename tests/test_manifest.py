"""Manifest lines: what is read, what is refused and under which reason."""

import json
from pathlib import Path
from typing import Any

import pytest

from hfprep.errors import ConfigError, Reason
from hfprep.inputs.manifest.rows import AudioFinder, numbered_lines, parse_line
from hfprep.schema import Rejection, Utterance

GOOD = {"id": "a", "text": "Hello.", "audio": "a.wav"}


def read(tmp_path: Path, *lines: bytes | dict[str, Any], language: str | None = None) -> list[Utterance | Rejection]:
    manifest = tmp_path / "manifest.jsonl"
    raw = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]
    manifest.write_bytes(b"\n".join(raw) + b"\n")
    finder = AudioFinder(manifest)
    return [parse_line(number, raw, finder, language) for number, raw in numbered_lines(manifest)]


def read_one(tmp_path: Path, line: bytes | dict[str, Any]) -> Utterance | Rejection:
    (item,) = read(tmp_path, line)
    return item


def test_a_full_row_is_read_and_other_fields_are_kept(tmp_path: Path) -> None:
    row = GOOD | {"speaker": "s", "language": "en", "duration": 1.5, "mood": "calm", "take": 2}
    item = read_one(tmp_path, row)
    assert isinstance(item, Utterance)
    assert (item.line, item.id, item.text, item.audio) == (1, "a", "Hello.", "a.wav")
    assert (item.speaker, item.language, item.duration) == ("s", "en", 1.5)
    assert json.loads(item.extra) == {"mood": "calm", "take": 2}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"text": None}, Reason.INVALID_FIELD),
        ({"audio": None}, Reason.INVALID_FIELD),
        ({"id": None}, Reason.INVALID_FIELD),
        ({"id": 1.5}, Reason.INVALID_FIELD),
        ({"id": True}, Reason.INVALID_FIELD),
        ({"text": 5}, Reason.INVALID_FIELD),
        ({"audio": ""}, Reason.INVALID_FIELD),
        ({"audio": "a\0.wav"}, Reason.INVALID_FIELD),
        ({"speaker": ["s"]}, Reason.INVALID_FIELD),
        ({"duration": "long"}, Reason.INVALID_FIELD),
        ({"duration": -1}, Reason.INVALID_FIELD),
        ({"duration": float("nan")}, Reason.INVALID_FIELD),
        ({"duration": 10**400}, Reason.INVALID_FIELD),
        ({"text": "\ud800"}, Reason.INVALID_FIELD),
        ({"text": " \n "}, Reason.EMPTY_TEXT),
        ({"id": ""}, Reason.INVALID_ID),
        ({"id": "../x"}, Reason.INVALID_ID),
        ({"id": "a/../../x"}, Reason.INVALID_ID),
        ({"id": "/etc/x"}, Reason.INVALID_ID),
        ({"id": "a//b"}, Reason.INVALID_ID),
        ({"id": "a/."}, Reason.INVALID_ID),
        ({"id": "a\0b"}, Reason.INVALID_ID),
        ({"id": "a\nb"}, Reason.INVALID_ID),
        ({"id": "a.npy/b"}, Reason.INVALID_ID),
        ({"id": "x" * 252}, Reason.INVALID_ID),
        ({"id": "ä" * 126}, Reason.INVALID_ID),
        ({"id": "/".join(["x" * 200] * 20)}, Reason.INVALID_ID),
        ({"id": "\udc80"}, Reason.INVALID_ID),
    ],
)
def test_a_bad_field_is_rejected_by_its_reason(tmp_path: Path, change: dict[str, Any], reason: Reason) -> None:
    item = read_one(tmp_path, GOOD | change)
    assert isinstance(item, Rejection)
    assert (item.line, item.reason) == (1, reason)
    json.dumps(item.record(), ensure_ascii=False).encode()


@pytest.mark.parametrize(
    "sample_id", ["a/b", "a.b", "x" * 251, "ä" * 125, "a b", "日本語", "..a", "a.npy", "-", "a\\b"]
)
def test_ids_that_name_a_file_inside_are_taken(tmp_path: Path, sample_id: str) -> None:
    item = read_one(tmp_path, GOOD | {"id": sample_id})
    assert isinstance(item, Utterance)
    assert item.id == sample_id


@pytest.mark.parametrize("missing", ["id", "text", "audio"])
def test_a_missing_field_is_named(tmp_path: Path, missing: str) -> None:
    item = read_one(tmp_path, {key: value for key, value in GOOD.items() if key != missing})
    assert isinstance(item, Rejection)
    assert item.reason == Reason.MISSING_FIELD
    assert repr(missing) in item.message


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b'{"id": "a", "text": ', Reason.INVALID_JSON),
        (b'["a"]', Reason.INVALID_JSON),
        (b"null", Reason.INVALID_JSON),
        (b"[" * 100_000, Reason.INVALID_JSON),
        ('{"id": "a", "text": "é", "audio": "a.wav"}'.encode("latin-1"), Reason.INVALID_ENCODING),
        (b"\x00\x01\x02", Reason.INVALID_JSON),
    ],
)
def test_a_line_that_is_no_object_is_rejected(tmp_path: Path, raw: bytes, reason: Reason) -> None:
    item = read_one(tmp_path, raw)
    assert isinstance(item, Rejection)
    assert (item.id, item.reason) == (None, reason)


def test_a_duration_in_whole_seconds_is_a_number_like_the_others(tmp_path: Path) -> None:
    item = read_one(tmp_path, GOOD | {"duration": 4})
    assert isinstance(item, Utterance)
    assert repr(item.duration) == "4.0"  # or it would be listed as 4 before it is computed, and as 4.0 after


def test_integers_become_strings_and_empty_labels_none(tmp_path: Path) -> None:
    item = read_one(tmp_path, GOOD | {"id": 4711, "speaker": 3, "language": "", "duration": None})
    assert isinstance(item, Utterance)
    assert (item.id, item.speaker, item.language, item.duration) == ("4711", "3", None, None)


def test_lines_count_from_one_and_blank_ones_are_no_lines(tmp_path: Path) -> None:
    items = read(tmp_path, b"\xef\xbb\xbf" + json.dumps(GOOD).encode(), b"", b"  \r", GOOD | {"id": "b"}, b"{")
    assert [(item.line, type(item).__name__) for item in items] == [
        (1, "Utterance"),
        (4, "Utterance"),
        (5, "Rejection"),
    ]


def test_half_a_surrogate_in_another_field_is_kept_as_an_escape(tmp_path: Path) -> None:
    item = read_one(tmp_path, GOOD | {"note": "\ud800", "\udc00": "é"})
    assert isinstance(item, Utterance)
    assert json.loads(item.extra) == {"note": "\ud800", "\udc00": "é"}
    item.extra.encode("utf-8")


def test_the_runs_language_goes_before_the_rows_own(tmp_path: Path) -> None:
    (item,) = read(tmp_path, GOOD | {"language": "en"}, language="am")
    assert isinstance(item, Utterance)
    assert item.language == "am"


def test_audio_is_looked_for_in_three_places_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here, folder = tmp_path / "here", tmp_path / "data" / "lists"
    here.mkdir()
    folder.mkdir(parents=True)
    monkeypatch.chdir(here)
    places = [here / "a.wav", folder / "a.wav", folder.parent / "a.wav"]
    for present in range(3):
        for index, place in enumerate(places):
            place.unlink(missing_ok=True)
            if index >= present:
                place.touch()
        item = read_one(folder, GOOD)
        assert isinstance(item, Utterance)
        assert Path(item.path) == places[present]
    item = read_one(folder, GOOD | {"audio": str(places[2])})
    assert isinstance(item, Utterance)
    assert item.path == str(places[2])


def test_a_manifest_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        list(numbered_lines(tmp_path / "none.jsonl"))
    with pytest.raises(ConfigError, match="Is a directory"):
        list(numbered_lines(tmp_path))
    (tmp_path / "wide.jsonl").write_text(json.dumps(GOOD), encoding="utf-16")
    with pytest.raises(ConfigError, match="UTF-16"):
        list(numbered_lines(tmp_path / "wide.jsonl"))
