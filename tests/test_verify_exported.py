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

from hfprep.building import build
from hfprep.config import BuildConfig
from hfprep.exporters.arrow_writer import ArrowOptions, export_arrow
from hfprep.exporters.formats import open_set
from hfprep.exporters.webdataset_writer import export_webdataset
from hfprep.verify.checking import VerifyOptions, verify
from hfprep.verify.faults import FaultKind


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
    """Save the train split again with its first row changed."""
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
    path = next((arrow / "train").glob("*.arrow"))
    shutil.copy(path, arrow / "train" / "stray.arrow")
    assert kinds(arrow) == {FaultKind.UNLISTED_FILE}
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert FaultKind.ARTIFACT_UNREADABLE in kinds(arrow)
