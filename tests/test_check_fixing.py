"""`check --fix` writes what a build reads under the same map, in the form that the new file's name asks for."""

import csv
import json
from pathlib import Path

import pytest

from hfprep.errors import ConfigError
from hfprep.inputs.manifest.field_map import FieldMap
from hfprep.inputs.manifest.opening import open_source
from hfprep.inputs.manifest.rows import AudioFinder, parse_line
from hfprep.schema import Utterance
from hfprep.tools.check.fixing import FixedManifest

ROWS = [
    {"utt": "a", "sentence": 'He said "so", twice', "file": "wavs/a.wav", "speaker": "s1", "note": "n;1"},
    {"utt": "b", "sentence": "日本\u2028語", "file": "wavs/b.wav", "speaker": "", "note": ""},
    {"utt": "c", "sentence": '"all of it"', "file": "wavs/c.wav", "speaker": "7", "note": "x"},
]
MAPS = ["id=utt,text=sentence,audio=file", "id=@audio,text=sentence,audio=file"]


def written(path: Path) -> Path:
    """These rows as a manifest of the form that the suffix names."""
    (path.parent / "wavs").mkdir(exist_ok=True)
    for row in ROWS:
        (path.parent / row["file"]).touch()
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
        return path
    with open(path, "w", newline="", encoding="utf-8") as file:
        if path.suffix == ".csv":
            table = csv.writer(file)
            table.writerow(ROWS[0])
            table.writerows(row.values() for row in ROWS)
        else:
            for values in (list(ROWS[0]), *(list(row.values()) for row in ROWS)):
                print(*(f'"{value}"' if value.startswith('"') else value for value in values), sep="\t", file=file)
    return path


def read(path: Path, fields: FieldMap) -> list[Utterance]:
    rows = [parse_line(number, raw, AudioFinder(path), None) for number, raw in open_source(path, fields)]
    return [row for row in rows if isinstance(row, Utterance)]


def fixed(source: Path, target: Path, fields: FieldMap) -> None:
    with FixedManifest(target, fields) as manifest:
        for number, raw in open_source(source, fields):
            row = parse_line(number, raw, AudioFinder(source), None)
            if isinstance(row, Utterance):
                manifest.add(raw, row)


@pytest.mark.parametrize("mapping", MAPS)
@pytest.mark.parametrize("source", ["x.csv", "x.tsv", "x.jsonl"])
@pytest.mark.parametrize("target", ["y.csv", "y.tsv", "y.jsonl", "elsewhere/y.csv"])
def test_the_new_manifest_is_read_under_the_same_map(tmp_path: Path, source: str, target: str, mapping: str) -> None:
    fields, path = FieldMap.parse(mapping), tmp_path / target
    path.parent.mkdir(exist_ok=True)
    before = read(written(tmp_path / source), fields)
    assert len(before) == 3
    fixed(tmp_path / source, path, fields)
    after = read(path, fields)
    for one, other in zip(before, after, strict=True):
        assert (one.id, one.text, one.speaker, one.path) == (other.id, other.text, other.speaker, other.path)
        assert json.loads(one.extra) == json.loads(other.extra)


def test_what_a_form_cannot_hold_is_refused_and_nothing_is_left(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text(json.dumps({"id": "a", "text": "two\nlines", "audio": "a.wav"}) + "\n")
    with pytest.raises(ConfigError, match=r"write \.csv"):
        fixed(tmp_path / "x.jsonl", tmp_path / "y.tsv", FieldMap())
    assert not list(tmp_path.glob("y.tsv*"))
    fixed(tmp_path / "x.jsonl", tmp_path / "y.csv", FieldMap())
    assert [row.text for row in read(tmp_path / "y.csv", FieldMap())] == ["two\nlines"]
    with pytest.raises(ConfigError, match="must end in"):
        FixedManifest(tmp_path / "y.parquet", FieldMap())
    with pytest.raises(ConfigError, match="new ids"):
        FixedManifest(tmp_path / "y.csv", FieldMap.parse("id=@line"))
