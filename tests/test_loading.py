"""The loader: the same samples in the same order from every format, and batches as the trainer takes them."""

import copy
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch.utils.data import DataLoader, DistributedSampler

import hfprep
from hfprep.errors import ConfigError, StoreError
from hfprep.formats.arrow import ListColumn
from hfprep.formats.arrow_writer import ArrowOptions, export_arrow
from hfprep.formats.formats import open_set
from hfprep.formats.loading import BatchLoader, FeatureDataset, LengthBucketedBatchSampler
from hfprep.formats.loading.batches import Rows, pad
from hfprep.formats.webdataset_writer import WebDatasetOptions, export_webdataset
from hfprep.io.words import duration
from hfprep.store.first_version import first_schema
from tests.sample_sets import AWKWARD_IDS, DIM, ROWS, make_output

FORMATS = ("npy", "arrow", "webdataset")
TRAIN_IDS = [sample_id for number, sample_id in enumerate(AWKWARD_IDS) if number % 3 != 2]


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same set in every format, in several shards."""
    root = tmp_path_factory.mktemp("sets")
    source = open_set(make_output(root / "npy"))
    export_arrow(source, root / "arrow", ArrowOptions(max_shard_bytes=2000))
    export_webdataset(source, root / "webdataset", WebDatasetOptions(max_shard_samples=3))
    return {name: root / name for name in FORMATS}


def assert_equal(one: object, other: object) -> None:
    assert isinstance(one, dict)
    assert isinstance(other, dict)
    assert list(one) == list(other)
    for name in one:
        if isinstance(one[name], torch.Tensor):
            assert one[name].dtype == other[name].dtype
            assert torch.equal(one[name], other[name]), name
        else:
            assert one[name] == other[name], name


@pytest.mark.parametrize("name", FORMATS)
def test_samples_and_order_are_those_of_the_manifest(sets: dict[str, Path], name: str) -> None:
    data = hfprep.load(sets[name], "train")
    assert isinstance(data, FeatureDataset)
    assert [data[index]["id"] for index in range(len(data))] == TRAIN_IDS
    sample_id = TRAIN_IDS[3]
    item = data[3]
    expected = {column: np.load(sets["npy"] / column / f"{sample_id}.npy") for column in
                ("text_ids", "codes", "condition", "emo_vec")}  # fmt: skip
    for column, array in expected.items():
        np.testing.assert_array_equal(item[column].numpy(), array)
    assert {column: item[column].dtype for column in expected} == {
        "text_ids": torch.int64, "codes": torch.int64, "condition": torch.float32, "emo_vec": torch.float32,
    }  # fmt: skip
    assert data.code_lengths.tolist() == [len(data[index]["codes"]) for index in range(len(data))]
    assert data.text_lengths.tolist() == [len(data[index]["text_ids"]) for index in range(len(data))]
    assert data.record(3) == hfprep.load(sets["npy"]).record(3)
    assert data[-1]["id"] == TRAIN_IDS[-1]
    with pytest.raises(IndexError):
        data[len(data)]
    for split in ("validation", "val"):
        assert len(hfprep.load(sets[name], split)) == len(AWKWARD_IDS) - len(TRAIN_IDS)


def test_a_set_of_tars_is_opened_without_reading_one(tmp_path: Path) -> None:
    """The index says what the samples are and where each is, so that a million of them open as fast as ten."""
    source, folder = make_output(tmp_path / "npy"), tmp_path / "shards"
    stats = json.loads((source / "stats.json").read_bytes())
    (source / "stats.json").write_text(json.dumps(stats | {"schema": first_schema(DIM).record()}))
    export_webdataset(open_set(source), folder, WebDatasetOptions(max_shard_samples=3))
    for tar in folder.glob("*.tar"):
        tar.write_bytes(bytes(tar.stat().st_size))  # nothing in it
    data = hfprep.load(folder)
    assert len(data) == len(TRAIN_IDS)
    with pytest.raises(StoreError):
        data[0]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("name", FORMATS[1:])
def test_batches_are_the_same_from_every_format(sets: dict[str, Path], name: str, workers: int) -> None:
    """Shuffled by torch with a seed, in worker processes too."""

    def batches(path: Path, num_workers: int) -> list[dict[str, Any]]:
        generator = torch.Generator().manual_seed(5)
        loader = DataLoader(
            hfprep.load(path), batch_size=3, shuffle=True, generator=generator, collate_fn=hfprep.collate,
            num_workers=num_workers,
        )  # fmt: skip
        return list(loader)

    expected = batches(sets["npy"], 0)
    assert [sample_id for batch in expected for sample_id in batch["ids"]] != TRAIN_IDS
    for one, other in zip(batches(sets[name], workers), expected, strict=True):
        assert_equal(one, other)


@pytest.mark.parametrize("name", FORMATS)
def test_a_data_set_can_be_pickled_to_workers(sets: dict[str, Path], name: str) -> None:
    data = hfprep.load(sets[name])
    first = data[0]
    copy = pickle.loads(pickle.dumps(data))
    assert_equal(copy[0], first)
    assert_equal(copy[5], data[5])


@pytest.mark.parametrize("name", FORMATS)
def test_vectors_are_read_into_the_batch(sets: dict[str, Path], name: str) -> None:
    """Samples that a DataLoader asks for at once are collated without a copy; any others are copied, right."""
    data = hfprep.load(sets[name], "train")
    singly = [data[index] for index in (2, 0, 1)]
    items = data.__getitems__([2, 0, 1])
    for one, other in zip(items, singly, strict=True):
        assert_equal(one, other)
    batch = hfprep.collate(items)
    assert batch["condition"].data_ptr() == items[0]["condition"].data_ptr()
    assert_equal(batch, hfprep.collate(singly))
    for chosen in ([1, 0, 2], [0, 1], [1, 2], [0, 1, 1]):
        assert_equal(hfprep.collate([items[n] for n in chosen]), hfprep.collate([singly[n] for n in chosen]))
    shortened = [item | {"condition": item["condition"][:2]} for item in items]
    assert hfprep.collate(shortened)["condition"].shape == (3, 2, DIM)


def test_vectors_of_other_lengths_are_padded() -> None:
    """A data set whose vectors have no fixed number of rows."""
    rows = Rows(3)
    arrays = [np.full((length, 2), length, np.float32) for length in (2, 3, 2)]
    found = [rows.add({"x": array})["x"] for array in arrays]
    for tensor, array in zip(found, arrays, strict=True):
        np.testing.assert_array_equal(tensor.numpy(), array)
    assert pad(found, 0)[:, :, 0].tolist() == [[2, 2, 0], [3, 3, 3], [2, 2, 0]]


def test_batches_survive_pickling_and_copying(sets: dict[str, Path]) -> None:
    """Also what does not go by value: another dtype, a large tensor, one that needs a gradient."""
    data = hfprep.load(sets["npy"], "train")
    batch = hfprep.collate([data[0], data[1]])
    batch["half"] = batch["emo_vec"].to(torch.bfloat16)
    batch["large"] = torch.arange(100_000)
    batch["weight"] = torch.ones(2, requires_grad=True)
    for other in (pickle.loads(pickle.dumps(batch)), copy.copy(batch), copy.deepcopy(batch)):
        assert type(other) is type(batch)
        assert_equal(other, batch)
        assert other["weight"].requires_grad


LISTS: dict[str, tuple[pa.DataType, int, list[Any]]] = {
    "numbers": (pa.list_(pa.int32()), 1, [[1, 2], [], [3], [4, 5, 6]]),
    "long": (pa.large_list(pa.float32()), 1, [[1.5], [2.0, 2.5], [], [3.0]]),
    "pairs": (pa.list_(pa.list_(pa.float32(), 2)), 2, [[[1, 2]], [[3, 4], [5, 6]], [], [[7, 8]]]),
    "fixed": (pa.list_(pa.list_(pa.float32(), 2), 2), 2, [[[1, 2], [3, 4]], [[5, 6], [7, 8]]] * 2),
    "nested": (pa.list_(pa.list_(pa.int32())), 2, [[[1, 2, 3], [4, 5, 6]], [[7]], [[8, 9]], [[1], [2]]]),
}


@pytest.mark.parametrize("name", LISTS)
def test_lists_are_read_by_their_places(name: str) -> None:
    """Whole columns and slices of them, as `datasets` may have saved them again."""
    dtype, ndim, rows = LISTS[name]
    whole = pa.array(rows, dtype)
    for start, end in ((0, 4), (1, 4), (2, 3)):
        column = ListColumn(whole[start:end], ndim)
        for row in range(end - start):
            expected = rows[start + row]
            found = column.row(row)
            assert found.tolist() == expected
            assert found.ndim == ndim
    holes = ListColumn(pa.array([rows[0], None], dtype), ndim)
    assert holes.row(0).tolist() == rows[0]
    assert holes.row(1).size == 0


def test_lists_that_are_no_array_are_an_error() -> None:
    column = ListColumn(pa.array([[1, 2], [3, None]], pa.list_(pa.int32())), 1)
    assert column.row(0).tolist() == [1, 2]
    with pytest.raises(ValueError, match="nulls"):
        column.row(1)
    with pytest.raises(ValueError, match="reshape"):
        ListColumn(pa.array([[[1, 2], [3]]], pa.list_(pa.list_(pa.int32()))), 2).row(0)


def test_distributed_ranks_share_the_samples(sets: dict[str, Path]) -> None:
    seen = []
    for rank in range(2):
        data = hfprep.load(sets["arrow"])
        sampler: DistributedSampler[int] = DistributedSampler(data, num_replicas=2, rank=rank, shuffle=True, seed=3)
        loader = DataLoader(data, batch_size=2, sampler=sampler, collate_fn=hfprep.collate)
        seen.append([sample_id for batch in loader for sample_id in batch["ids"]])
    assert len(seen[0]) == len(seen[1]) == 4
    assert sorted(seen[0] + seen[1]) == sorted(TRAIN_IDS)


def test_collate_pads_with_zeros_and_gives_lengths() -> None:
    samples: list[dict[str, Any]] = [
        {"id": "a", "language": "en", "text_ids": torch.tensor([1, 2, 3]), "codes": torch.tensor([4]),
         "condition": torch.ones(ROWS, DIM), "emo_vec": torch.full((DIM,), 2.0)},
        {"id": "b", "language": None, "text_ids": torch.tensor([5]), "codes": torch.tensor([6, 7]),
         "condition": torch.zeros(ROWS, DIM), "emo_vec": torch.full((DIM,), 3.0)},
    ]  # fmt: skip
    batch = hfprep.collate(samples)
    assert sorted(batch) == [
        "code_lengths", "codes", "condition", "condition_lengths", "emo_vec", "ids", "languages", "text_ids",
        "text_lengths",
    ]  # fmt: skip
    assert batch["ids"] == ["a", "b"]
    assert batch["languages"] == ["en", None]
    assert batch["text_ids"].tolist() == [[1, 2, 3], [5, 0, 0]]
    assert batch["codes"].tolist() == [[4, 0], [6, 7]]
    assert batch["text_lengths"].tolist() == [3, 1]
    assert batch["code_lengths"].tolist() == [1, 2]
    assert batch["condition_lengths"].tolist() == [ROWS, ROWS]
    assert batch["condition"].shape == (2, ROWS, DIM)
    assert batch["emo_vec"].tolist() == [[2.0] * DIM, [3.0] * DIM]
    assert {batch[name].dtype for name in ("text_ids", "codes", "text_lengths", "code_lengths")} == {torch.int64}
    with pytest.raises(ValueError, match="samples is empty"):
        hfprep.collate([])


def test_a_length_that_is_not_the_records_is_an_error(tmp_path: Path) -> None:
    source = make_output(tmp_path / "out", ids=("a", "b"))
    np.save(source / "text_ids" / "b.npy", np.zeros(9, np.int32))
    data = hfprep.load(source)
    assert data[0]["id"] == "a"
    with pytest.raises(StoreError, match=r"'b': text_ids is of shape \(9,\), but the record's text_len is 4"):
        data[1]


def test_float16_latents_are_loaded_as_float32(tmp_path: Path) -> None:
    source = make_output(tmp_path / "out", ids=("a", "b"))
    export_arrow(open_set(source), tmp_path / "arrow", ArrowOptions(dtype="float16"))
    item = hfprep.load(tmp_path / "arrow")[0]
    assert item["condition"].dtype == item["emo_vec"].dtype == torch.float32
    np.testing.assert_allclose(item["condition"].numpy(), np.load(source / "condition" / "a.npy"), rtol=1e-3, atol=1e-6)


def test_a_damaged_shard_is_named(sets: dict[str, Path], tmp_path: Path) -> None:
    export_webdataset(open_set(sets["npy"]), tmp_path / "shards")
    with open(tmp_path / "shards" / "train-000000.tar", "ab") as stream:
        stream.write(b"more")
    with pytest.raises(StoreError, match=r"train-000000\.tar has \d+ bytes instead of \d+"):
        hfprep.load(tmp_path / "shards")


def test_what_cannot_be_loaded_is_said(tmp_path: Path, sets: dict[str, Path]) -> None:
    with pytest.raises(StoreError, match="not a Hub data set id"):
        hfprep.load(tmp_path / "missing")
    with pytest.raises(ConfigError, match="split is 'test'"):
        hfprep.load(sets["npy"], "test")
    with pytest.raises(StoreError, match="cannot be downloaded"):
        hfprep.load("nobody/nothing")


LENGTHS = np.random.default_rng(1).integers(1, 400, 997)


def test_buckets_hold_every_sample_once_and_like_with_like() -> None:
    sampler = LengthBucketedBatchSampler(LENGTHS, batch_size=8, seed=3)
    batches = list(sampler)
    assert len(sampler) == len(batches)
    assert sorted(index for batch in batches for index in batch) == list(range(997))
    padded = sum(len(batch) * LENGTHS[batch].max() for batch in batches)
    assert LENGTHS.sum() / padded > 0.95
    in_order = np.array_split(LENGTHS, 125)
    assert LENGTHS.sum() / sum(len(part) * part.max() for part in in_order) < 0.65


def test_the_batches_of_an_epoch_are_made_once() -> None:
    """A DataLoader asks for their number at every turn."""
    sampler = LengthBucketedBatchSampler(LENGTHS, batch_size=8)
    first = list(sampler)
    assert len(sampler) == len(first)
    assert all(batch is other for batch, other in zip(first, sampler, strict=True))
    sampler.set_epoch(1)
    assert list(sampler) != first


def test_buckets_depend_on_seed_and_epoch_alone() -> None:
    def order(seed: int, epoch: int) -> list[list[int]]:
        sampler = LengthBucketedBatchSampler(LENGTHS, batch_size=8, seed=seed)
        sampler.set_epoch(epoch)
        return list(sampler)

    assert order(0, 1) == order(0, 1)
    assert order(0, 1) != order(0, 2)
    assert order(0, 1) != order(1, 1)


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("world_size", [2, 3, 7])
def test_ranks_get_as_many_batches_each(world_size: int, drop_last: bool) -> None:
    ranks = [
        list(LengthBucketedBatchSampler(LENGTHS, batch_size=8, rank=rank, world_size=world_size, drop_last=drop_last))
        for rank in range(world_size)
    ]
    assert len({len(batches) for batches in ranks}) == 1
    seen = [index for batches in ranks for batch in batches for index in batch]
    if drop_last:
        assert len(seen) == len(set(seen))
        assert {len(batch) for batches in ranks for batch in batches} == {8}
        assert len(seen) > 997 - 8 * world_size - 8
    else:
        assert set(seen) == set(range(997))
        assert len(seen) < 997 + 8 * world_size


def test_buckets_keep_to_the_frames() -> None:
    batches = list(LengthBucketedBatchSampler(LENGTHS, batch_size=64, max_frames=1000))
    assert sorted(index for batch in batches for index in batch) == list(range(997))
    assert max(len(batch) * LENGTHS[batch].max() for batch in batches) <= 1000
    alone = list(LengthBucketedBatchSampler([5, 2000], batch_size=4, max_frames=1000))
    assert sorted(alone) == [[0], [1]]


def test_buckets_without_shuffling_keep_the_pools_in_order() -> None:
    sampler = LengthBucketedBatchSampler([3, 1, 2, 9, 8, 7], batch_size=1, bucket_batches=3, shuffle=False)
    assert list(sampler) == [[1], [2], [0], [5], [4], [3]]


def test_bad_sampler_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="batch_size is 0"):
        LengthBucketedBatchSampler([1], batch_size=0)
    with pytest.raises(ValueError, match="rank is 2; it must be from 0 to 1"):
        LengthBucketedBatchSampler([1], batch_size=1, rank=2, world_size=2)
    assert list(LengthBucketedBatchSampler([], batch_size=2)) == []


def test_a_data_loader_takes_the_sampler(sets: dict[str, Path]) -> None:
    data = hfprep.load(sets["webdataset"])
    sampler = LengthBucketedBatchSampler(data.code_lengths, batch_size=3)
    loader = DataLoader(data, batch_sampler=sampler, collate_fn=hfprep.collate)
    assert sorted(sample_id for batch in loader for sample_id in batch["ids"]) == sorted(TRAIN_IDS)


def ids_of(loader: BatchLoader) -> list[list[str]]:
    return [batch["ids"] for batch in loader]


@pytest.mark.parametrize("workers", [0, 2])
def test_dataloader_gives_the_batches_of_the_sampler(sets: dict[str, Path], workers: int) -> None:
    """With the same seed and epoch: those that the sampler, `load` and `collate` give, in worker processes too."""
    loader = hfprep.dataloader(sets["arrow"], "train", 2, seed=4, num_workers=workers)
    data = hfprep.load(sets["npy"])
    sampler = LengthBucketedBatchSampler(data.code_lengths, batch_size=2, seed=4)
    seen = []
    for epoch in range(3):
        loader.set_epoch(epoch)
        sampler.set_epoch(epoch)
        seen.append(ids_of(loader))
        for batch, positions in zip(loader, sampler, strict=True):
            assert_equal(batch, hfprep.collate([data[position] for position in positions]))
    assert any(other != seen[0] for other in seen)
    assert len(loader) == len(sampler)


def test_dataloader_keeps_the_order_of_validation_and_shares_batches_among_ranks(sets: dict[str, Path]) -> None:
    validation = hfprep.dataloader(sets["npy"], "validation", 1)
    validation.set_epoch(0)
    first = ids_of(validation)
    validation.set_epoch(1)
    assert ids_of(validation) == first
    ranks = [hfprep.dataloader(sets["npy"], "train", 2, rank=rank, world_size=2) for rank in range(2)]
    assert sorted(sample_id for rank in ranks for ids in ids_of(rank) for sample_id in ids) == sorted(TRAIN_IDS)
    narrow = hfprep.dataloader(sets["npy"], "train", 64, max_frames=1)
    assert {len(ids) for ids in ids_of(narrow)} == {1}
    with pytest.raises(ValueError, match="batch_size is 0"):
        hfprep.dataloader(sets["npy"], "train", 0)
    with pytest.raises(ConfigError, match="split is 'test'"):
        hfprep.dataloader(sets["npy"], "test", 1)


@pytest.mark.parametrize("name", FORMATS)
def test_the_repr_of_a_data_set_says_what_it_is(sets: dict[str, Path], name: str) -> None:
    data = hfprep.load(sets[name])
    audio = duration(data.code_lengths.sum() / 50)
    assert repr(data).splitlines() == [
        f"FeatureDataset: {len(TRAIN_IDS)} samples, {audio} of audio, recipe indextts-2",
        f"  train split of {sets[name]} ({name})",
        "  text_ids: int64 (text_len,)",
        "  codes: int64 (code_len,)",
        f"  condition: float32 ({ROWS}, {DIM})",
        f"  emo_vec: float32 ({DIM},)",
    ]
    for column in data.schema.columns:
        assert str(data[0][column.name].dtype) in {"torch.int64", "torch.float32"}


def test_the_repr_of_a_large_set_looks_at_some_records_only(
    sets: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = hfprep.load(sets["webdataset"])
    looked_at: list[int] = []
    plain = data.record

    def record(position: int) -> dict[str, Any]:
        looked_at.append(position)
        return plain(position)

    monkeypatch.setattr(data, "record", record)
    monkeypatch.setattr("hfprep.formats.loading.dataset.LOOKED_AT", 3)
    assert ", about " in repr(data).splitlines()[0]
    assert len(looked_at) <= 3
    empty = hfprep.load(make_output(sets["npy"].parent / "one", ids=("a",)), "val")
    assert repr(empty).startswith("FeatureDataset: 0 samples, recipe ")
