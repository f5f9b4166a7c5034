"""Parts of a build joined: the tree of one run, or a clear refusal; killed anywhere and run again."""

import json
import os
import random
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import hfprep
from hfprep.errors import ConfigError, StopRequested, StoreError
from hfprep.io import atomic
from hfprep.pipeline.config import Part
from hfprep.pipeline.merging import merge
from hfprep.pipeline.planning import Planner
from hfprep.tools.demo.dataset import DemoDataset, make_dataset
from tests.crash_child import COLUMN_FOLDERS, CrashServer, Fault

pytestmark = pytest.mark.usefixtures("two_layers")

COUNT = 3


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> DemoDataset:
    """A few clips and every kind of bad line, among them an id that stands in two parts."""
    return make_dataset(tmp_path_factory.mktemp("demo"), num_samples=5, max_seconds=1.5)


def config_of(demo: DemoDataset, models: Path, output: Path, **options: object) -> hfprep.BuildConfig:
    settings: dict[str, object] = {
        "val_ratio": 0.3,
        "num_processes": 1,
        "batch_size": 1,
    } | options  # alone: the same bytes
    return hfprep.BuildConfig(
        manifest=demo.manifest, models=models / "checkpoints", output_dir=output, **settings  # type: ignore[arg-type]
    )  # fmt: skip


@pytest.fixture(scope="module")
def whole(demo: DemoDataset, golden_small: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of one build of everything."""
    output = tmp_path_factory.mktemp("whole") / "out"
    hfprep.build(config_of(demo, golden_small, output))
    return output


@pytest.fixture(scope="module")
def built_parts(demo: DemoDataset, golden_small: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The outputs of three parts."""
    folder = tmp_path_factory.mktemp("parts")
    outputs = [folder / f"out{index}" for index in range(COUNT)]
    for index, output in enumerate(outputs):
        summary = hfprep.build(config_of(demo, golden_small, output, shard=f"{index}/{COUNT}"))
        assert summary.lines_read == summary.accepted + sum(summary.rejected.values())
    return outputs


@pytest.fixture
def parts(built_parts: list[Path], tmp_path: Path) -> list[Path]:
    """Copies of the parts that a test may spoil."""
    copies = [tmp_path / "parts" / part.name for part in built_parts]
    for part, copy in zip(built_parts, copies, strict=True):
        shutil.copytree(part, copy)
    return copies


def tree(output: Path) -> dict[str, bytes]:
    """Every public file of an output and its bytes."""
    files = [path for path in sorted(output.rglob("*")) if path.is_file()]
    return {
        path.relative_to(output).as_posix(): path.read_bytes()
        for path in files
        if path.relative_to(output).parts[0] != ".hfprep"
    }


def edit_record(output: Path, fields: dict[str, object]) -> None:
    path = output / ".hfprep" / "part.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_parts_joined_are_what_one_build_makes(whole: Path, parts: list[Path], tmp_path: Path) -> None:
    summary = merge([parts[2], parts[0], parts[1]], tmp_path / "out")
    expected = tree(whole)
    assert tree(tmp_path / "out") == expected
    assert summary.train + summary.val == len([name for name in expected if name.startswith("codes/")]) > 5
    assert summary.rejected == len((whole / "rejected.jsonl").read_text().splitlines()) > 10
    assert summary.linked == 4 * (summary.train + summary.val)
    assert (tmp_path / "out" / "codes" / "silence.npy").stat().st_nlink == 2
    assert not (tmp_path / "out" / ".hfprep" / "work").exists()


def test_every_part_has_samples_and_rejected_lines(built_parts: list[Path]) -> None:
    """So that the test above joins something of each."""
    for part in built_parts:
        stats = json.loads((part / "stats.json").read_text())
        assert stats["accepted"] >= 2
        assert sum(stats["rejected"].values()) >= 3


def test_copies_are_files_of_their_own(whole: Path, parts: list[Path], tmp_path: Path) -> None:
    summary = merge(parts, tmp_path / "out", copy=True)
    assert summary.linked == 0
    assert tree(tmp_path / "out") == tree(whole)
    assert (tmp_path / "out" / "codes" / "silence.npy").stat().st_nlink == 1


def test_where_links_cannot_be_made_files_are_copied(
    whole: Path, parts: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def across_devices(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", across_devices)
    assert merge(parts, tmp_path / "out").linked == 0
    assert tree(tmp_path / "out") == tree(whole)


def test_a_second_merge_finds_everything_there(parts: list[Path], tmp_path: Path) -> None:
    first = merge(parts, tmp_path / "out")
    before = tree(tmp_path / "out")
    second = merge(parts, tmp_path / "out")
    assert (second.linked, second.copied, second.reused) == (0, 0, first.train + first.val)
    assert tree(tmp_path / "out") == before


class Killed(BaseException):
    """Stands for the end of the process: nothing on the way catches it."""


def points_of(parts: list[Path], output: Path, stop_at: int | None = None) -> int:
    """Merge, ending at the `stop_at`-th durable operation; gives how many there were."""
    count = 0

    def observe(point: str, path: str) -> None:
        nonlocal count
        count += 1
        if count == stop_at:
            raise Killed(point, path)

    atomic.set_observer(observe)
    try:
        merge(parts, output)
    except Killed:
        pass
    finally:
        atomic.set_observer(None)
    return count


def test_a_merge_ended_anywhere_is_finished_by_the_next(whole: Path, parts: list[Path], tmp_path: Path) -> None:
    total = points_of(parts, tmp_path / "count")
    expected = tree(whole)
    for stop_at in range(1, total, max(1, total // 20)):
        output = tmp_path / f"out{stop_at}"
        assert points_of(parts, output, stop_at) == stop_at
        assert points_of(parts, output, stop_at // 2 + 1) <= total + stop_at
        listed = [
            json.loads(line) for path in output.glob("*_manifest.jsonl") for line in path.read_text().splitlines()
        ]
        assert all((output / record["codes_path"]).is_file() for record in listed)
        merge(parts, output)
        assert tree(output) == expected


def draw_points(points: list[tuple[str, str]], seed: int) -> list[Fault]:
    """A kill at each named point of each kind of file, at one of its occurrences; columns count as one kind."""
    draw, faults, seen = random.Random(seed), [], set()
    for (point, kind), count in Counter(points).items():
        alike = (point, "column" if kind in COLUMN_FOLDERS else kind)
        if alike not in seen:
            seen.add(alike)
            faults.append(Fault(point=point, kind=kind, nth=draw.randint(1, count)))
    return faults


@pytest.mark.parametrize(
    ("copy", "every"),
    [
        pytest.param(False, 4, id="links, every fourth"),
        pytest.param(False, 1, id="links", marks=pytest.mark.slow),
        pytest.param(True, 1, id="copies", marks=pytest.mark.slow),
    ],
)
def test_a_merge_killed_at_every_point_is_finished_by_the_next(
    crash_server: CrashServer, whole: Path, parts: list[Path], tmp_path: Path, copy: bool, every: int
) -> None:
    """Real processes and real kill -9, up to four in a row on one output; the merge after them gives the whole tree."""
    expected, before = tree(whole), [tree(part) for part in parts]
    arguments = ["merge", *parts, *(["--copy"] if copy else []), "--output-dir"]
    quiet = crash_server.run([*arguments, tmp_path / "quiet"])
    assert quiet.status == 0, quiet.stderr
    faults = draw_points(quiet.points, seed=copy)
    assert {"before-rename", "after-rename", "before-append", "mid-append", "before-commit"} <= {
        fault.point for fault in faults
    }
    faults = faults[::every]
    killed = 0
    for start in range(0, len(faults), 4):
        output = tmp_path / f"out{start}"
        for fault in faults[start : start + 4]:
            ended = crash_server.run([*arguments, output], fault)
            if ended.status == 0:  # this point was behind it already
                shutil.rmtree(output)
                ended = crash_server.run([*arguments, output], fault)
            assert ended.status == -9, (fault, ended.stderr)
            killed += 1
            check_listed(output)
        last = crash_server.run([*arguments, output])
        assert last.status == 0, last.stderr
        assert tree(output) == expected
        assert not (output / ".hfprep" / "work").exists()
        shutil.rmtree(output)
    assert killed == len(faults) > 20 // every
    assert [tree(part) for part in parts] == before  # what is linked is never written to


def check_listed(output: Path) -> None:
    """What a killed merge's manifests list, but for a torn last line, is there and whole."""
    for path in output.glob("*_manifest.jsonl"):
        for line in path.read_bytes().split(b"\n")[:-1]:
            record = json.loads(line)
            assert np.load(output / record["codes_path"]).shape == (record["code_len"],)
            assert (output / record["condition_path"]).is_file()


def test_a_build_goes_on_from_a_merged_output(
    demo: DemoDataset, golden_small: Path, parts: list[Path], whole: Path, tmp_path: Path
) -> None:
    merge(parts, tmp_path / "out")
    summary = hfprep.build(config_of(demo, golden_small, tmp_path / "out"))
    assert (summary.reused, summary.tally.done, summary.changed) == (summary.accepted, 0, 0)
    assert tree(tmp_path / "out") == tree(whole)


def test_a_missing_part_is_named(parts: list[Path], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"2 of 3 parts are missing: 0/3, 2/3"):
        merge([parts[1]], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_part_given_twice_is_named(parts: list[Path], tmp_path: Path) -> None:
    again = tmp_path / "again"
    shutil.copytree(parts[1], again)
    with pytest.raises(ConfigError, match=r"part 1/3 is given more than once: .*out1, .*again"):
        merge([*parts, again], tmp_path / "out")


def test_an_unfinished_part_is_refused(parts: list[Path], tmp_path: Path) -> None:
    (parts[1] / ".hfprep" / "part.json").unlink()
    with pytest.raises(ConfigError, match="out1' contains no finished part"):
        merge(parts, tmp_path / "out")
    with pytest.raises(ConfigError, match="is not the output directory of a build with --shard"):
        merge([tmp_path / "nowhere"], tmp_path / "out")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"manifest_sha256": "0" * 64, "manifest": "other.jsonl"}, r"manifest: .* and other.jsonl \(0{64}\)"),
        ({"settings": {"val_ratio": 0.1}}, r"val_ratio: 0.3 and 0.1"),
        ({"models": {"gpt_checkpoint": "beef"}}, r"gpt_checkpoint: [0-9a-f]{64} and beef"),
        ({"numerics": {"codes audio_sr": "24000"}}, r"codes audio_sr: 16000 and 24000"),
        ({"part": "1/4"}, r"number of parts: 3 and 4"),
    ],
)
def test_parts_of_different_builds_are_refused_with_both_values(
    parts: list[Path], tmp_path: Path, fields: dict[str, object], message: str
) -> None:
    record = json.loads((parts[1] / ".hfprep" / "part.json").read_text())
    changed = {name: record[name] | value if isinstance(value, dict) else value for name, value in fields.items()}
    edit_record(parts[1], changed)
    with pytest.raises(ConfigError, match=message):
        merge(parts, tmp_path / "out")


def test_an_artifact_that_a_part_lacks_stops_the_merge(parts: list[Path], whole: Path, tmp_path: Path) -> None:
    victim = next(path for path in sorted((parts[0] / "condition").rglob("*.npy")))
    complete = victim.read_bytes()
    victim.write_bytes(complete[:100])
    with pytest.raises(StoreError, match="its artifacts are missing or incomplete"):
        merge(parts, tmp_path / "out")
    victim.write_bytes(complete)
    merge(parts, tmp_path / "out")
    assert tree(tmp_path / "out") == tree(whole)


def test_the_output_must_not_be_a_part(parts: list[Path]) -> None:
    with pytest.raises(ConfigError, match="is one of the parts"):
        merge(parts, parts[0])


def test_a_part_that_is_run_again_counts_as_unfinished_until_it_is_through(
    demo: DemoDataset, golden_small: Path, parts: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(demo, golden_small, parts[0], shard=f"0/{COUNT}")
    record = parts[0] / ".hfprep" / "part.json"

    def fail(*_: object) -> None:
        raise StoreError("the disk is full")

    with monkeypatch.context() as patched:
        patched.setattr("hfprep.pipeline.building.write_stats", fail)
        with pytest.raises(StoreError):
            hfprep.build(config)
    assert not record.exists()
    assert hfprep.build(config).tally.done == 0
    assert record.exists()


def stopped_plan(planner: Planner, manifest: Path, *, stop: Callable[[], bool]) -> None:
    """The process is asked to stop while the manifest is read."""
    os.kill(os.getpid(), signal.SIGTERM)
    while not stop():
        time.sleep(0.01)
    raise StopRequested


@pytest.mark.parametrize(
    ("options", "stopped"),
    [
        ({"precision": "tf32"}, ConfigError),  # not on a CPU
        ({"on_change": "refuse", "audio_sr": 24000}, StoreError),
        ({}, None),  # asked to stop while it reads the manifest
    ],
    ids=["precision", "refused", "stopped"],
)
def test_a_part_stays_finished_where_a_run_changes_nothing(
    demo: DemoDataset,
    golden_small: Path,
    parts: list[Path],
    monkeypatch: pytest.MonkeyPatch,
    options: dict[str, Any],
    stopped: type[Exception] | None,
) -> None:
    before = (parts[0] / ".hfprep" / "part.json").read_bytes()
    config = config_of(demo, golden_small, parts[0], shard=f"0/{COUNT}", device="cpu", **options)
    if stopped is not None:
        with pytest.raises(stopped):
            hfprep.build(config)
    else:
        monkeypatch.setattr(Planner, "plan", stopped_plan)
        assert hfprep.build(config).interrupted_by == signal.SIGTERM
    assert (parts[0] / ".hfprep" / "part.json").read_bytes() == before


def test_more_parts_than_lines_leave_some_empty(demo: DemoDataset, golden_small: Path, tmp_path: Path) -> None:
    summary = hfprep.build(config_of(demo, golden_small, tmp_path / "out", shard="98/99"))
    assert (summary.lines_read, summary.accepted, summary.rejected) == (0, 0, {})
    assert (tmp_path / "out" / ".hfprep" / "part.json").is_file()


def test_a_cap_counts_the_rows_of_the_whole_manifest(demo: DemoDataset, golden_small: Path, tmp_path: Path) -> None:
    accepted = 0
    for index in range(2):
        config = config_of(demo, golden_small, tmp_path / f"out{index}", shard=f"{index}/2", max_samples=3)
        summary = hfprep.build(config)
        accepted += summary.accepted
    assert accepted == 3


def test_parts_share_the_lines_out() -> None:
    parts = [Part.parse(f"{index}/4") for index in range(4)]
    assert [[line for line in range(1, 11) if part.holds(line)] for part in parts] == [
        [1, 5, 9],
        [2, 6, 10],
        [3, 7],
        [4, 8],
    ]
    assert str(Part.parse("3/16")) == "3/16"


@pytest.mark.parametrize("text", ["16/16", "3", "a/b", "-1/4", "0/0", "1/2/3", ""])
def test_what_is_no_part_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="INDEX/COUNT with INDEX from 0"):
        Part.parse(text)
