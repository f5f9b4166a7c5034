"""Builds that keep their features in shards, killed with SIGKILL and run again.

The quick part kills some real builds wherever shards are appended to, closed or described; the slow part at every point
and at random moments, with two processes too. test_formats_shards tries every history of appending without models.
"""

import contextlib
import json
import random
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hfprep.formats.formats import open_set
from hfprep.formats.samples import SPLITS
from tests.crash_child import CrashServer, Ended, Fault
from tests.crash_trials import PROGRESS, VAL_RATIO, Trials, whole_lines
from tests.sample_sets import public_files
from tests.test_formats_shards import ids_on_disk

MARKERS = {"arrow": "dataset_dict.json", "webdataset": "index.json"}
Recorder = Callable[[str, object], None]


@dataclass
class ShardTrials(Trials):
    """Builds of one manifest into shards of one format, and the samples that they must come to."""

    format: str = "arrow"
    shard_size: str = "18KB"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.reference = self.folder / "reference"
        ended = self.build(self.reference, None, "--format", "npy")
        assert ended.status == 0, ended.stderr

    def build(self, output: Path, fault: Fault | None = None, *options: object, **patches: Any) -> Ended:
        given = ["--format", self.format] if "--format" not in options else []
        return super().build(output, fault, *given, "--max-shard-size", self.shard_size, *options, **patches)

    def every_point(self, seed: int, per_point: int | None = None, do: str = "kill") -> list[Fault]:
        """Without `per_point` one of each kind that concerns shards, and some of the state's commits."""
        draw = random.Random(seed)
        places: dict[tuple[str, str], list[tuple[str, int]]] = {}
        for (point, kind), count in self.points().items():
            shards = kind.startswith((".hfprep/shards", self.format))
            if per_point is None and not shards and not point.endswith("-commit"):
                continue
            alike = Path(kind).suffix if shards else kind
            places.setdefault((point, alike), []).extend((kind, nth) for nth in range(1, count + 1))
        return [
            Fault(do=do, point=point, kind=kind, nth=nth)
            for (point, _), found in places.items()
            for kind, nth in draw.sample(found, min(per_point or (3 if point.endswith("-commit") else 1), len(found)))
        ]

    def check_after_kill(self, output: Path, *, exact: bool) -> None:
        """A set is whole or does not pass for one; what is listed is in a shard."""
        del exact  # with one sample a batch every number is the same
        assert not list(output.glob("[!.]*/**/*.npy")) or [*output.glob("*/places.npy")]
        if (output / self.format / MARKERS[self.format]).is_file():
            self.check_samples(output)
        known = ids_placed(output)
        for sample_id in whole_lines(output / PROGRESS):
            assert sample_id in known, sample_id
        for line in whole_lines(output / "rejected.jsonl"):
            json.loads(line)
        assert not list(output.glob("*_manifest.jsonl*"))

    def check_samples(self, output: Path) -> None:
        """The samples, numbers and splits of the reference, each once on the disk."""
        ours, theirs = open_set(output), open_set(self.reference)
        for split in SPLITS:
            for one, other in zip(ours.split(split).samples(), theirs.split(split).samples(), strict=True):
                assert one.entry.record == other.entry.record
                assert all(np.array_equal(one.arrays[name], array) for name, array in other.arrays.items())
        ids = [entry.id for split in SPLITS for entry in theirs.split(split).entries()]
        assert sorted(ids_on_disk(output / self.format)) == sorted(ids)

    def check_final(self, output: Path, *, exact: bool) -> None:
        """What the output says is what a build with npy says, and nothing is left over."""
        del exact
        self.check_samples(output)
        for name in (PROGRESS, "rejected.jsonl"):
            assert (output / name).read_bytes() == (self.reference / name).read_bytes(), name
        stats, right = (json.loads((root / "stats.json").read_bytes()) for root in (output, self.reference))
        for content in (stats, right):
            content.pop("settings")  # these name the format
        assert stats == right
        assert sorted(path.name for path in (output / ".hfprep").iterdir() if path.is_dir()) == []
        assert {Path(name).suffix for name in public_files(output)} <= {".json", ".npy", ".arrow", ".tar"}


def ids_placed(output: Path) -> set[str]:
    """Ids of the samples that the state says are in a shard, of which the file has the bytes."""
    state = output / ".hfprep" / "state.sqlite"
    if not state.is_file():
        return set()
    with contextlib.closing(sqlite3.connect(state)) as database:  # what a killed transaction left is rolled back first
        if not database.execute("SELECT 1 FROM sqlite_master WHERE name = 'places'").fetchone():
            return set()  # killed before the state had its tables
        shards = database.execute("SELECT serial, name, used FROM shard_files").fetchall()
        placed = database.execute("SELECT id, shard FROM places").fetchall()
    for _, name, used in shards:
        found = [path for path in output.rglob(f"{Path(name).name}*") if path.as_posix().find(name) >= 0]
        assert not used or max(path.stat().st_size for path in found) >= used, name
    return {sample_id for sample_id, _ in placed}


@pytest.fixture(scope="module", params=[pytest.param("arrow", marks=pytest.mark.slow), "webdataset"])
def trials(
    crash_server: CrashServer, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> ShardTrials:
    folder = tmp_path_factory.mktemp("crash-shards")
    return ShardTrials(crash_server, folder / request.param, batch_size=1, format=request.param)


@pytest.mark.slow  # the quick set has the same for IndexTTS-2.5, in Arrow
def test_killed_wherever_shards_are_appended_to(trials: ShardTrials) -> None:
    """Several kills strike the same output one after another; each is followed by all checks."""
    faults = trials.every_point(seed=1)
    points = {fault.point for fault in faults}
    assert {"before-append", "mid-append", "after-append", "before-sync", "before-rename", "after-rename"} <= points
    assert trials.kill_and_continue(faults, kills=8) == len(faults) > 10


@pytest.mark.parametrize("kills", [7, pytest.param(60, marks=pytest.mark.slow)])
def test_samples_change_sides_under_kills(trials: ShardTrials, kills: int) -> None:
    """While the validation share changes to and fro, shards are written again, and nothing is computed."""
    output = trials.fresh()
    assert trials.build(output).status == 0
    total = trials.build(output, None, "--val-ratio", 0.8)
    count = len(total.points)
    for number, nth in enumerate(range(3, count, max(1, count // kills))):
        ended = trials.build(output, Fault(nth=nth), "--val-ratio", VAL_RATIO if number % 2 == 0 else 0.8)
        assert (ended.computed, ended.status in (0, -9)) == ([], True), ended.stderr
    last = trials.build(output)
    assert (last.status, last.computed) == (0, [])
    trials.check_final(output, exact=True)


def test_stopped_by_a_signal(trials: ShardTrials) -> None:
    """The summary is of what is finished, and the same command continues."""
    output = trials.fresh()
    ended = trials.build(output, Fault(do="SIGTERM", point="after-append", kind=PROGRESS, nth=2))
    assert ended.status == 143, ended.stderr
    trials.check_after_kill(output, exact=True)
    stats = json.loads((output / "stats.json").read_bytes())
    assert stats["accepted"] == len(whole_lines(output / PROGRESS)) > 1
    assert stats["codebook"]["used"] > 1
    again = trials.build(output, None)
    assert (again.status, len(again.computed)) == (0, 5 - stats["accepted"])
    trials.check_final(output, exact=True)


def test_unpacked_under_kills(trials: ShardTrials) -> None:
    """Shards become the npy layout whenever that is interrupted, and back; nothing is computed."""
    output = trials.fresh()
    assert trials.build(output).status == 0
    for nth in (2, 9, 20, 40, 60):
        ended = trials.build(output, Fault(nth=nth), "--format", "npy")
        assert (ended.computed, ended.status) == ([], -9), ended.stderr
    last = trials.build(output, None, "--format", "npy")
    assert (last.status, last.computed) == (0, [])
    files, expected = public_files(output), public_files(trials.reference)
    assert {name: files[name] for name in expected} == expected
    for name in ("train_manifest.jsonl", "val_manifest.jsonl"):
        (output / name).unlink()
    for nth in (5, 20, 40, 60):
        ended = trials.build(output, Fault(nth=nth))
        assert (ended.computed, ended.status) == ([], -9), ended.stderr
    last = trials.build(output)
    assert (last.status, last.computed) == (0, [])
    trials.check_final(output, exact=True)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_killed_at_every_point_again_and_again(trials: ShardTrials, seed: int, record_property: Recorder) -> None:
    faults = trials.every_point(seed=10 + seed, per_point=2)
    random.Random(seed).shuffle(faults)
    struck = trials.kill_and_continue(faults, kills=1 + seed)
    record_property("kills at named points", f"{struck} of {len(faults)}")
    assert struck == len(faults)


@pytest.mark.slow
def test_killed_at_many_random_moments(trials: ShardTrials, record_property: Recorder) -> None:
    struck = trials.kill_and_continue(trials.random_moments(seed=20, number=40), kills=3)
    record_property("kills at random moments", struck)
    assert struck >= 30


@pytest.mark.slow
def test_killed_with_two_processes(trials: ShardTrials, record_property: Recorder) -> None:
    draw, struck = random.Random(3), 0
    for _ in range(5):
        output = trials.fresh()
        for _ in range(3):
            longest = trials.quiet_run.seconds * 6
            ended = trials.build(output, Fault(after_seconds=draw.uniform(0.3, longest)), "--num-processes", 2)
            struck += ended.status == -9
            assert ended.status in (0, -9), ended.stderr
            if output.exists():
                trials.check_after_kill(output, exact=True)
        last = trials.build(output, None, "--num-processes", draw.choice([1, 2]))
        assert last.status == 0, last.stderr
        trials.check_final(output, exact=True)
    record_property("kills with two processes", struck)
    assert struck > 0
