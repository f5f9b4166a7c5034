"""What a build promises, of IndexTTS-2.5: formats, kills, memory, processes, parts, vocabularies, verification."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import hfprep
from hfprep.formats.arrow_writer import ArrowOptions, export_arrow
from hfprep.formats.formats import open_set
from hfprep.formats.npy import export_npy
from hfprep.formats.webdataset_writer import WebDatasetOptions, export_webdataset
from hfprep.models.campplus import Campplus
from hfprep.models.conditioner import EmotionConditioner
from hfprep.models.downsampled_codec import DownsampledCodec
from hfprep.models.semantic_encoder import SemanticEncoder
from hfprep.pipeline.merging import merge
from hfprep.pipeline.retokenizing import retokenize
from hfprep.tools.check.options import CheckOptions
from hfprep.tools.check.scan import check
from hfprep.tools.verify.checking import verify
from hfprep.tools.verify.options import VerifyOptions
from tests.sample_sets import public_files

pytestmark = pytest.mark.usefixtures("one_clip_is_timed", "quick_collections")

COLUMNS = ("text_ids", "codes", "spk_emb", "emo_vec")
VOCABULARY = "multilingual_zh_ja_yue_char_del.tiktoken"
KILLS = 3
NETWORKS = (SemanticEncoder, DownsampledCodec, Campplus, EmotionConditioner)
Build = Callable[..., hfprep.Summary]


@pytest.fixture(scope="module")
def manifest(golden25_small: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The four clips of the golden set, each under two ids."""
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    rows = [json.loads(line) for line in (golden25_small / "manifest.jsonl").read_bytes().splitlines()]
    rows = [row | {"audio": str(golden25_small / row["audio"]), "take": 1} for row in rows]
    rows += [row | {"id": f"more/{row['id']}"} for row in rows]
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def build(manifest: Path, golden25_small: Path) -> Build:
    def run(output: Path, **options: Any) -> hfprep.Summary:
        values: dict[str, Any] = {
            "manifest": manifest, "models": golden25_small / "checkpoints", "output_dir": output, "val_ratio": 0.3,
            "batch_size": 1, "device": "cpu",
        }  # fmt: skip
        return hfprep.build(hfprep.BuildConfig(**(values | options)))

    return run


@pytest.fixture(scope="module")
def quiet(build: Build, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of one run that nothing disturbs."""
    output = tmp_path_factory.mktemp("quiet") / "out"
    assert build(output).accepted == 8
    return output


def files(output: Path) -> dict[str, bytes]:
    """Manifests and arrays, byte for byte."""
    return {name: data for name, data in public_files(output).items() if name != "stats.json"}


def assert_alike(output: Path, wanted: Path) -> None:
    """The same records, text ids and codes, and vectors that differ by rounding alone."""
    assert files(output).keys() == files(wanted).keys()
    for name, data in files(wanted).items():
        if not name.startswith(("spk_emb/", "emo_vec/")):
            assert (output / name).read_bytes() == data, name
            continue
        got, expected = np.load(output / name), np.load(wanted / name)
        assert got.dtype == expected.dtype
        assert np.linalg.norm(got - expected) < 1e-4 * np.linalg.norm(expected), name


@pytest.mark.parametrize("format_", ["arrow", "webdataset"])
def test_a_format_and_back_gives_the_same_bytes(quiet: Path, build: Build, tmp_path: Path, format_: str) -> None:
    """By an export, and by a build that never has the npy layout."""
    if format_ == "arrow":
        export_arrow(open_set(quiet), tmp_path / "export", ArrowOptions(max_shard_bytes=3000))
    else:
        export_webdataset(open_set(quiet), tmp_path / "export", WebDatasetOptions(max_shard_samples=3))
    export_npy(open_set(tmp_path / "export"), tmp_path / "back")
    assert public_files(tmp_path / "back") == public_files(quiet)
    assert build(tmp_path / "sharded", format=format_).accepted == 8
    export_npy(open_set(tmp_path / "sharded"), tmp_path / "unpacked")
    assert files(tmp_path / "unpacked") == files(quiet)
    one, other = hfprep.load(quiet)[1], hfprep.load(tmp_path / "sharded")[1]
    assert one.keys() == other.keys() == {"id", "language", "lang_id", *COLUMNS}
    assert all(torch.equal(one[column], other[column]) for column in COLUMNS)


@pytest.mark.slow
def test_killed_and_run_again_it_is_one_quiet_run(
    quiet: Path, manifest: Path, golden25_small: Path, tmp_path: Path, build: Build
) -> None:
    """SIGKILL, at a random moment from the first listed sample on, several times over."""
    output, chance = tmp_path / "out", random.Random(4)
    command = [
        sys.executable, "-m", "hfprep", "build", "--manifest", str(manifest), "--output-dir", str(output),
        "--models", str(golden25_small / "checkpoints"), "--val-ratio", "0.3", "--batch-size", "1", "--device", "cpu",
    ]  # fmt: skip
    progress = output / ".preprocessing_progress.txt"
    killed = 0
    for _ in range(KILLS):
        before = progress.stat().st_size if progress.exists() else 0
        process = subprocess.Popen(
            command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        while process.poll() is None and not (progress.exists() and progress.stat().st_size > before):
            time.sleep(0.005)
        time.sleep(chance.random() * 0.05)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            killed += 1
        process.wait()
        listed = [
            json.loads(line)
            for name in ("train_manifest.jsonl", "val_manifest.jsonl")
            for line in ((output / name).read_bytes().splitlines(keepends=True) if (output / name).exists() else [])
            if line.endswith(b"\n")
        ]
        for record in listed:  # nothing is listed before it is on disk, whole
            assert len(np.load(output / record["codes_path"])) == record["code_len"]
            for column in ("text_ids", "spk_emb", "emo_vec"):
                assert len(np.load(output / record[f"{column}_path"]))
    assert killed
    summary = build(output)
    assert summary.accepted == 8
    assert files(output) == files(quiet)
    assert sorted(progress.read_text().splitlines()) == sorted((quiet / progress.name).read_text().splitlines())


@pytest.mark.parametrize("batch_size", [3, 8])
def test_batches_in_another_order_give_what_single_samples_give(
    quiet: Path, manifest: Path, build: Build, tmp_path: Path, batch_size: int
) -> None:
    rows = manifest.read_text(encoding="utf-8").splitlines(keepends=True)
    random.Random(batch_size).shuffle(rows)
    (tmp_path / "rows.jsonl").write_text("".join(rows), encoding="utf-8")
    options = {"manifest": tmp_path / "rows.jsonl", "batch_size": batch_size}
    assert build(tmp_path / "out", **options).accepted == 8
    for name in ("train_manifest.jsonl", "val_manifest.jsonl"):  # back in the first order
        path, order = tmp_path / "out" / name, (quiet / name).read_text(encoding="utf-8").splitlines()
        path.write_text(
            "".join(f"{line}\n" for line in sorted(path.read_text(encoding="utf-8").splitlines(), key=order.index)),
            encoding="utf-8",
        )
    assert_alike(tmp_path / "out", quiet)


@pytest.mark.parametrize("network", NETWORKS, ids=lambda network: network.__name__)
def test_memory_that_runs_out_in_a_network_costs_no_sample(
    quiet: Path, build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, network: type
) -> None:
    """Every batch of more than one clip fails there, or its first clip: each is computed alone in the end."""
    plain, failed = network.forward, 0  # type: ignore[attr-defined]

    def forward(self: Any, first: Tensor, *rest: Any, **named: Any) -> Any:
        nonlocal failed
        one_by_one = network is Campplus  # it gets the clips of a batch one after another
        if failed < 3 if one_by_one else len(getattr(rest[0], "real_frames", rest[0])) > 1:
            failed += 1
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return plain(self, first, *rest, **named)

    monkeypatch.setattr(network, "forward", forward)
    summary = build(tmp_path / "out", batch_size=8)
    assert failed
    assert (summary.accepted, dict(summary.rejected)) == (8, {})
    assert_alike(tmp_path / "out", quiet)


def test_two_processes_make_the_same_files(quiet: Path, build: Build, tmp_path: Path) -> None:
    assert build(tmp_path / "out", num_processes=2).accepted == 8
    assert_alike(tmp_path / "out", quiet)


@pytest.mark.slow
def test_ray_makes_the_same_files(quiet: Path, build: Build, tmp_path: Path) -> None:
    ray = pytest.importorskip("ray")
    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)
    try:
        assert build(tmp_path / "out", engine="ray").accepted == 8
    finally:
        ray.shutdown()
    assert_alike(tmp_path / "out", quiet)


def test_merged_parts_are_one_run(quiet: Path, build: Build, tmp_path: Path) -> None:
    parts = [tmp_path / f"part{index}" for index in range(2)]
    for index, part in enumerate(parts):
        build(part, shard=f"{index}/2")
    merge(parts, tmp_path / "out")
    assert files(tmp_path / "out") == files(quiet)


@pytest.fixture
def copy(quiet: Path, tmp_path: Path) -> Path:
    """A copy of the quiet run that a test may spoil."""
    return Path(shutil.copytree(quiet, tmp_path / "copy"))


def test_verify_finds_a_wrong_number_of_every_column_and_repairs(copy: Path, quiet: Path, build: Build) -> None:
    sound = verify(VerifyOptions(output_dir=copy, parity=8, device="cpu"))
    assert not sound.faults
    assert sound.parity is not None
    assert (sound.parity.samples, sound.parity.codes_differing) == (8, 0)
    for column, sample_id in (("codes", "synth3"), ("spk_emb", "synth4"), ("emo_vec", "more/synth5")):
        path = copy / column / f"{sample_id}.npy"
        values = np.load(path)
        values[0] = (values[0] + 1) % 8 if column == "codes" else values[0] + 1
        path.unlink()
        np.save(path, values)
    broken = verify(VerifyOptions(output_dir=copy, parity=8, device="cpu", repair=True))
    # A wrong code also makes the codebook's use another than stats.json says.
    assert {fault.id for fault in broken.faults if fault.id} == {"synth3", "synth4", "more/synth5"}
    assert build(copy).accepted == 8
    assert files(copy) == files(quiet)


def test_another_vocabulary_makes_text_ids_anew_and_nothing_else(
    copy: Path, quiet: Path, build: Build, golden25_small: Path, tmp_path: Path
) -> None:
    """Two tokens swap their ids: in place, and as a build with that vocabulary has them."""
    lines = (golden25_small / "checkpoints" / VOCABULARY).read_bytes().splitlines()
    tokens = {line.split()[0]: line.split()[1] for line in lines}
    # Ids of the text that is there: the first two ids of synth4 that are no special tokens change places.
    ids = [number for number in np.load(quiet / "text_ids" / "synth4.npy").tolist() if number < len(lines)][:2]
    first, second = lines[ids[0]].split()[0], lines[ids[1]].split()[0]
    swapped = {first: tokens[second], second: tokens[first]}
    vocabulary = tmp_path / "other.tiktoken"
    vocabulary.write_bytes(
        b"".join(line.split()[0] + b" " + swapped.get(line.split()[0], line.split()[1]) + b"\n" for line in lines)
    )
    before = {path: path.stat().st_mtime_ns for column in COLUMNS[1:] for path in (copy / column).rglob("*.npy")}
    summary = retokenize(copy, vocabulary)
    assert summary.accepted == 8
    assert {path: path.stat().st_mtime_ns for path in before} == before
    build(tmp_path / "built", tokenizer=vocabulary)
    assert files(copy) == files(tmp_path / "built") != files(quiet)


def test_check_foretells_what_the_build_has(manifest: Path, golden25_small: Path, quiet: Path) -> None:
    found = check(CheckOptions(manifest=manifest, models=golden25_small / "checkpoints", device="cpu")).findings
    assert (found.accepted, dict(found.rejected)) == (8, {})
    lines = [(quiet / f"{split}_manifest.jsonl").read_bytes().splitlines() for split in ("train", "val")]
    records = [json.loads(line) for part in lines for line in part]
    for name in ("text_len", "code_len"):
        lengths = [record[name] for record in records]
        assert (found.lengths[name].least, found.lengths[name].most) == (min(lengths), max(lengths))
        assert found.lengths[name].total == sum(lengths)
