"""Pairs that stay true: overlong utterances, empty splits, names, paths, and what happens when samples change."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import hfprep
from hfprep.cli import app as cli
from hfprep.errors import ConfigError, StoreError
from hfprep.formats.manifest_paths import export_manifests
from hfprep.formats.pair_files import make_pairs, pair_files, pair_problems, renew_pairs
from hfprep.formats.pairs import PairOptions
from hfprep.io.object_storage import url_of
from hfprep.store.first_version import first_schema
from hfprep.tools.verify.checking import verify_pairs
from hfprep.tools.verify.faults import FaultKind, Findings
from tests.sample_sets import DIM, make_output

IDS = tuple(f"s{number % 2}_{number:03d}" for number in range(36))
TRAIN, VAL = "train_manifest.jsonl", "val_manifest.jsonl"


def with_speaker(record: dict[str, Any], number: int) -> dict[str, Any]:
    return record | {"speaker": f"s{number % 2}", "audio_path": f"wavs/{number}.wav"}


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """36 utterances of two speakers, every third in validation, their audio beside the output."""
    output = make_output(tmp_path / "out", ids=IDS, change=with_speaker)
    (output / "wavs").mkdir()
    for number in range(len(IDS)):
        (output / "wavs" / f"{number}.wav").write_bytes(b"RIFF")
    return output


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def change_manifest(output: Path, name: str, **fields: Any) -> None:
    """Give every record of a manifest other fields."""
    records = [record | fields for record in read(output / name)]
    (output / name).write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


def faults(output: Path) -> list[str]:
    findings = Findings()
    verify_pairs(output, findings)
    assert all(fault.kind is FaultKind.PAIRS_DISAGREE for fault in findings.faults)
    return [fault.line() for fault in findings.faults]


def test_overlong_utterances_are_in_no_pair_and_counted(output: Path) -> None:
    records = read(output / TRAIN)
    limit = sorted(record["text_len"] for record in records)[len(records) // 2]
    overlong = {record["id"] for record in records if record["text_len"] > limit}
    counts = make_pairs(output, PairOptions(max_text_len=limit))
    assert counts["train"].overlong == len(overlong) > 0
    used = {pair[f"{role}_id"] for pair in read(output / "train_pairs.jsonl") for role in ("prompt", "target")}
    assert used == {record["id"] for record in records} - overlong
    result = CliRunner().invoke(cli.app, ["pairs", str(output), "--max-text-len", str(limit)])
    assert f"{len(overlong)} overlong utterances left out" in result.output


def test_the_limits_are_those_that_the_output_says(output: Path) -> None:
    stats = json.loads((output / "stats.json").read_bytes())
    schema = first_schema(DIM).record() | {"limits": {"text_len": 5, "code_len": 10**6}}
    (output / "stats.json").write_text(json.dumps(stats | {"schema": schema}))
    with pytest.raises(StoreError, match="no two are of the same speaker"):
        make_pairs(output, PairOptions())
    counts = make_pairs(output, PairOptions(max_text_len=600))
    assert counts["train"].overlong == 0


def test_a_split_without_pairs_is_an_error_and_nothing_is_written(output: Path) -> None:
    (output / VAL).write_bytes(b"")
    with pytest.raises(
        StoreError, match=r"val_manifest\.jsonl gives no pairs: of its 0 .*--val-ratio, or with --val-count N"
    ):
        make_pairs(output, PairOptions())
    assert not pair_files(output)
    stats = json.loads((output / "stats.json").read_bytes())
    (output / "stats.json").write_text(json.dumps(stats | {"settings": {"val_ratio": 0}}))
    counts = make_pairs(output, PairOptions())  # the build was told to have no validation
    assert (counts["train"].pairs, counts["validation"].pairs) == (48, 0)
    assert (output / "val_pairs.jsonl").read_bytes() == b""


def test_the_files_have_the_names_that_a_trainer_looks_for(output: Path) -> None:
    arguments = ["pairs", str(output), "--train-output-name", "gpt_pairs_train.jsonl"]
    result = CliRunner().invoke(cli.app, [*arguments, "--val-output-name", "gpt_pairs_val.jsonl", "--max-pairs", "0"])
    assert result.exit_code == 0, result.output
    assert pair_files(output) == {"gpt_pairs_train.jsonl": "train", "gpt_pairs_val.jsonl": "validation"}
    assert not (output / "train_pairs.jsonl").exists()
    assert hfprep.load(output / "gpt_pairs_train.jsonl")[0]["target_id"] in IDS
    for name in ("a/b.jsonl", TRAIN, "../x.jsonl", "pairs.txt", ".hidden.jsonl"):
        with pytest.raises(ConfigError, match=r"--train-output-name is .*; it must be"):
            PairOptions(train_output_name=name)
    with pytest.raises(ConfigError, match=r"--val-output-name is 'x\.jsonl'; it must differ"):
        PairOptions(train_output_name="x.jsonl", val_output_name="x.jsonl")


def test_pairs_of_changed_samples_are_made_again(output: Path) -> None:
    make_pairs(output, PairOptions(seed=3))
    make_pairs(output, PairOptions(seed=4, train_output_name="more.jsonl", val_output_name="more_val.jsonl"))
    before = {name: (output / name).read_bytes() for name in pair_files(output)}
    assert len(before) == 4
    assert faults(output) == []
    assert renew_pairs(output) == []
    change_manifest(output, TRAIN, text_len=9)
    assert len(faults(output)) == 2
    assert "target_text_len is " in faults(output)[0]
    assert "other pairs are wrong; make the pairs again" in faults(output)[0]
    lines = renew_pairs(output)
    assert [line.split(" again")[0] for line in lines] == [
        "made train_pairs.jsonl, val_pairs.jsonl",
        "made more.jsonl, more_val.jsonl",
    ]
    assert faults(output) == []
    assert renew_pairs(output) == []
    pairs = read(output / "train_pairs.jsonl")
    assert {pair["target_text_len"] for pair in pairs} == {9}
    ids = [pair["id"] for pair in pairs]
    assert ids == [json.loads(line)["id"] for line in before["train_pairs.jsonl"].splitlines()]


def test_a_row_that_went_is_in_no_pair_any_more(output: Path) -> None:
    make_pairs(output, PairOptions())
    lines = (output / TRAIN).read_bytes().splitlines(keepends=True)
    gone = json.loads(lines[0])["id"]
    (output / TRAIN).write_bytes(b"".join(lines[1:]))
    assert f"is not in {TRAIN}" in faults(output)[0]
    renew_pairs(output)
    assert faults(output) == []
    assert not any(gone in (pair["prompt_id"], pair["target_id"]) for pair in read(output / "train_pairs.jsonl"))


def test_pairs_that_cannot_be_made_again_are_removed_with_the_reason(output: Path) -> None:
    make_pairs(output, PairOptions())
    change_manifest(output, TRAIN, speaker=None)
    (line,) = renew_pairs(output)
    assert line.startswith("removed train_pairs.jsonl, val_pairs.jsonl: the samples have changed")
    assert "24 of 24 utterances" in line
    assert not pair_files(output)
    assert renew_pairs(output) == []


def test_pairs_that_nobody_remembers_go_when_they_do_not_hold(output: Path) -> None:
    make_pairs(output, PairOptions())
    (output / ".hfprep" / "pairs.json").unlink()
    assert renew_pairs(output) == []
    assert len(pair_files(output)) == 2
    change_manifest(output, VAL, target_text_len=1, code_len=3)
    (line,) = renew_pairs(output)
    assert "removed" in line
    assert not pair_files(output)


def test_every_field_of_a_pair_is_held_against_the_records(output: Path) -> None:
    make_pairs(output, PairOptions())
    path = output / "train_pairs.jsonl"
    pairs = read(path)
    for name in pairs[0].keys() - {"id", "speaker", "prompt_id", "target_id"}:
        path.write_text("".join(json.dumps(pair | {name: "other"}) + "\n" for pair in pairs), encoding="utf-8")
        first = next(pair_problems(output, path.name))
        assert (first.line, first.id) == (1, pairs[0]["id"])
        assert f"{name} is 'other', but {TRAIN} says" in first.message
    for wrong in ("{", "[]", "{}", '{"id": 3}'):
        path.write_text(wrong + "\n", encoding="utf-8")
        assert "is not a pair" in next(pair_problems(output, path.name)).message


def test_absolute_paths_are_found_from_anywhere(output: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_pairs(output, PairOptions(paths="absolute", audio_root=str(output)))
    assert faults(output) == []
    monkeypatch.chdir(tmp_path)
    for pair in read(output / "train_pairs.jsonl"):
        for name, value in pair.items():
            if name.endswith("_path"):
                assert Path(value).is_absolute()
                assert Path(value).is_file(), name
    assert hfprep.load(output / "train_pairs.jsonl")[3]["codes"].numel()
    change_manifest(output, TRAIN, text_len=9)
    renew_pairs(output)
    assert Path(read(output / "train_pairs.jsonl")[0]["prompt_audio_path"]).is_absolute()


@pytest.mark.parametrize("paths", ["relative", "absolute"])
def test_exported_manifests_lead_to_the_same_files(output: Path, tmp_path: Path, paths: str) -> None:
    make_pairs(output, PairOptions())
    arguments = ["export-manifests", str(output), str(tmp_path / "deep" / "er"), "--paths", paths]
    result = CliRunner().invoke(cli.app, arguments)
    assert result.exit_code == 0, result.output
    folder = tmp_path / "deep" / "er"
    assert {path.name for path in folder.iterdir()} == {TRAIN, VAL, "train_pairs.jsonl", "val_pairs.jsonl"}
    for name in (TRAIN, VAL, "train_pairs.jsonl", "val_pairs.jsonl"):
        before, after = read(output / name), read(folder / name)
        assert len(before) == len(after)
        for old, new in zip(before, after, strict=True):
            assert list(old) == list(new)
            for field, value in old.items():
                if not field.endswith("_path"):
                    assert new[field] == value
                else:
                    assert Path(new[field]).is_absolute() == (paths == "absolute")
                    assert (folder / new[field]).resolve() == (output / value).resolve()


def test_audio_that_is_not_there_keeps_its_path_and_is_named(output: Path, tmp_path: Path) -> None:
    shutil.rmtree(output / "wavs")
    change_manifest(output, VAL, audio_path="s3://bucket/a.wav")
    assert url_of(Path("s3://bucket/a.wav")) is not None
    found = export_manifests(output, tmp_path / "new", paths="absolute")
    assert found.files == {TRAIN: 24, VAL: 12}
    assert len(found.missing) == 24
    assert {record["audio_path"] for record in read(tmp_path / "new" / TRAIN)} == set(found.missing)
    assert {record["audio_path"] for record in read(tmp_path / "new" / VAL)} == {"s3://bucket/a.wav"}
    (tmp_path / "elsewhere" / "wavs").mkdir(parents=True)
    (tmp_path / "elsewhere" / "wavs" / "0.wav").write_bytes(b"RIFF")
    found = export_manifests(output, tmp_path / "new", audio_root=tmp_path / "elsewhere")
    assert len(found.missing) == 23
    assert read(tmp_path / "new" / TRAIN)[0]["audio_path"] == "../elsewhere/wavs/0.wav"


def test_a_wrong_folder_or_form_is_refused(output: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"DIR is .*, the output itself"):
        export_manifests(output, output)
    with pytest.raises(ConfigError, match="--paths is 'short'; it must be relative or absolute"):
        export_manifests(output, tmp_path / "new", paths="short")
    with pytest.raises(StoreError):
        export_manifests(tmp_path, tmp_path / "new")
