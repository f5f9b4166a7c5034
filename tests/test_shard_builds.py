"""`build --format` without npy: the same samples, splits and listing as with npy, and nothing computed twice.

What may happen to shards, one change after another and killed anywhere, is in test_formats_shards.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import hfprep
from hfprep.errors import ConfigError, StoreError
from hfprep.formats.arrow import ArrowRows
from hfprep.formats.formats import open_set
from hfprep.formats.npy import export_npy
from hfprep.formats.pairs import write_pairs
from hfprep.formats.samples import SPLITS
from hfprep.pipeline.building import Summary
from hfprep.pipeline.config import BuildConfig
from hfprep.pipeline.dry_run import preview
from hfprep.tools.report.collect import collect
from hfprep.tools.verify.checking import VerifyOptions, verify
from hfprep.tools.verify.faults import FaultKind
from tests.sample_sets import public_files

pytestmark = pytest.mark.usefixtures("two_layers")

SHARED_FILES = ("rejected.jsonl", ".preprocessing_progress.txt")
FORMATS = ("arrow", "webdataset")
Rows = list[dict[str, Any]]


class Builds:
    """Builds of rows that a test changes as it likes."""

    def __init__(self, folder: Path, golden: Path) -> None:
        self.folder = folder
        self.golden = golden
        lines = (golden / "manifest.jsonl").read_bytes().splitlines()
        self.clips = [json.loads(line) for line in lines]
        self.references = 0

    def row(self, number: int, **fields: Any) -> dict[str, Any]:
        """A row with a clip by its number; every fifth id has a folder."""
        clip = self.clips[number % len(self.clips)]
        sample_id = f"folder/{number}" if number % 5 == 0 else f"sample-{number}"
        row = {"id": sample_id, "text": f"{clip['text']} {number}", "audio": str(self.golden / clip["audio"])}
        return row | {name: clip[name] for name in ("language", "speaker") if name in clip} | fields

    def build(self, name: str, rows: Rows, **options: Any) -> Summary:
        manifest = self.folder / f"{name}.jsonl"
        manifest.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        given: dict[str, Any] = {"val_ratio": 0.3, "workers": 1, "max_shard_size": "20KB", "batch_size": 1} | options
        config = BuildConfig(
            manifest=manifest, output_dir=self.folder / name, models=self.golden / "checkpoints", **given
        )
        return hfprep.build(config)

    def reference(self, rows: Rows, formats: str, **options: Any) -> Path:
        """A fresh build in these formats."""
        self.references += 1
        name = f"reference-{self.references}"
        self.build(name, rows, **options, format=formats)
        return self.folder / name

    def check(self, name: str, reference: Path, form: str) -> None:
        """The output has the samples, numbers, splits and listing of the reference, and nothing else."""
        output = self.folder / name
        ours, theirs = open_set(output), open_set(reference)
        assert ours.format == form
        for split in SPLITS:
            pairs = zip(ours.split(split).samples(), theirs.split(split).samples(), strict=True)
            extras = zip(ours.split(split).entries(), theirs.split(split).entries(), strict=True)
            assert all(json.loads(one.extra) == json.loads(other.extra) for one, other in extras)
            for sample, right in pairs:
                assert sample.entry.record == right.entry.record
                for column, array in right.arrays.items():
                    np.testing.assert_array_equal(sample.arrays[column], array)
        for file in SHARED_FILES:
            assert (output / file).read_bytes() == (reference / file).read_bytes(), file
        stats, right = (json.loads((root / "stats.json").read_bytes()) for root in (output, reference))
        assert stats | {"settings": None} == right | {"settings": None}  # these name the format
        assert artifacts(output) == 0
        assert not (output / ".hfprep" / "work").exists()
        verdict = verify(VerifyOptions(output_dir=output))
        assert [fault.line() for fault in verdict.faults] == []


@pytest.fixture
def builds(tmp_path: Path, golden_small: Path) -> Builds:
    return Builds(tmp_path, golden_small)


def shards_of(output: Path) -> dict[str, int]:
    """Inodes of the shards by name."""
    found = [*output.glob("arrow/*/*.arrow"), *output.glob("webdataset/*.tar")]
    return {path.relative_to(output).as_posix(): path.stat().st_ino for path in found}


def features_of(output: Path) -> dict[str, bytes]:
    """The npy layout's files but for stats.json, which names the format of the build."""
    return {name: data for name, data in public_files(output).items() if name != "stats.json"}


def artifacts(output: Path) -> int:
    return sum(path.name != "places.npy" for path in output.rglob("*.npy"))


@pytest.mark.parametrize("form", FORMATS)
def test_the_samples_are_those_of_a_build_with_npy(builds: Builds, form: str) -> None:
    """Rejected lines, fields of all kinds, several shards; and a second build that has nothing to do."""
    rows = [builds.row(number) for number in range(14)]
    rows[3] |= {"take": 3, "mixed": [1, "x"], "duration": 4}
    rows[5]["audio"] = "nowhere.wav"
    reference = builds.reference(rows, "npy")
    other = next(name for name in FORMATS if name != form)
    builds.build("out", rows, format=f"{form},{other}")
    builds.check("out", reference, form)
    output = builds.folder / "out"
    assert len(shards_of(output)) > 8
    assert len(hfprep.load(output / other)) == len(hfprep.load(reference))
    before = shards_of(output)
    again = builds.build("out", rows, format=f"{form},{other}")
    assert (again.tally.done, again.reused, shards_of(output)) == (0, 13, before)


@pytest.mark.parametrize("form", FORMATS)
def test_after_changes_the_samples_are_those_of_a_fresh_build(builds: Builds, form: str) -> None:
    rows = [builds.row(number) for number in range(14)]
    builds.build("out", rows, format=form)
    rows[6]["text"] += " and more"
    rows[4]["audio"] = rows[7]["audio"]
    rows[1]["speaker"] = "another"
    rows[9]["audio"] = "gone.wav"
    del rows[2]
    rows.append(builds.row(200, score=1.5))
    summary = builds.build("out", rows, format=form, val_ratio=0.7)
    assert summary.tally.done == 3
    builds.check("out", builds.reference(rows, "npy", val_ratio=0.7), form)


def test_every_command_works_on_the_output_or_says_which_does(builds: Builds, golden_small: Path) -> None:
    rows = [builds.row(number, speaker=f"speaker-{number % 2}") for number in range(9)]
    output = builds.folder / "out"
    builds.build("out", rows, format="arrow")
    reference = builds.reference(rows, "npy")
    for split in ("train", "validation"):
        ours, theirs = hfprep.load(output, split), hfprep.load(reference, split)
        assert [ours.record(index) for index in range(len(ours))] == [theirs.record(i) for i in range(len(theirs))]
        assert all(torch.equal(ours[i]["codes"], theirs[i]["codes"]) for i in range(len(ours)))
    assert export_npy(open_set(output), builds.folder / "npy")["train"] == len(hfprep.load(output))
    assert features_of(builds.folder / "npy") == features_of(reference)
    collected = collect(output)
    assert (collected.format, len(collected.lengths), bool(collected.timeline)) == ("arrow", 9, True)
    models, advice = golden_small / "checkpoints", "arrow format; write it as npy first: python -m hfprep export-npy "
    with pytest.raises(StoreError, match=advice):
        write_pairs(output)
    shown = preview(BuildConfig(manifest=builds.folder / "out.jsonl", output_dir=output, models=models, val_ratio=0.3))
    assert (shown.reused, shown.pending) == (9, 0)
    verdict = verify(VerifyOptions(output_dir=output, parity=2, device="cpu"))
    assert ([fault.line() for fault in verdict.faults], verdict.format, verdict.samples) == ([], "arrow", 9)
    assert verdict.parity is not None
    assert verdict.parity.codes_differing == 0


def test_a_broken_shard_is_found_moved_aside_and_its_samples_alone_computed_again(builds: Builds) -> None:
    rows = [builds.row(number) for number in range(12)]
    output = builds.folder / "out"
    builds.build("out", rows, format="arrow")
    shard = output / "arrow" / "train" / "data-00001.arrow"
    lost = len(ArrowRows(shard.parent, [shard.name]))
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    (output / ".preprocessing_progress.txt").write_text("sample-1\n")
    verdict = verify(VerifyOptions(output_dir=output, repair=True))
    kinds = {fault.kind for fault in verdict.faults}
    assert {FaultKind.CHECKSUM, FaultKind.PROGRESS_DISAGREES} <= kinds
    assert verdict.repairs[0] == "moved arrow/train/data-00001.arrow to .hfprep/broken"
    assert "run the build again" in verdict.repairs[-1]
    assert builds.build("out", rows, format="arrow").tally.done == lost < 6
    builds.check("out", builds.reference(rows, "npy"), "arrow")


def test_formats_that_were_asked_for_before_stay(builds: Builds, caplog: pytest.LogCaptureFixture) -> None:
    rows = [builds.row(number) for number in range(7)]
    reference = builds.reference(rows, "npy")
    output = builds.folder / "out"
    builds.build("out", rows, format="arrow")
    assert builds.build("out", rows, format="webdataset").tally.done == 0
    assert "keeps its features as arrow" in caplog.text
    builds.check("out", reference, "arrow")
    assert len(hfprep.load(output / "webdataset")) == len(hfprep.load(reference))
    assert builds.build("out", rows, format="npy").tally.done == 0
    files, expected = features_of(output), features_of(reference)
    assert {name: files[name] for name in expected} == expected
    assert builds.build("out", [*rows, builds.row(50)], format="arrow").tally.done == 1
    assert "was built as npy before, so npy is kept" in caplog.text
    assert artifacts(output) == 4 * 8
    assert len(hfprep.load(output / "arrow")) + len(hfprep.load(output / "arrow", "val")) == 8
    for name in ("train_manifest.jsonl", "val_manifest.jsonl"):
        (output / name).unlink()
    assert builds.build("out", rows, format="arrow").tally.done == 0
    assert artifacts(output) == 0


def test_what_cannot_be_is_refused_by_name(builds: Builds, tmp_path: Path) -> None:
    rows = [builds.row(0)]
    for value in ("npy,parquet", "", "arrow,"):
        with pytest.raises(ConfigError, match="--format is"):
            builds.build("out", rows, format=value)
    with pytest.raises(ConfigError, match="`merge` needs the npy layout"):
        builds.build("out", rows, format="arrow", shard="0/2")
    with pytest.raises(ConfigError, match="--max-shard-size is"):
        builds.build("out", rows, format="arrow", max_shard_size="a lot")
    (tmp_path / "out" / "arrow").mkdir(parents=True)
    (tmp_path / "out" / "arrow" / "thesis.txt").write_text("mine")
    with pytest.raises(StoreError, match="is not a set that hfprep wrote"):
        builds.build("out", rows, format="arrow")
    assert (tmp_path / "out" / "arrow" / "thesis.txt").read_text() == "mine"


@pytest.mark.parametrize("name", ["arrow", pytest.param("webdataset", marks=pytest.mark.slow)])
def test_two_processes_give_the_same_shards(builds: Builds, name: str) -> None:
    rows = [builds.row(number) for number in range(12)]
    rows[4]["audio"] = "nowhere.wav"
    builds.build("out", rows, format=name, num_processes=2)
    builds.check("out", builds.reference(rows, "npy"), name)


def test_a_lost_record_costs_nothing_by_way_of_npy(builds: Builds) -> None:
    """As docs/formats.md says: the set is unpacked, and what is unpacked is adopted."""
    rows = [builds.row(number) for number in range(6)]
    builds.build("out", rows, format="arrow")
    shutil.rmtree(builds.folder / "out" / ".hfprep")
    export_npy(open_set(builds.folder / "out" / "arrow"), builds.folder / "new")
    summary = builds.build("new", rows, format="npy,arrow", skip_existing=True)
    assert (summary.adopted, summary.tally.done) == (6, 0)
