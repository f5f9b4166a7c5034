"""Pairs, .npz files and batches of a set with other columns than IndexTTS-2's: a build of IndexTTS-2.5."""

import json
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from jsonschema import Draft202012Validator
from typer.testing import CliRunner

import hfprep
from hfprep.cli import app as cli
from hfprep.errors import ConfigError, StoreError
from hfprep.formats.arrow_writer import export_arrow
from hfprep.formats.formats import open_set
from hfprep.formats.npz import export_npz
from hfprep.formats.pair_files import make_pairs, pair_problems
from hfprep.formats.pairs import PairOptions, cross_lingual_pairs, speaker_pairs

pytestmark = pytest.mark.usefixtures("two_layers")

SPEAKERS = {"synth3": "one", "synth4": "two", "synth5": "one", "synth6": "two"}
COLUMNS = ("text_ids", "codes", "spk_emb", "emo_vec")


@pytest.fixture(scope="module")
def built(golden25_small: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An output: speaker one in ja and zh, two in am and en, each text twice."""
    folder = tmp_path_factory.mktemp("pairs")
    rows = [json.loads(line) for line in (golden25_small / "manifest.jsonl").read_bytes().splitlines()]
    rows = [row | {"audio": str(golden25_small / row["audio"]), "speaker": SPEAKERS[row["id"]]} for row in rows]
    more = [row | {"id": f"again/{row['id']}"} for row in rows]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows + more), encoding="utf-8")
    hfprep.build(
        hfprep.BuildConfig(
            manifest=folder / "rows.jsonl", models=golden25_small / "checkpoints", output_dir=folder / "out",
            val_ratio=0.0,
        )
    )  # fmt: skip
    return folder / "out"


@pytest.fixture
def output(built: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(built, tmp_path / "out"))


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def test_vectors_are_the_prompts_and_what_is_said_the_targets(output: Path, tmp_path: Path) -> None:
    assert make_pairs(output, PairOptions())["train"].pairs == 16
    assert list(pair_problems(output, "train_pairs.jsonl")) == []
    records = {record["id"]: record for record in read(output / "train_manifest.jsonl")}
    pairs = read(output / "train_pairs.jsonl")
    assert list(pairs[0]) == [
        "id", "speaker", "prompt_id", "prompt_audio_path", "prompt_spk_emb_path", "prompt_emo_vec_path",
        "prompt_duration", "prompt_language", "prompt_lang_id", "target_id", "target_audio_path", "target_text",
        "target_text_ids_path", "target_text_len", "target_codes_path", "target_code_len", "target_spk_emb_path",
        "target_emo_vec_path", "target_language", "target_lang_id",
    ]  # fmt: skip
    for pair in pairs:
        for role in ("prompt", "target"):
            record = records[pair[f"{role}_id"]]
            for field in pair.keys() - {"speaker", "id", f"{role}_id"}:
                if field.startswith(f"{role}_"):
                    assert pair[field] == record[field.removeprefix(f"{role}_")], field
    export_arrow(open_set(output), tmp_path / "arrow")
    for data in (
        hfprep.load(output / "train_pairs.jsonl"),
        hfprep.load(tmp_path / "arrow", "train", pairs=output / "train_pairs.jsonl"),
    ):
        for place in (0, 5):
            item, pair = data[place], pairs[place]
            for column in COLUMNS:
                role = "target" if column in ("text_ids", "codes") else "prompt"
                wanted = np.load(output / pair[f"{role}_{column}_path"])
                np.testing.assert_array_equal(item[column].numpy(), wanted)
        batch = hfprep.collate([data[0], data[5]])
        assert batch["lang_ids"].tolist() == [pairs[0]["target_lang_id"], pairs[5]["target_lang_id"]]


def test_a_pair_of_other_records_is_found(output: Path) -> None:
    make_pairs(output, PairOptions())
    lines = (output / "train_pairs.jsonl").read_text(encoding="utf-8").splitlines()
    lines[2] = json.dumps(json.loads(lines[2]) | {"target_lang_id": 55})
    (output / "train_pairs.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (problem,) = pair_problems(output, "train_pairs.jsonl")
    assert (problem.line, problem.message[:20]) == (3, "target_lang_id is 55")


def test_a_batch_has_what_the_trainer_takes(built: Path) -> None:
    data = hfprep.load(built)
    items = [data[index] for index in range(4)]
    batch = hfprep.collate(items)
    assert sorted(batch) == [
        "code_lengths", "codes", "emo_vec", "ids", "lang_ids", "languages", "spk_emb", "text_ids", "text_lengths",
    ]  # fmt: skip
    assert batch["ids"] == ["synth3", "synth4", "synth5", "synth6"]
    assert batch["lang_ids"].tolist() == [7, 75, 1, 0]
    assert batch["lang_ids"].dtype == batch["codes"].dtype == batch["text_ids"].dtype == torch.int64
    assert batch["code_lengths"].tolist() == [len(item["codes"]) for item in items]
    assert batch["text_ids"].shape == (4, max(batch["text_lengths"]))
    for name in ("spk_emb", "emo_vec"):
        assert torch.equal(batch[name], torch.stack([item[name] for item in items]))


def npz_arrays(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}


def validate(name: str, records: list[dict[str, Any]], repository: Path) -> None:
    validator = Draft202012Validator(json.loads((repository / "schemas" / f"{name}.schema.json").read_bytes()))
    assert records
    for record in records:
        validator.validate(record)


def test_npz_files_have_every_column_and_a_record_each(built: Path, tmp_path: Path, repository: Path) -> None:
    target = tmp_path / "npz"
    result = CliRunner().invoke(cli.app, ["export-npz", str(built), str(target)])
    assert result.exit_code == 0, result.output
    assert f"{target}: 8 train, 0 validation" in result.output
    assert (target / "utterances_val.jsonl").read_bytes() == b""
    utterances = read(target / "utterances_train.jsonl")
    validate("npz-record", utterances, repository)
    for line, record in zip(utterances, read(built / "train_manifest.jsonl"), strict=True):
        assert line == {
            "id": record["id"], "features": f"features/{record['id']}.npz", "speaker": record["speaker"],
            "lang": record["language"], "lang_alias": None, "text": record["text"], "text_len": record["text_len"],
            "code_len": record["code_len"],
        }  # fmt: skip
        arrays = npz_arrays(target / line["features"])
        assert {name: str(array.dtype) for name, array in arrays.items()} == {
            "text_ids": "int32", "codes": "int32", "spk_emb": "float32", "emo_vec": "float32",
        }  # fmt: skip
        for name, array in arrays.items():
            np.testing.assert_array_equal(array, np.load(built / record[f"{name}_path"]))
    before = {path: path.read_bytes() for path in target.rglob("*") if path.is_file()}
    export_npz(open_set(built), target)  # again: an earlier export is replaced, by the same bytes
    assert {path: path.read_bytes() for path in target.rglob("*") if path.is_file()} == before
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.txt").write_text("x")
    with pytest.raises(StoreError, match="is not an earlier export of this kind"):
        export_npz(open_set(built), tmp_path / "other")


def assert_same_items(found: Sequence[dict[str, Any]], wanted: Sequence[dict[str, Any]]) -> None:
    assert len(found) == len(wanted) > 0
    for one, other in zip(found, wanted, strict=True):
        assert one.keys() == other.keys()
        for name, value in other.items():
            assert torch.equal(one[name], value) if isinstance(value, torch.Tensor) else one[name] == value


def items(data: Any) -> list[dict[str, Any]]:
    return [data[index] for index in range(len(data))]


def test_npz_files_are_loaded_wherever_they_are(built: Path, tmp_path: Path) -> None:
    """A folder, its files of utterances and its pairs give a trainer what the output gives."""
    export_npz(open_set(built), tmp_path / "made")
    shutil.move(tmp_path / "made", tmp_path / "npz")
    target = tmp_path / "npz"
    wanted = items(hfprep.load(built))
    assert_same_items(items(hfprep.load(target)), wanted)
    assert_same_items(items(hfprep.load(target / "utterances_train.jsonl")), wanted)
    assert len(hfprep.load(target, "validation")) == 0
    assert hfprep.load(target).code_lengths.tolist() == hfprep.load(built).code_lengths.tolist()
    make_pairs(target, PairOptions(cross_lingual=True))
    pairs = hfprep.load(target / "train_pairs.jsonl")
    assert "recipe indextts-2.5" in repr(pairs)
    by_id = {item["id"]: item for item in wanted}
    for pair in items(pairs):
        prompt, spoken = by_id[pair["prompt_id"]], by_id[pair["target_id"]]
        assert pair["id"] == f"{spoken['id']}__{prompt['id']}"
        assert (pair["language"], pair["prompt_language"]) == (spoken["language"], prompt["language"])
        assert pair["lang_id"] == spoken["lang_id"]
        for name, source in (("spk_emb", prompt), ("emo_vec", prompt), ("codes", spoken), ("text_ids", spoken)):
            assert torch.equal(pair[name], source[name])
    assert_same_items(items(hfprep.load(target, pairs=target / "train_pairs.jsonl")), items(pairs))
    batch = hfprep.collate([pairs[0], pairs[1]])
    assert batch["code_lengths"].tolist() == pairs.code_lengths[:2].tolist()


def test_files_without_the_description_of_their_columns_say_so(built: Path, tmp_path: Path) -> None:
    copy, npz = Path(shutil.copytree(built, tmp_path / "copy")), tmp_path / "npz"
    export_npz(open_set(built), npz)
    for folder in (copy, npz):
        make_pairs(folder, PairOptions(cross_lingual=True))
        (folder / "stats.json").unlink()
    shutil.rmtree(copy / ".hfprep")
    for path in (copy / "train_manifest.jsonl", copy / "train_pairs.jsonl"):
        with pytest.raises(StoreError, match=r"has no stats\.json, which describes .*: copy it from the output"):
            hfprep.load(path)[0]
    for path in (npz, npz / "train_pairs.jsonl"):
        with pytest.raises(StoreError, match=r"has no stats\.json that describes its \.npz files"):
            hfprep.load(path)[0]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (b"", "cannot be read"),
        (b"PK\x03\x04 cut", "cannot be read"),
        (None, "No such file"),
        ("../outside.npz", "outside the output"),
        ("features/x.npy", "which is not an array"),
    ],
)
def test_a_damaged_npz_file_is_named(built: Path, tmp_path: Path, damage: Any, message: str) -> None:
    export_npz(open_set(built), tmp_path / "npz")
    utterances = tmp_path / "npz" / "utterances_train.jsonl"
    line = read(utterances)[0]
    file = tmp_path / "npz" / line["features"]
    if isinstance(damage, str):
        utterances.write_text(json.dumps(line | {"features": damage}) + "\n", encoding="utf-8")
    elif damage is None:
        file.unlink()
    else:
        file.write_bytes(damage)
    with pytest.raises(StoreError, match=rf"sample '{line['id']}': .*{message}"):
        hfprep.load(tmp_path / "npz")[0]


def run_pairs(*arguments: str | Path) -> None:
    result = CliRunner().invoke(cli.app, ["pairs", *map(str, arguments)])
    assert result.exit_code == 0, (result.output, result.exception)


def test_pairs_of_npz_files(output: Path, tmp_path: Path, repository: Path) -> None:
    """By --form from an output, and on an export: the same pairs, in one language unless others are asked for."""
    run_pairs(output, "--form", "npz")
    export_npz(open_set(output), tmp_path / "export")
    run_pairs(tmp_path / "export")
    pairs = read(tmp_path / "export" / "train_pairs.jsonl")
    assert pairs == read(output / "npz" / "train_pairs.jsonl")
    validate("npz-pair-record", pairs, repository)
    utterances = {line["id"]: line for line in read(tmp_path / "export" / "utterances_train.jsonl")}
    assert Counter(pair["target_features"] for pair in pairs) == {line["features"]: 1 for line in utterances.values()}
    for pair in pairs:
        target, _, prompt = pair["id"].partition("__")
        assert pair == {
            "id": pair["id"], "target_features": utterances[target]["features"],
            "prompt_features": utterances[prompt]["features"], "speaker": utterances[target]["speaker"],
            "lang": utterances[target]["lang"], "lang_alias": None, "prompt_lang": utterances[target]["lang"],
            "cross_lingual": False, "text_len": utterances[target]["text_len"],
            "code_len": utterances[target]["code_len"],
        }  # fmt: skip
        assert (tmp_path / "export" / pair["target_features"]).is_file()
    run_pairs(tmp_path / "export", "--cross-lingual", "--paths", "absolute")
    pairs = read(tmp_path / "export" / "train_pairs.jsonl")
    assert Counter(pair["cross_lingual"] for pair in pairs) == {True: 8, False: 8}
    assert all((pair["lang"] != pair["prompt_lang"]) is pair["cross_lingual"] for pair in pairs)
    assert all(Path(pair["prompt_features"]).is_absolute() for pair in pairs)
    with pytest.raises(ConfigError, match=r"the records of \.npz files have no audio path"):
        make_pairs(tmp_path / "export", PairOptions(speaker_from="folder"))
    for form, folder, message in (
        ("npy", output, "--form is 'npy'; it must be auto, arrays, npz"),
        ("arrays", tmp_path / "export", r"--form is 'arrays', but .* contains \.npz files"),
    ):
        result = CliRunner().invoke(cli.app, ["pairs", str(folder), "--form", form])
        with pytest.raises(ConfigError, match=message):
            raise result.exception or AssertionError(result.output)


def test_every_other_prompt_is_in_another_language() -> None:
    members = list(range(3, 43))
    languages = ["", "", "", *["am"] * 25, *["en"] * 14, "zh"]
    count = len(members) * 3
    pairs = cross_lingual_pairs(members, languages, count, Random("0:x"))
    assert sum(map(len, pairs.values())) == count
    for target, prompts in pairs.items():
        assert target not in prompts
        assert len(set(prompts)) == 3
        crosses = [languages[prompt] != languages[target] for prompt in prompts]
        assert crosses == ([True, True, True] if languages[target] == "zh" else [True, False, True])
    used = Counter(prompt for target, prompts in pairs.items() for prompt in prompts if languages[target] == "am")
    assert max(used.values()) <= 4  # 50 prompts of the 15 others, 25 of the 25 themselves


@pytest.mark.parametrize("count", [0, 1, 7, 30])
def test_all_pairs_of_a_small_speaker_come_once(count: int) -> None:
    members, languages = list(range(6)), ["am", "en", "am", "am", "zh", "en"]
    for pairs in (
        speaker_pairs(members, count, Random(1)),
        cross_lingual_pairs(members, languages, count, Random(1)),
    ):
        made = [(target, prompt) for target, prompts in pairs.items() for prompt in prompts]
        assert len(made) == len(set(made)) == count
        assert all(target != prompt for target, prompt in made)
