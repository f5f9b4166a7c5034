"""Outputs, read by the rules of the fine-tuners in docs/training.md: which fields they look up, how they resolve paths,
which lengths they trust, what they refuse or skip, and how they pad.

A reader here knows nothing of hfprep. What it reads must be what `hfprep.load` and `hfprep.collate` give.
"""

import json
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch.nn.utils.rnn import pad_sequence

import hfprep
from hfprep.formats.arrow_writer import export_arrow
from hfprep.formats.formats import open_set
from hfprep.formats.npz import export_npz
from hfprep.formats.pair_files import make_pairs
from hfprep.formats.pairs import PairOptions

Item = dict[str, Any]
SPOKEN = ("text_ids", "codes")
# The rows of `lang_embedding` by language, of those that the recordings have.
LANGUAGE_ROWS = {"en": 0, "zh": 1, "ja": 7, "am": 75}


def built(golden: Path, folder: Path) -> Path:
    """An output of every recording three times, by two speakers, a part of them in validation."""
    rows = [json.loads(line) for line in (golden / "manifest.jsonl").read_bytes().splitlines()]
    lines = [
        row | {"id": f"{row['id']}/{copy}", "audio": str(golden / row["audio"]), "speaker": "ab"[number % 2]}
        for copy in range(3)
        for number, row in enumerate(rows)
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    config = hfprep.BuildConfig(
        manifest=folder / "rows.jsonl", models=golden / "checkpoints", output_dir=folder / "out", val_count=5
    )
    assert not hfprep.build(config).rejected
    return folder / "out"


@pytest.fixture(scope="module")
def output(golden_small: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of IndexTTS-2, with pairs."""
    made = built(golden_small, tmp_path_factory.mktemp("two"))
    make_pairs(made, PairOptions())
    return made


@pytest.fixture(scope="module")
def output25(golden25_small: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of IndexTTS-2.5."""
    return built(golden25_small, tmp_path_factory.mktemp("five"))


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory that paths are not relative to."""
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    return tmp_path / "elsewhere"


def records(path: Path) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]
    assert found, f"{path} is empty, and trainers refuse an empty file"
    return found


def opened(folder: Path, value: Any, kind: type) -> torch.Tensor:
    """An array as trainers open it: relative to the folder of the file that names it, and not empty."""
    assert isinstance(value, str)
    array = np.load(folder / value, allow_pickle=False)
    assert array.size
    return torch.from_numpy(array.astype(kind, copy=False))


def language(value: str | None) -> str | None:
    """As trainers of IndexTTS-2 compare it."""
    return (value or "").strip().lower() or None


def item2(folder: Path, record: dict[str, Any]) -> Item:
    """A line of a manifest or of pairs for IndexTTS-2; two fields tell the trainers which it is."""
    paired = "prompt_condition_path" in record and "target_codes_path" in record
    voice, spoken = ("prompt_", "target_") if paired else ("", "")
    found: Item = {name: opened(folder, record[f"{spoken}{name}_path"], np.int64) for name in SPOKEN}
    found |= {name: opened(folder, record[f"{voice}{name}_path"], np.float32) for name in ("condition", "emo_vec")}
    found |= {"text_len": int(record[f"{spoken}text_len"]), "code_len": int(record[f"{spoken}code_len"])}
    found |= {"condition_len": int(record[f"{voice}condition_len"]), "id": record["id"]}
    found["language"] = language(record[f"{spoken}language"])
    if paired:
        found |= {"prompt_id": record["prompt_id"], "target_id": record["target_id"]}
        found["prompt_language"] = language(record["prompt_language"])
    return found


def item25(folder: Path, record: dict[str, Any]) -> Item:
    """A line of pairs of .npz files. The language is looked up in the trainer's own list."""
    assert not record["lang_alias"]  # else it takes the place of lang
    target, prompt = (np.load(folder / record[f"{role}_features"]) for role in ("target", "prompt"))
    found: Item = {name: torch.from_numpy(target[name].astype(np.int64)) for name in SPOKEN}
    found |= {name: torch.from_numpy(prompt[name].astype(np.float32)) for name in ("spk_emb", "emo_vec")}
    found |= {"id": str(record["id"]), "lang_id": LANGUAGE_ROWS[record["lang"].lower()]}
    return found | {"text_len": int(record["text_len"]), "code_len": int(record["code_len"])}


def batch_of(items: Sequence[Item]) -> dict[str, Any]:
    """A batch: tokens and codes padded with zeros, the rest stacked, and the lengths that the records have."""
    lengths = {"text_len": "text_lengths", "code_len": "code_lengths", "condition_len": "condition_lengths"}
    names = {name: f"{name}s" for name in ("id", "language", "prompt_id", "target_id", "prompt_language", "lang_id")}
    batch: dict[str, Any] = {}
    for name, first in items[0].items():
        values = [item[name] for item in items]
        if name in SPOKEN:
            batch[name] = pad_sequence(values, batch_first=True, padding_value=0)
        elif isinstance(first, torch.Tensor):
            batch[name] = torch.stack(values)
        elif name in lengths:
            batch[lengths[name]] = torch.tensor(values, dtype=torch.long)
        else:
            batch[names[name]] = torch.tensor(values) if name == "lang_id" else values
    return batch


def assert_same_batch(read: dict[str, Any], source: Path) -> None:
    """Everything that a trainer has read is in the batch that hfprep makes of the same file, and equal."""
    data = hfprep.load(source)
    wanted = hfprep.collate([data[index] for index in range(len(data))])
    for name, value in read.items():
        if isinstance(value, torch.Tensor):
            assert value.dtype == wanted[name].dtype, name
            assert torch.equal(value, wanted[name]), name
        else:
            assert value == wanted[name], name


def assert_fits(batch: dict[str, Any], models: Path) -> None:
    """The GPT has a row for each token and code, and a position for each with its start and stop."""
    gpt = yaml.safe_load((models / "config.yaml").read_text(encoding="utf-8"))["gpt"]
    for name, count in (("codes", gpt["start_mel_token"]), ("text_ids", gpt["number_text_tokens"])):
        assert batch[name].min() >= 0
        assert batch[name].max() < count
    for length, ids in zip(batch["text_lengths"], batch["text_ids"], strict=True):
        assert not {gpt["start_text_token"], gpt["stop_text_token"]} & set(ids[:length].tolist())
    assert batch["text_lengths"].max() <= gpt["max_text_tokens"]
    assert batch["code_lengths"].max() <= gpt["max_mel_tokens"]
    size = len(batch["ids"])
    assert batch["emo_vec"].shape == (size, gpt["model_dim"])
    if "condition" in batch:
        assert batch["condition"].shape == (size, 32, gpt["model_dim"])
    else:
        assert batch["spk_emb"].shape == (size, 20)  # 192 in the published model


@pytest.mark.parametrize("name", ["train_pairs.jsonl", "val_pairs.jsonl", "train_manifest.jsonl"])
def test_arrays_for_indextts2(output: Path, golden_small: Path, elsewhere: Path, name: str) -> None:
    """Pairs, and manifests for those that train on single utterances."""
    batch = batch_of([item2(output, record) for record in records(output / name)])
    assert_same_batch(batch, output / name)
    assert_fits(batch, golden_small / "checkpoints")
    assert set(batch["condition_lengths"].tolist()) == {32}
    assert ("prompt_ids" in batch) is ("pairs" in name)


def test_pairs_for_trainers_that_open_paths_as_they_are(output: Path, elsewhere: Path) -> None:
    """From the working directory, wherever the pairs are."""
    make_pairs(
        output,
        PairOptions(paths="absolute", train_output_name="train_anywhere.jsonl", val_output_name="val_anywhere.jsonl"),
    )
    read = batch_of([item2(elsewhere, record) for record in records(output / "train_anywhere.jsonl")])
    assert_same_batch(read, output / "train_pairs.jsonl")


def test_pairs_name_the_emotion_of_the_target_too(output: Path) -> None:
    """For trainers that take it from there: another file than the prompt's, of the same shape."""
    for pair in records(output / "train_pairs.jsonl"):
        prompt, target = (opened(output, pair[f"{role}_emo_vec_path"], np.float32) for role in ("prompt", "target"))
        assert pair["target_emo_vec_path"] != pair["prompt_emo_vec_path"]
        assert prompt.shape == target.shape


def test_npz_files_for_indextts25(output25: Path, golden25_small: Path, tmp_path: Path, elsewhere: Path) -> None:
    """Pairs of .npz files: trainers leave out what has under 8 codes, too many for the GPT, or no file."""
    folder = tmp_path / "npz"
    export_npz(open_set(output25), folder)
    make_pairs(folder, PairOptions(cross_lingual=True))
    for name in ("train_pairs.jsonl", "val_pairs.jsonl"):
        batch = batch_of([item25(folder, record) for record in records(folder / name)])
        assert_same_batch(batch, folder / name)
        assert_fits(batch, golden25_small / "checkpoints")
        assert batch["code_lengths"].min() >= 8


def test_arrays_for_indextts25_as_docs_convert_them(output25: Path, repository: Path, elsewhere: Path) -> None:
    """For the trainer that knows the speaker vector as `condition`: every field that it looks up."""
    make_pairs(output25, PairOptions(paths="absolute"))
    (elsewhere / "OUT").symlink_to(output25, target_is_directory=True)
    page = (repository / "docs" / "training.md").read_text(encoding="utf-8")
    (command,) = re.findall(r"^for split in .*?; done$", page, re.MULTILINE | re.DOTALL)
    subprocess.run(["sh", "-euc", command], check=True, timeout=60)
    for split in ("train", "val"):
        converted = elsewhere / f"gpt_pairs_{split}.jsonl"
        wanted = hfprep.load(output25 / f"{split}_pairs.jsonl")
        for index, record in enumerate(records(converted)):
            item = wanted[index]
            assert str(record["feature_version"]) == "2.5"
            assert record["id"] == item["id"]
            for column, field in (
                ("text_ids", "target_text_ids_path"), ("codes", "target_codes_path"),
                ("spk_emb", "prompt_condition_path"), ("emo_vec", "prompt_emo_vec_path"),
            ):  # fmt: skip
                read = opened(elsewhere, record[field], np.int64 if column in SPOKEN else np.float32)
                assert torch.equal(read, item[column].to(read.dtype))
            assert (record["target_text_len"], record["target_code_len"]) == (len(item["text_ids"]), len(item["codes"]))
            assert LANGUAGE_ROWS[record["target_language"]] == item["lang_id"]


def test_a_split_of_an_arrow_set_is_a_part(output: Path, golden_small: Path, tmp_path: Path) -> None:
    """For trainers that look for folders named ..._part_N and load each: lists, and the two lengths."""
    datasets = pytest.importorskip("datasets")
    export_arrow(open_set(output), tmp_path / "DATASET")
    (tmp_path / "arrow").mkdir()
    (tmp_path / "arrow" / "hfprep_part_0").symlink_to(tmp_path / "DATASET" / "train", target_is_directory=True)
    (part,) = (folder for folder in (tmp_path / "arrow").iterdir() if folder.is_dir() and "_part_" in folder.name)
    items = []
    for row in datasets.load_from_disk(str(part)):
        item: Item = {name: torch.tensor(row[name], dtype=torch.long) for name in SPOKEN}
        item |= {name: torch.tensor(row[name], dtype=torch.float32) for name in ("condition", "emo_vec")}
        items.append(item | {"text_len": row["text_len"], "code_len": row["code_len"], "id": row["id"]})
    batch = batch_of(items)
    assert_same_batch(batch, output / "train_manifest.jsonl")
    assert_fits(batch, golden_small / "checkpoints")
