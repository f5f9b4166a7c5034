"""`build --format` without npy: the same shards as beside npy, never many artifacts, nothing computed twice."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hfprep.formats.packing.packer import Packer

import hfprep
from hfprep.errors import ConfigError, StoreError
from hfprep.formats import arrow_writer
from hfprep.formats.formats import open_set
from hfprep.formats.npy import export_npy
from hfprep.formats.pairs import write_pairs
from hfprep.io import atomic
from hfprep.pipeline.config import BuildConfig
from hfprep.pipeline.dry_run import preview
from hfprep.pipeline.retokenizing import retokenize
from hfprep.pipeline.summary import Summary
from hfprep.schema import COLUMNS
from hfprep.tools.report.collect import collect
from hfprep.tools.verify.checking import VerifyOptions, verify
from hfprep.tools.verify.faults import FaultKind
from tests.sample_sets import public_files

SHARED_FILES = ("rejected.jsonl", ".preprocessing_progress.txt")
FORMATS = ("arrow", "webdataset")
Rows = list[dict[str, Any]]


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Record batches of three rows, so that few samples make many shards."""
    monkeypatch.setattr(arrow_writer, "BATCH_ROWS", 3)


@pytest.fixture(autouse=True)
def no_observer() -> Iterator[None]:
    yield
    atomic.set_observer(None)


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
        """A fresh build with npy beside these formats."""
        self.references += 1
        name = f"reference-{self.references}"
        self.build(name, rows, **options, format=f"npy,{formats}")
        return self.folder / name

    def check(self, name: str, reference: Path, formats: str) -> None:
        """The output is what the reference holds of these formats, and nothing else."""
        expected = public_files(reference)
        expected = {key: data for key, data in expected.items() if key.partition("/")[0] in formats.split(",")}
        output = self.folder / name
        found = public_files(output)
        stats = json.loads(found.pop("stats.json"))
        assert found.keys() == expected.keys()
        assert [key for key in found if found[key] != expected[key]] == []
        for file in SHARED_FILES:
            assert (output / file).read_bytes() == (reference / file).read_bytes(), file
        assert stats == json.loads((reference / "stats.json").read_bytes())
        assert not [column for column in COLUMNS if (output / column).exists()]
        assert not (output / ".hfprep" / "work").exists()


@pytest.fixture
def builds(tmp_path: Path, golden_small: Path) -> Builds:
    return Builds(tmp_path, golden_small)


def shards_of(output: Path) -> dict[str, int]:
    """Inodes of the shards by name."""
    found = [*output.glob("arrow/*/*.arrow"), *output.glob("webdataset/*.tar")]
    return {path.relative_to(output).as_posix(): path.stat().st_ino for path in found}


def artifacts(output: Path) -> int:
    return sum(path.is_file() for column in COLUMNS for path in (output / column).rglob("*"))


def test_the_shards_are_those_that_a_build_with_npy_writes(builds: Builds) -> None:
    rows = [builds.row(number) for number in range(14)]
    rows[3] |= {"take": 3, "mixed": [1, "x"], "duration": 4}
    rows[5]["audio"] = "nowhere.wav"
    reference = builds.reference(rows, "arrow,webdataset")
    for formats in ("arrow", "webdataset", "webdataset,arrow"):
        builds.build(formats, rows, format=formats)
        builds.check(formats, reference, formats)
        output = builds.folder / formats
        assert len(shards_of(output)) > 4
        before = shards_of(output)
        again = builds.build(formats, rows, format=formats)
        assert (again.tally.done, again.reused, shards_of(output)) == (0, 13, before)


def append(builds: Builds, rows: Rows) -> tuple[int, dict[str, Any]]:
    rows += [builds.row(number) for number in range(100, 103)]
    return 3, {}


def change_text(builds: Builds, rows: Rows) -> tuple[int, dict[str, Any]]:
    rows[6]["text"] += " and more"
    return 1, {}


def change_audio(builds: Builds, rows: Rows) -> tuple[int, dict[str, Any]]:
    rows[4]["audio"] = rows[7]["audio"]
    return 1, {}


def change_speaker(builds: Builds, rows: Rows) -> tuple[int, dict[str, Any]]:
    rows[1]["speaker"] = "another"
    return 0, {}


def remove(builds: Builds, rows: Rows) -> tuple[int, dict[str, Any]]:
    del rows[2], rows[-1]
    return 0, {}


def reverse(builds: Builds, rows: Rows) -> tuple[int, dict[str, Any]]:
    rows.reverse()
    return 0, {}


def move_to_validation(builds: Builds, rows: Rows) -> tuple[int, dict[str, Any]]:
    return 0, {"val_ratio": 0.8}


def larger_shards(builds: Builds, rows: Rows) -> tuple[int, dict[str, Any]]:
    return 0, {"max_shard_size": "45KB"}


def add_field(builds: Builds, rows: Rows) -> tuple[int, dict[str, Any]]:
    rows.append(builds.row(200, score=1.5))
    return 1, {}


def loses_a_row(builds: Builds, rows: Rows) -> tuple[int, dict[str, Any]]:
    rows[3]["audio"] = "gone.wav"
    return 0, {}


Edit = Callable[[Builds, Rows], tuple[int, dict[str, Any]]]
QUICK_EDITS: list[Edit] = [append, change_text, change_speaker, remove, move_to_validation, add_field]
EDITS: list[Edit] = [
    append, change_text, change_audio, change_speaker, remove, reverse, move_to_validation, larger_shards, add_field,
    loses_a_row,
]  # fmt: skip


@pytest.mark.parametrize("edits", [QUICK_EDITS, pytest.param(EDITS, marks=pytest.mark.slow)], ids=["quick", "all"])
def test_whatever_changes_the_shards_are_those_of_a_fresh_build(builds: Builds, edits: list[Edit]) -> None:
    """One edit after another in the same output; what is computed again is what changed, and no more."""
    rows, options = [builds.row(number) for number in range(14)], dict[str, Any]()
    for name in FORMATS:
        builds.build(name, rows, format=name)
    for edit in edits:
        computed, changed = edit(builds, rows)
        options |= changed
        reference = builds.reference(rows, ",".join(FORMATS), **options)
        for name in FORMATS:
            summary = builds.build(name, rows, format=name, **options)
            assert summary.tally.done == computed, (edit.__name__, name)
            builds.check(name, reference, name)


@pytest.mark.parametrize("name", FORMATS)
def test_appended_rows_leave_full_shards_where_they_are(builds: Builds, name: str) -> None:
    rows = [builds.row(number) for number in range(14)]
    output = builds.folder / "out"
    builds.build("out", rows, format=name)
    before = shards_of(output)
    builds.build("out", [*rows, *(builds.row(number) for number in range(50, 56))], format=name)
    after = set(shards_of(output).values())
    assert len(before) - 2 <= len(after.intersection(before.values()))  # the last of each split may be written again
    assert len(after) > len(before) > 4


@pytest.mark.parametrize("name", FORMATS)
def test_rows_that_are_left_out_for_a_while_are_not_computed_again(builds: Builds, name: str) -> None:
    rows = [builds.row(number) for number in range(14)]
    builds.build("out", rows, format=name)
    fewer = builds.build("out", rows, format=name, max_samples=3)
    assert (fewer.accepted, fewer.tally.done) == (3, 0)
    builds.check("out", builds.reference(rows, name, max_samples=3), name)
    kept = list((builds.folder / "out" / ".hfprep" / "shards").iterdir())
    assert kept
    other = builds.build("out", rows[5:], format=name)
    assert (other.accepted, other.tally.done) == (9, 0)
    again = builds.build("out", rows, format=name)
    assert (again.accepted, again.tally.done) == (14, 0)
    builds.check("out", builds.reference(rows, name), name)
    assert not (builds.folder / "out" / ".hfprep" / "shards").exists()


def test_there_are_never_more_artifacts_than_a_few_shards_hold(builds: Builds, monkeypatch: pytest.MonkeyPatch) -> None:
    """At most the shard of each split that is being written, a batch of it, and a batch that is being published."""
    counts, sizes = [], []
    advance = Packer.advance

    def counted(self: Packer, *stop: Any) -> None:
        counts.append(artifacts(self.output.root))
        advance(self, *stop)
        counts.append(artifacts(self.output.root))
        sizes.append(len(list(self.index.folder.iterdir())) if self.index.folder.is_dir() else 0)

    monkeypatch.setattr(Packer, "advance", counted)
    rows = [builds.row(number, audio=str(builds.golden / builds.clips[0]["audio"])) for number in range(60)]
    builds.build("out", rows, format="webdataset", batch_size=1, val_ratio=0.3)
    index = json.loads((builds.folder / "out" / "webdataset" / "index.json").read_bytes())
    largest = max(shard["samples"] for split in index["splits"].values() for shard in split["shards"])
    assert sum(len(split["shards"]) for split in index["splits"].values()) >= 60 / largest
    assert largest < 5
    assert 0 < max(counts) <= 4 * (2 * (largest + 1) + 1) < 4 * 60 / 4
    assert max(sizes) > 5


def test_every_command_works_on_the_output_or_says_which_does(builds: Builds, golden_small: Path) -> None:
    rows = [builds.row(number, speaker=f"speaker-{number % 2}") for number in range(9)]
    output = builds.folder / "out"
    builds.build("out", rows, format="arrow")
    reference = builds.reference(rows, "arrow")
    for split in ("train", "validation"):
        ours, theirs = hfprep.load(output, split), hfprep.load(reference, split)
        assert [ours.record(index) for index in range(len(ours))] == [theirs.record(i) for i in range(len(theirs))]
        assert all(torch.equal(ours[i]["codes"], theirs[i]["codes"]) for i in range(len(ours)))
    assert export_npy(open_set(output), builds.folder / "npy")["train"] == len(hfprep.load(output))
    back = public_files(builds.folder / "npy")
    assert back == {name: data for name, data in public_files(reference).items() if not name.startswith("arrow")}
    collected = collect(output)
    assert (collected.format, len(collected.lengths), bool(collected.timeline)) == ("arrow", 9, True)
    models, advice = golden_small / "checkpoints", "arrow format; write it as npy first: python -m hfprep export-npy "
    with pytest.raises(StoreError, match=advice):
        write_pairs(output)
    with pytest.raises(StoreError, match=advice):
        retokenize(output, models / "bpe.model")
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
    shard = output / "arrow" / "train" / "data-00001-of-00003.arrow"
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    (output / ".preprocessing_progress.txt").write_text("sample-1\n")
    verdict = verify(VerifyOptions(output_dir=output, repair=True))
    kinds = {fault.kind for fault in verdict.faults}
    assert {FaultKind.CHECKSUM, FaultKind.PROGRESS_DISAGREES} <= kinds
    assert verdict.repairs[0] == "moved arrow/train/data-00001-of-00003.arrow to .hfprep/broken"
    assert "run the build again" in verdict.repairs[-1]
    assert builds.build("out", rows, format="arrow").tally.done == 3
    builds.check("out", builds.reference(rows, "arrow"), "arrow")
    assert not verify(VerifyOptions(output_dir=output)).faults


def test_formats_that_were_asked_for_before_stay(builds: Builds, caplog: pytest.LogCaptureFixture) -> None:
    rows = [builds.row(number) for number in range(7)]
    everything = builds.reference(rows, "arrow,webdataset")
    files = public_files(everything)
    output = builds.folder / "out"
    builds.build("out", rows, format="arrow")
    assert builds.build("out", rows, format="webdataset").tally.done == 0
    assert "keeps its features as arrow" in caplog.text
    builds.check("out", everything, "arrow,webdataset")
    assert builds.build("out", rows, format="npy").tally.done == 0
    assert public_files(output) == files
    assert builds.build("out", [*rows, builds.row(50)], format="arrow").tally.done == 1
    assert "was built as npy before: that is kept" in caplog.text
    assert len(list(output.rglob("*.npy"))) == 4 * 8
    assert len(hfprep.load(output / "arrow")) + len(hfprep.load(output / "arrow", "val")) == 8
    for name in ("train_manifest.jsonl", "val_manifest.jsonl"):
        (output / name).unlink()
    assert builds.build("out", rows, format="arrow").tally.done == 0
    assert not list(output.rglob("*.npy"))


def test_what_cannot_be_is_refused_by_name(builds: Builds, tmp_path: Path) -> None:
    rows = [builds.row(0)]
    for value in ("npy,parquet", "", "arrow,"):
        with pytest.raises(ConfigError, match="--format is"):
            builds.build("out", rows, format=value)
    with pytest.raises(ConfigError, match="parts are merged in the npy layout"):
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
    builds.check("out", builds.reference(rows, name), name)


def test_a_lost_record_costs_nothing_by_way_of_npy(builds: Builds) -> None:
    """As docs/formats.md says: the set is unpacked, and what is unpacked is adopted."""
    rows = [builds.row(number) for number in range(6)]
    builds.build("out", rows, format="arrow")
    shutil.rmtree(builds.folder / "out" / ".hfprep")
    export_npy(open_set(builds.folder / "out" / "arrow"), builds.folder / "new")
    summary = builds.build("new", rows, format="npy,arrow", skip_existing=True)
    assert (summary.adopted, summary.tally.done) == (6, 0)
