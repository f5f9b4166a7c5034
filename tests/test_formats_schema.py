"""A set of columns that no recipe has, through every format and the loader: they follow the schema alone."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pytest
import torch

import hfprep
from hfprep.errors import StoreError
from hfprep.formats.arrow_writer import ArrowOptions, ArrowShards, export_arrow
from hfprep.formats.formats import open_set
from hfprep.formats.npy import export_npy
from hfprep.formats.samples import SPLITS
from hfprep.formats.webdataset_writer import WebDatasetOptions, export_webdataset
from hfprep.io.npy_format import npy_bytes
from hfprep.schema import Column, Group, RecordField, Schema, Utterance, manifest_record, metadata_of
from hfprep.store.first_version import first_schema, width_column
from hfprep.store.layout import TRAIN, VAL, json_line
from tests.sample_sets import make_output, public_files

MADE_UP = Schema(
    recipe="made-up",
    columns=(
        Column("words", "int32", ("word_len",), "words", "tokens", size=100, pad=-1),
        Column("frames", "int32", ("codebooks", "code_len"), "sound", "codes", size=16, pad=7),
        Column("voice", "float32", (3, 5), "sound", "vector"),
    ),
    groups=(Group("words", "text"), Group("sound", "audio")),
    frame_rate=25.0,
    code_rate=12.5,
    limits={"word_len": 50},
    record_fields=(RecordField("language_number", "language", {"en": 1}, 0),),
)


def make_made_up(root: Path, schema: Schema = MADE_UP, count: int = 9) -> Path:
    """An output in the npy layout of samples with these columns."""
    lines: dict[str, list[bytes]] = {TRAIN: [], VAL: []}
    for number in range(count):
        random = np.random.default_rng(number)
        arrays = {
            "words": random.integers(0, 100, 1 + number, dtype=np.int32),
            "frames": random.integers(0, 16, (2 + number % 3, 4 + number), dtype=np.int32),
            "voice": random.standard_normal((3, 5)).astype(np.float32),
        }
        language = "EN" if number % 2 else None
        utterance = Utterance(number + 1, f"some/{number}", f"text {number}", f"{number}.wav", "", language=language)
        record = manifest_record(schema, metadata_of(utterance, 1.5), schema.lengths_of(arrays))
        for name, array in arrays.items():
            path = root / record[f"{name}_path"]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(npy_bytes(array))
        lines[VAL if number % 4 == 3 else TRAIN].append(json_line(record))
    for name, content in lines.items():
        (root / name).write_bytes(b"".join(content))
    (root / "stats.json").write_text(json.dumps({"total": count, "schema": schema.record()}, indent=2) + "\n")
    return root


EXPORTS: dict[str, Callable[[Path, Path], Any]] = {
    "arrow": lambda source, target: export_arrow(open_set(source), target, ArrowOptions(max_shard_bytes=3000)),
    "webdataset": lambda source, target: export_webdataset(
        open_set(source), target, WebDatasetOptions(max_shard_samples=4)
    ),
}


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("made-up")
    make_made_up(root / "npy")
    for name, export in EXPORTS.items():
        export(root / "npy", root / name)
    return {name: root / name for name in ("npy", *EXPORTS)}


def test_every_format_gives_back_what_went_in(sets: dict[str, Path], tmp_path: Path) -> None:
    files = public_files(sets["npy"])
    assert json.loads(files[TRAIN].splitlines()[1])["language_number"] == 1
    for name in EXPORTS:
        assert open_set(sets[name]).schema == MADE_UP
        export_npy(open_set(sets[name]), tmp_path / name)
        assert public_files(tmp_path / name) == files
        for other, export in EXPORTS.items():
            target = tmp_path / f"{name}-{other}"
            export(sets[name], target)
            export_npy(open_set(target), tmp_path / f"{name}-{other}-npy")
            assert public_files(tmp_path / f"{name}-{other}-npy") == files


def test_every_format_is_loaded_and_batched_alike(sets: dict[str, Path]) -> None:
    batches = {}
    for name, path in sets.items():
        data = hfprep.load(path)
        assert isinstance(data, hfprep.formats.loading.FeatureDataset)
        assert data.lengths("code_len").tolist() == [data[index]["frames"].shape[1] for index in range(len(data))]
        loader = torch.utils.data.DataLoader(data, batch_size=4, collate_fn=hfprep.collate, num_workers=1)
        batches[name] = list(loader)
    for found in batches.values():
        assert len(found) == 2
        for batch, expected in zip(found, batches["npy"], strict=True):
            assert batch.keys() == expected.keys()
            for key, value in expected.items():
                assert torch.equal(batch[key], value) if isinstance(value, torch.Tensor) else batch[key] == value, key
    batch = batches["arrow"][0]
    assert batch["ids"] == ["some/0", "some/1", "some/2", "some/4"]
    assert batch["words"].shape == (4, 5)
    assert batch["words"][0].tolist()[1:] == [-1] * 4
    assert batch["frames"].shape == (4, 4, 8)
    assert batch["frames"][0, 2:].unique().tolist() == [7]
    assert batch["word_lengths"].tolist() == [1, 2, 3, 5]
    assert batch["codebooks_lengths"].tolist() == [2, 3, 4, 3]
    assert batch["code_lengths"].tolist() == [4, 5, 6, 8]
    assert batch["voice"].shape == (4, 3, 5)
    assert batch["language_numbers"].tolist() == [0, 1, 0, 0]


def test_datasets_gives_the_columns_their_types(sets: dict[str, Path]) -> None:
    data = datasets.load_from_disk(str(sets["arrow"]))["train"]
    assert str(data.features["words"]) == "List(Value('int32'))"
    assert str(data.features["frames"]) == "List(List(Value('int32')))"
    assert str(data.features["voice"]) == "Array2D(shape=(3, 5), dtype='float32')"
    assert data.features["language_number"].dtype == "int32"
    expected = open_set(sets["npy"]).split("train").sample(2)
    assert data[2]["id"] == expected.entry.id
    for name, array in expected.arrays.items():
        np.testing.assert_array_equal(np.asarray(data[2][name], array.dtype), array)


def test_lengths_that_are_fixed_make_lists_of_fixed_size() -> None:
    def types(fixed: dict[str, int]) -> dict[str, pa.DataType]:
        schema = Schema("x", MADE_UP.columns, MADE_UP.groups, fixed=fixed)
        return {item.name: item.type for item in ArrowShards(schema, ArrowOptions(dtype="float16")).arrow_schema}

    assert types({"codebooks": 2})["frames"] == pa.list_(pa.list_(pa.int32()), 2)
    assert types({"word_len": 4})["words"] == pa.list_(pa.int32(), 4)
    assert types({"codebooks": 2, "code_len": 3})["frames"].storage_type == pa.list_(pa.list_(pa.int32()))
    assert types({})["voice"].storage_type == pa.list_(pa.list_(pa.float16()))


def test_only_vectors_are_stored_in_float16(sets: dict[str, Path], tmp_path: Path) -> None:
    source = open_set(sets["npy"])
    export_arrow(source, tmp_path / "arrow", ArrowOptions(dtype="float16"))
    export_webdataset(source, tmp_path / "webdataset", WebDatasetOptions(dtype="float16"))
    for name in EXPORTS:
        half = open_set(tmp_path / name)
        assert half.origin.latents_dtype == "float16"
        sample = half.split("train").sample(0)
        assert {key: str(array.dtype) for key, array in sample.arrays.items()} == {
            "words": "int32", "frames": "int32", "voice": "float16",
        }  # fmt: skip
        assert hfprep.load(tmp_path / name)[0]["voice"].dtype == torch.float32


def test_a_shape_that_is_not_the_schemas_is_refused(sets: dict[str, Path], tmp_path: Path) -> None:
    source = make_made_up(tmp_path / "npy")
    np.save(source / "voice" / "some" / "4.npy", np.zeros((3, 4), np.float32))
    for export in EXPORTS.values():
        with pytest.raises(StoreError, match=r"'some/4': voice is of shape \(3, 4\), but the schema's size is 5"):
            export(source, tmp_path / "exported")


def test_a_set_that_names_no_schema_is_of_the_first_version(tmp_path: Path) -> None:
    """As hfprep 0.1.0 wrote it: the width is that of the vectors there."""
    source = make_output(tmp_path / "npy", dim=11)
    assert open_set(source).origin.schema is None
    assert open_set(source).schema == first_schema(11)
    for name, export in EXPORTS.items():
        export(source, tmp_path / name)
        found = open_set(tmp_path / name)
        assert (found.origin.schema, found.schema) == (None, first_schema(11))
        assert sum(len(found.split(split)) for split in SPLITS) == 12
    assert first_schema(11).by_name[width_column()].dims == (11,)


@pytest.mark.parametrize("name", ["stats.json", "index.json"])
def test_a_schema_that_cannot_be_read_is_said(sets: dict[str, Path], tmp_path: Path, name: str) -> None:
    source = make_made_up(tmp_path / "npy")
    export_webdataset(open_set(source), tmp_path / "webdataset")
    path = {"stats.json": source, "index.json": tmp_path / "webdataset"}[name] / name
    content = json.loads(path.read_bytes())
    content["schema"]["columns"][0]["kind of number"] = "new"
    path.write_text(json.dumps(content))
    with pytest.raises(StoreError, match="description of its columns cannot be read"):
        _ = open_set(path.parent).schema
