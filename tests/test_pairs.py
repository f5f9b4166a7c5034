"""Prompt and target pairs: whose they are, how many, how even, and what the loader makes of them."""

import json
import pickle
from collections import Counter
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

import hfprep
from hfprep.errors import ConfigError, StoreError
from hfprep.formats.arrow_writer import export_arrow
from hfprep.formats.formats import open_set
from hfprep.formats.npy import NpySplit
from hfprep.formats.pairs import PairOptions, speaker_reader, write_pairs
from tests.sample_sets import make_output

# 30 utterances of b, 12 of a, 5 of c, 1 of d.
SPEAKERS = ["b"] * 30 + ["a"] * 12 + ["c"] * 5 + ["d"]


def with_speakers(record: dict[str, Any], number: int) -> dict[str, Any]:
    return record | {"speaker": SPEAKERS[number // 3], "audio_path": f"wavs/{SPEAKERS[number // 3]}/{number}.wav"}


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """Three utterances for each entry of SPEAKERS: two in train, one in validation."""
    ids = tuple(f"{SPEAKERS[number // 3]}_{number:03d}" for number in range(3 * len(SPEAKERS)))
    return make_output(tmp_path / "out", ids=ids, change=with_speakers)


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def test_pairs_are_of_one_speaker_and_one_split(output: Path, repository: Path) -> None:
    counts = write_pairs(output)
    schema = json.loads((repository / "schemas" / "pair-record.schema.json").read_bytes())
    jsonschema.Draft202012Validator.check_schema(schema)
    for split, name, manifest in (
        ("train", "train_pairs.jsonl", "train_manifest.jsonl"),
        ("validation", "val_pairs.jsonl", "val_manifest.jsonl"),
    ):
        records = {record["id"]: record for record in read(output / manifest)}
        pairs = read(output / name)
        assert counts[split].pairs == len(pairs)
        assert len({pair["id"] for pair in pairs}) == len(pairs)
        for pair in pairs:
            jsonschema.validate(pair, schema)
            assert list(pair) == schema["required"]
            prompt, target = records[pair["prompt_id"]], records[pair["target_id"]]
            assert prompt["id"] != target["id"]
            assert prompt["speaker"] == target["speaker"] == pair["speaker"]
            assert pair["id"] == f"{target['id']}__{prompt['id']}"
            for role, record in (("prompt", prompt), ("target", target)):
                for field in pair.keys() - {"speaker", "id"}:
                    owner, _, own = field.partition("_")
                    if owner == role and own != "id":
                        assert pair[field] == record[own], field
            assert (output / pair["prompt_condition_path"]).is_file()
        order = list(records)
        positions = [order.index(pair["target_id"]) for pair in pairs]
        assert positions == sorted(positions)
        per_target = Counter(pair["target_id"] for pair in pairs)
        sizes = Counter(record["speaker"] for record in records.values())
        assert per_target == {sample_id: 2 for sample_id, record in records.items() if sizes[record["speaker"]] > 2} | {
            sample_id: 1 for sample_id, record in records.items() if sizes[record["speaker"]] == 2
        }
    assert counts["validation"].alone == 1  # d has a single utterance there


def test_pairs_are_deterministic_and_the_seed_matters(output: Path) -> None:
    write_pairs(output, PairOptions(seed=1))
    first = (output / "train_pairs.jsonl").read_bytes()
    write_pairs(output, PairOptions(seed=1))
    assert (output / "train_pairs.jsonl").read_bytes() == first
    write_pairs(output, PairOptions(seed=2))
    assert (output / "train_pairs.jsonl").read_bytes() != first


def test_prompts_are_used_evenly(output: Path) -> None:
    write_pairs(output)
    used = Counter(pair["prompt_id"] for pair in read(output / "train_pairs.jsonl") if pair["speaker"] != "d")
    assert set(used.values()) == {2}


@pytest.mark.parametrize(
    ("most", "shares"),
    [
        (8, {"a": 2, "b": 2, "c": 2, "d": 2}),
        (50, {"a": 16, "b": 16, "c": 16, "d": 2}),
        (80, {"a": 29, "b": 29, "c": 20, "d": 2}),
        (10**6, {"a": 48, "b": 120, "c": 20, "d": 2}),
    ],
)
def test_a_bound_is_spread_evenly_over_speakers(output: Path, most: int, shares: dict[str, int]) -> None:
    write_pairs(output, PairOptions(max_pairs=most))
    assert Counter(pair["speaker"] for pair in read(output / "train_pairs.jsonl")) == shares


def test_short_utterances_are_in_no_pair(output: Path) -> None:
    write_pairs(output, PairOptions(min_text_len=10, min_code_len=12))
    short = {
        record["id"]
        for record in read(output / "train_manifest.jsonl")
        if record["text_len"] < 10 or record["code_len"] < 12
    }
    pairs = read(output / "train_pairs.jsonl")
    assert short
    assert pairs
    assert not short & {pair[field] for pair in pairs for field in ("prompt_id", "target_id")}


def test_without_speakers_it_says_how_to_read_them(tmp_path: Path) -> None:
    ids = tuple(f"{'xy'[number % 2]}_{number}" for number in range(12))

    def change(record: dict[str, Any], number: int) -> dict[str, Any]:
        return record | {"speaker": None, "audio_path": f"wavs/{'xy'[number % 2]}/{number}.wav"}

    output = make_output(tmp_path / "out", ids=ids, change=change)
    with pytest.raises(StoreError, match=r"8 of 8 utterances .* have no speaker \(such as 'x_0'\).*--speaker-from"):
        write_pairs(output)
    assert not (output / "train_pairs.jsonl").exists()
    for rule in ("folder", "id:^([^_]+)_", "audio:wavs/(.)/"):
        write_pairs(output, PairOptions(speaker_from=rule))
        pairs = read(output / "train_pairs.jsonl")
        assert {pair["speaker"] for pair in pairs} == {"x", "y"}
        assert all(pair["prompt_id"][0] == pair["target_id"][0] == pair["speaker"] for pair in pairs)


def test_speaker_rules() -> None:
    record = {"id": "lj-001", "audio_path": "a/b/c.wav", "speaker": None}
    assert speaker_reader("folder")(record) == "b"
    assert speaker_reader("folder")(record | {"audio_path": "c.wav"}) is None
    assert speaker_reader("id:^[a-z]+")(record) == "lj"
    assert speaker_reader("id:^[0-9]+")(record) is None
    assert speaker_reader("folder")(record | {"speaker": "given"}) == "given"
    for rule in ("file", "id:", "id:("):
        with pytest.raises(ConfigError, match="--speaker-from"):
            speaker_reader(rule)
    with pytest.raises(ConfigError, match="--max-pairs is -1"):
        PairOptions(max_pairs=-1)
    assert PairOptions(max_pairs=0) == PairOptions()


def test_the_loader_takes_voice_and_emotion_from_the_prompt(output: Path, tmp_path: Path) -> None:
    write_pairs(output)
    record = read(output / "train_pairs.jsonl")[5]
    export_arrow(open_set(output), tmp_path / "arrow")
    by_path = hfprep.load(output / "train_pairs.jsonl")
    by_id = hfprep.load(tmp_path / "arrow", "train", pairs=output / "train_pairs.jsonl")
    for data in (by_path, by_id):
        item = data[5]
        assert {name: item[name] for name in ("id", "prompt_id", "target_id")} == {
            name: record[name] for name in ("id", "prompt_id", "target_id")
        }
        for name, field in (
            ("text_ids", "target_text_ids_path"),
            ("codes", "target_codes_path"),
            ("condition", "prompt_condition_path"),
            ("emo_vec", "prompt_emo_vec_path"),
        ):
            np.testing.assert_array_equal(item[name].numpy(), np.load(output / record[field]))
        assert data.code_lengths[5] == record["target_code_len"]
        batch = hfprep.collate([data[0], data[5]])
        assert {"prompt_ids", "target_ids", "prompt_languages", "languages", "ids"} <= batch.keys()
        assert batch["codes"].dtype == torch.int64


def test_workers_are_told_where_the_samples_of_pairs_are(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They do not go through the whole set again to find out, however they are started."""
    write_pairs(output)
    data = hfprep.load(output, "train", pairs=output / "train_pairs.jsonl")
    expected = [data[index] for index in range(len(data))]

    def refuse(self: object) -> None:
        raise AssertionError("a worker has gone through the set")

    for name in ("ids", "entries", "samples"):
        monkeypatch.setattr(NpySplit, name, refuse)
    workers = DataLoader(data, batch_size=None, num_workers=1, multiprocessing_context="fork")
    pickled = pickle.loads(pickle.dumps(data))
    for index, (item, found) in enumerate(zip(expected, workers, strict=True)):
        for other in (found, pickled[index]):
            assert item["id"] == other["id"]
            assert torch.equal(item["condition"], other["condition"])


def test_stale_pairs_are_noticed(output: Path) -> None:
    write_pairs(output)
    pair = read(output / "train_pairs.jsonl")[0]
    np.save(output / pair["target_text_ids_path"], np.zeros(77, np.int32))
    with pytest.raises(StoreError, match=r"text_ids has 77 values.*make the pairs again: python -m hfprep pairs"):
        hfprep.load(output / "train_pairs.jsonl")[0]
