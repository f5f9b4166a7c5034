"""verify on exports: Arrow and WebDataset, damaged in shards, records and arrays."""

import io
import json
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import datasets
import numpy as np
import pytest

from hfprep.formats.arrow_writer import ArrowOptions, export_arrow
from hfprep.formats.formats import open_set
from hfprep.formats.webdataset_writer import export_webdataset
from hfprep.pipeline.building import build
from hfprep.pipeline.config import BuildConfig
from hfprep.tools.verify.checking import VerifyOptions, verify
from hfprep.tools.verify.faults import FaultKind


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory, golden_small: Path) -> Path:
    folder = tmp_path_factory.mktemp("exported") / "features"
    build(
        BuildConfig(
            manifest=golden_small / "manifest.jsonl", output_dir=folder, models=golden_small / "checkpoints",
            val_ratio=0.3, device="cpu",
        )
    )  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def exports(source: Path) -> dict[str, Path]:
    folders = {name: source.parent / name for name in ("arrow", "webdataset", "half")}
    export_arrow(open_set(source), folders["arrow"])
    export_webdataset(open_set(source), folders["webdataset"])
    export_arrow(open_set(source), folders["half"], ArrowOptions(dtype="float16"))
    return folders


@pytest.fixture
def arrow(exports: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(exports["arrow"], tmp_path / "arrow"))


@pytest.fixture
def shards(exports: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(exports["webdataset"], tmp_path / "shards"))


def kinds(folder: Path) -> set[FaultKind]:
    return {fault.kind for fault in verify(VerifyOptions(output_dir=folder)).faults}


@pytest.mark.parametrize("name", ["arrow", "webdataset", "half"])
def test_sound_exports_have_no_faults(exports: dict[str, Path], name: str, golden_small: Path) -> None:
    manifest, models = golden_small / "manifest.jsonl", golden_small / "checkpoints"
    options = VerifyOptions(output_dir=exports[name], parity=2, models=models, manifest=manifest, device="cpu")
    verdict = verify(options)
    assert [fault.line() for fault in verdict.faults] == []
    assert verdict.samples == 8
    assert verdict.parity is not None
    assert (verdict.parity.samples, verdict.parity.codes_differing) == (2, 0)
    assert (verdict.parity.largest_difference > 1e-5) is (name == "half")


def shard_of(folder: Path) -> Path:
    return next((folder / "train").glob("*.arrow"))


def flip(path: Path, where: float) -> None:
    """Change one bit, and neither size nor anything else, that far into a file."""
    data = bytearray(path.read_bytes())
    data[int(where * len(data))] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("where", [0.0, 0.01, 0.3, 0.6, 0.9, 0.9999])
def test_one_bit_of_an_arrow_shard(arrow: Path, where: float) -> None:
    flip(shard_of(arrow), where)
    faults = verify(VerifyOptions(output_dir=arrow)).faults
    assert [(fault.kind, fault.file) for fault in faults if fault.kind is not FaultKind.FILE_INVALID] == [
        (FaultKind.CHECKSUM, "train/data-00000.arrow")
    ]


def test_only_the_checksum_tells_a_plausible_number(arrow: Path) -> None:
    """The same damage in a set without an index: a code for another, which nothing else can see."""
    path = shard_of(arrow)
    codes = np.asarray(datasets.load_from_disk(str(arrow))["train"][0]["codes"], np.int32).tobytes()
    start = path.read_bytes().index(codes)
    flip(path, (start + 0.5) / path.stat().st_size)
    assert kinds(arrow) == {FaultKind.CHECKSUM}
    (arrow / "index.json").unlink()
    verdict = verify(VerifyOptions(output_dir=arrow))
    assert not verdict.faults
    assert verdict.notes == ["there is no index.json, so the checksums of the shards cannot be verified"]


def test_the_other_shards_of_a_damaged_arrow_set_are_checked(source: Path, tmp_path: Path) -> None:
    folder = tmp_path / "arrow"
    export_arrow(open_set(source), folder, ArrowOptions(max_shard_bytes=1))
    index = json.loads((folder / "index.json").read_text())
    shards = index["splits"]["train"]["shards"]
    assert len(shards) > 1
    shutil.copy(folder / shards[0]["name"], folder / "train" / "more.arrow")
    state = json.loads((folder / "train" / "state.json").read_text())
    state["_data_files"].append({"filename": "more.arrow"})
    (folder / "train" / "state.json").write_text(json.dumps(state))
    assert FaultKind.FILE_INVALID in kinds(folder)  # it is not in the index
    shards.append(shards[0] | {"name": "train/more.arrow"})
    (folder / "index.json").write_text(json.dumps(index))
    assert kinds(folder) == {FaultKind.DUPLICATE_ID, FaultKind.STATS_DISAGREE, FaultKind.FILE_INVALID}
    flip(folder / "train" / "more.arrow", 0.5)
    verdict = verify(VerifyOptions(output_dir=folder))
    assert {(fault.kind, fault.file) for fault in verdict.faults} == {(FaultKind.CHECKSUM, "train/more.arrow")}
    assert verdict.samples == 8


@pytest.mark.parametrize("name", ["arrow", "webdataset"])
def test_places_that_lead_elsewhere(exports: dict[str, Path], name: str, tmp_path: Path) -> None:
    """Every shard is whole, but the file that says where each sample is says something else."""
    folder = Path(shutil.copytree(exports[name], tmp_path / name))
    places = np.load(folder / "places.npy")
    places[1] = places[0]
    np.save(folder / "places.npy", places)
    found = [(fault.kind, fault.file) for fault in verify(VerifyOptions(output_dir=folder)).faults]
    assert found == [(FaultKind.FILE_INVALID, "places.npy")]
    (folder / "places.npy").unlink()
    assert kinds(folder) == {FaultKind.FILE_INVALID}


def test_an_arrow_shard_that_is_gone_and_an_index_that_is_garbage(arrow: Path) -> None:
    shard_of(arrow).unlink()
    assert FaultKind.FILE_MISSING in kinds(arrow)
    (arrow / "index.json").write_text("[]")
    assert FaultKind.FILE_INVALID in kinds(arrow)


def test_arrow_exports_are_indexed(arrow: Path, repository: Path) -> None:
    import hashlib

    import jsonschema

    index = json.loads((arrow / "index.json").read_bytes())
    jsonschema.validate(index, json.loads((repository / "schemas" / "arrow-index.schema.json").read_bytes()))
    assert {name: split["samples"] for name, split in index["splits"].items()} == {
        name: len(rows) for name, rows in datasets.load_from_disk(str(arrow)).items()
    }
    for shard in [shard for split in index["splits"].values() for shard in split["shards"]]:
        data = (arrow / shard["name"]).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (shard["bytes"], shard["sha256"])


def test_what_a_build_wrote_beside_its_npy_layout_is_verified_and_mended(tmp_path: Path, golden_small: Path) -> None:
    config = BuildConfig(
        manifest=golden_small / "manifest.jsonl", output_dir=tmp_path / "out", models=golden_small / "checkpoints",
        device="cpu", format="npy,arrow,webdataset", max_samples=3,
    )  # fmt: skip
    build(config)
    assert verify(VerifyOptions(output_dir=tmp_path / "out")).faults == []
    flip(shard_of(tmp_path / "out" / "arrow"), 0.5)
    flip(first_tar(tmp_path / "out" / "webdataset"), 0.5)
    verdict = verify(VerifyOptions(output_dir=tmp_path / "out", repair=True))
    assert {(fault.kind, fault.file) for fault in verdict.faults if fault.kind is FaultKind.CHECKSUM} == {
        (FaultKind.CHECKSUM, "arrow/train/data-00000.arrow"),
        (FaultKind.CHECKSUM, "webdataset/train-000000.tar"),
    }
    assert [line for line in verdict.repairs if "moved" in line] == [
        "moved arrow to .hfprep/broken/1",
        "moved webdataset to .hfprep/broken/1",
    ]
    assert build(config).tally.done == 0
    assert verify(VerifyOptions(output_dir=tmp_path / "out")).faults == []
    (tmp_path / "out" / "arrow" / "dataset_dict.json").unlink()
    assert [fault.line() for fault in verify(VerifyOptions(output_dir=tmp_path / "out")).faults] == [
        "-: arrow: is not a finished export; run the build again [file_invalid]"
    ]


def first_tar(folder: Path) -> Path:
    return sorted(folder.glob("*.tar"))[0]


def one_byte(folder: Path) -> None:
    path = first_tar(folder)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut(folder: Path) -> None:
    path = first_tar(folder)
    path.write_bytes(path.read_bytes()[:2000])


def remove(folder: Path) -> None:
    first_tar(folder).unlink()


def stray(folder: Path) -> None:
    shutil.copy(first_tar(folder), folder / "train-999999.tar")


def nan_inside(folder: Path) -> None:
    """A vector with NaN in a shard whose checksum and size are made to fit: only the array tells."""
    path = first_tar(folder)
    with tarfile.open(path) as tar:
        members = [(member, tar.extractfile(member).read()) for member in tar.getmembers()]  # type: ignore[union-attr]
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for member, data in members:
            if member.name.endswith("emo_vec.npy"):
                values = np.load(io.BytesIO(data))
                values[0] = np.nan
                stream = io.BytesIO()
                np.save(stream, values)
                data = stream.getvalue()
                member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    index = json.loads((folder / "index.json").read_text())
    import hashlib

    for split in index["splits"].values():
        for shard in split["shards"]:
            data = (folder / shard["name"]).read_bytes()
            shard |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (folder / "index.json").write_text(json.dumps(index))


@pytest.mark.parametrize(
    ("damage", "kind"),
    [
        (one_byte, FaultKind.CHECKSUM),
        (cut, FaultKind.CHECKSUM),
        (remove, FaultKind.FILE_MISSING),
        (stray, FaultKind.UNLISTED_FILE),
        (nan_inside, FaultKind.NOT_FINITE),
    ],
)
def test_damaged_shards(shards: Path, damage: Callable[[Path], None], kind: FaultKind) -> None:
    damage(shards)
    assert kind in kinds(shards)


def test_repair_moves_a_broken_shard_aside_and_an_export_makes_it_again(shards: Path, source: Path) -> None:
    one_byte(shards)
    broken = first_tar(shards)
    verdict = verify(VerifyOptions(output_dir=shards, repair=True))
    assert not broken.exists()
    assert (shards / ".hfprep" / "broken" / broken.name).exists()
    assert any("export the set again" in line for line in verdict.repairs)
    export_webdataset(open_set(source), shards)
    assert not kinds(shards)


def changed(folder: Path, change: Callable[[dict], dict]) -> None:
    """Save the train split again with its first row changed; what `datasets` writes has no index."""
    (folder / "index.json").unlink()
    data = datasets.load_from_disk(str(folder))
    rows = data["train"].map(
        lambda row, index: change(row) if index == 0 else row, with_indices=True, keep_in_memory=True
    )
    info = json.loads((folder / "train" / "dataset_info.json").read_text())
    shutil.rmtree(folder / "train")
    rows.save_to_disk(str(folder / "train"))
    (folder / "train" / "dataset_info.json").write_text(json.dumps(info))


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        (lambda row: row | {"codes": [*row["codes"][:-1], 128]}, FaultKind.OUT_OF_RANGE),
        (lambda row: row | {"codes": row["codes"][:-1]}, FaultKind.ARTIFACT_UNREADABLE),
        (lambda row: row | {"emo_vec": [float("inf"), *row["emo_vec"][1:]]}, FaultKind.NOT_FINITE),
        (lambda row: row | {"id": "../out"}, FaultKind.RECORD_INVALID),
    ],
)
def test_damaged_rows(arrow: Path, change: Callable[[dict], dict], kind: FaultKind) -> None:
    changed(arrow, change)
    assert kind in kinds(arrow)


def test_a_cut_arrow_shard_and_a_stray_one(arrow: Path) -> None:
    path = shard_of(arrow)
    shutil.copy(path, arrow / "train" / "stray.arrow")
    assert kinds(arrow) == {FaultKind.UNLISTED_FILE}
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert FaultKind.CHECKSUM in kinds(arrow)
    (arrow / "index.json").unlink()
    assert FaultKind.ARTIFACT_UNREADABLE in kinds(arrow)
