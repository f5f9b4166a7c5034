"""Builds that keep their features in shards, killed with SIGKILL at every named point, and run again.

The quick part kills once wherever shards are written, recorded, put in place or taken back; the slow part at every
point and at random moments, with two processes too.
"""

import contextlib
import io
import json
import os
import random
import re
import shutil
import sqlite3
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from tests.crash_child import COLUMN_FOLDERS, CrashServer, Ended, Fault
from tests.crash_trials import PROGRESS, VAL_RATIO, Trials, whole_lines
from tests.sample_sets import public_files

MARKERS = {"arrow": "dataset_dict.json", "webdataset": "index.json"}
PATCHES = {"small batches": "import hfprep.formats.arrow_writer as writer; writer.BATCH_ROWS = 2"}
Recorder = Callable[[str, object], None]


@dataclass
class ShardTrials(Trials):
    """Builds of one manifest into shards of one format, and the tree that they must come to."""

    format: str = "arrow"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.reference = self.folder / "reference"
        ended = self.build(self.reference, None, "--format", f"npy,{self.format}")
        assert ended.status == 0, ended.stderr

    def build(self, output: Path, fault: Fault | None = None, *options: object, **patches: Any) -> Ended:
        given = ["--format", self.format] if "--format" not in options else []
        return super().build(output, fault, *given, "--max-shard-size", "18KB", *options, patches=PATCHES, **patches)

    def every_point(self, seed: int, per_point: int | None = None, do: str = "kill") -> list[Fault]:
        """As for any build; shards, whatever their numbers, count as one kind of file. Without `per_point` only what
        concerns them is struck, and the state's commits often."""
        draw = random.Random(seed)
        places: dict[tuple[str, str], list[tuple[str, int]]] = {}
        for (point, kind), count in self.points().items():
            shards = kind.startswith((".hfprep/shards", self.format))
            if per_point is None and not shards and not point.endswith("-commit"):
                continue
            alike = re.sub(r"\d+", "N", kind) if shards else kind
            places.setdefault((point, alike), []).extend((kind, nth) for nth in range(1, count + 1))
        return [
            Fault(do=do, point=point, kind=kind, nth=nth)
            for (point, _), found in places.items()
            for kind, nth in draw.sample(found, min(per_point or (4 if point.endswith("-commit") else 1), len(found)))
        ]

    def check_after_kill(self, output: Path, *, exact: bool) -> None:
        """Artifacts are whole; a set is whole or does not pass for one; what is listed lies complete somewhere."""
        del exact  # with one sample a batch every byte is the same
        whole: dict[str, set[str]] = {}
        for column in COLUMN_FOLDERS:
            for path in (output / column).rglob("*.npy"):
                name = path.relative_to(output)
                assert path.read_bytes() == (self.reference / name).read_bytes(), name
                whole.setdefault(str(name.relative_to(column).with_suffix("")), set()).add(column)
        if (output / self.format / MARKERS[self.format]).is_file():
            assert shards_under(output / self.format) == shards_under(self.reference / self.format)
        known = ids_known(output / ".hfprep" / "state.sqlite")
        packed = known & {sample_id for path in shard_files(output) for sample_id in ids_in(path)}
        for sample_id in whole_lines(output / PROGRESS):
            assert sample_id in packed or len(whole[sample_id]) == len(COLUMN_FOLDERS), sample_id
        for line in whole_lines(output / "rejected.jsonl"):
            json.loads(line)
        assert not list(output.glob("*_manifest.jsonl*"))

    def check_final(self, output: Path, *, exact: bool) -> None:
        """The tree is the quiet run's, and its shards those that a build with npy has: nothing is left over."""
        del exact
        found, expected = public_files(output), public_files(self.quiet)
        assert found.keys() == expected.keys()
        assert [name for name in found if name.endswith((".arrow", ".tar")) and found[name] != expected[name]] == []
        assert shards_under(output / self.format) == shards_under(self.reference / self.format)
        for name in (PROGRESS, "rejected.jsonl"):
            assert (output / name).read_bytes() == (self.reference / name).read_bytes(), name
        stats, right = (json.loads((root / "stats.json").read_bytes()) for root in (output, self.reference))
        for content in (stats, right):
            content["settings"].pop("batch_size", None)
        assert stats == right
        assert sorted(path.name for path in (output / ".hfprep").iterdir() if path.is_dir()) == []


def shards_under(folder: Path) -> dict[str, bytes]:
    """Content of a set's shards by name."""
    files = [*folder.rglob("*.arrow"), *folder.rglob("*.tar")]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def ids_known(state: Path) -> set[str]:
    """Ids of the samples that the state says lie in a shard; what a killed transaction left is rolled back first."""
    if not state.is_file():
        return set()
    with contextlib.closing(sqlite3.connect(state)) as database:
        if not database.execute("SELECT 1 FROM sqlite_master WHERE name = 'packed'").fetchone():
            return set()  # killed before the state had its tables
        return {row[0] for row in database.execute("SELECT packed.id FROM packed JOIN shards ON shard = serial")}


def shard_files(output: Path) -> list[Path]:
    """All shards, in their place or not."""
    return [path for pattern in ("*.arrow", "*.tar") for path in output.rglob(pattern) if "work" not in path.parts]


def ids_in(path: Path) -> list[str]:
    """Ids of a shard's samples, read without hfprep; of one that was never finished too, as far as it goes."""
    if path.suffix == ".tar":
        with tarfile.open(fileobj=io.BytesIO(path.read_bytes())) as tar:
            return [json.load(tar.extractfile(name))["id"] for name in tar.getnames() if name.endswith(".json")]  # type: ignore[arg-type]
    with pa.memory_map(str(path)) as source, pa.ipc.open_stream(source) as batches:
        return [sample_id for batch in batches for sample_id in batch.column("id").to_pylist()]


@pytest.fixture(scope="module")
def server() -> Iterator[CrashServer]:
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    folder = Path(tempfile.mkdtemp(prefix="hfprep-crash-", dir=memory))
    with CrashServer(folder / "server") as started:
        yield started
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module", params=[pytest.param("arrow", marks=pytest.mark.slow), "webdataset"])
def trials(server: CrashServer, request: pytest.FixtureRequest) -> ShardTrials:
    return ShardTrials(server, server.folder.parent / request.param, batch_size=1, format=request.param)


def test_killed_wherever_shards_are_written_or_put_in_place(trials: ShardTrials) -> None:
    """Several kills strike the same output one after another; each is followed by all checks."""
    faults = trials.every_point(seed=1)
    points = {fault.point for fault in faults}
    assert {"before-write", "after-write", "before-sync", "before-rename", "after-rename"} <= points
    assert trials.kill_and_continue(faults, kills=8) == len(faults) > 10


@pytest.mark.parametrize("kills", [7, pytest.param(60, marks=pytest.mark.slow)])
def test_shards_are_taken_back_and_replaced_under_kills(trials: ShardTrials, kills: int) -> None:
    """While the validation share changes to and fro, everything is packed anew, and nothing computed."""
    output = trials.fresh()
    assert trials.build(output).status == 0
    total = trials.build(output, None, "--val-ratio", 0.8)
    count = len(total.points)
    for number, nth in enumerate(range(3, count, max(1, count // kills))):
        ended = trials.build(output, Fault(nth=nth), "--val-ratio", VAL_RATIO if number % 2 == 0 else 0.8)
        assert (ended.computed, ended.status in (0, -9)) == ([], True), ended.stderr
        for path in shard_files(output):
            ids_in(path)
    last = trials.build(output)
    assert (last.status, last.computed) == (0, [])
    trials.check_final(output, exact=True)


def test_stopped_by_a_signal(trials: ShardTrials) -> None:
    """What is half-written goes, the summary is of what is finished, and the same command continues."""
    output = trials.fresh()
    ended = trials.build(output, Fault(do="SIGTERM", point="after-append", kind=PROGRESS, nth=2))
    assert ended.status == 143, ended.stderr
    trials.check_after_kill(output, exact=True)
    assert not list(output.rglob("*.tmp"))
    stats = json.loads((output / "stats.json").read_bytes())
    assert stats["accepted"] == len(whole_lines(output / PROGRESS)) > 1
    assert stats["codebook"]["used"] > 1
    again = trials.build(output, None)
    assert (again.status, len(again.computed)) == (0, 5 - stats["accepted"])
    trials.check_final(output, exact=True)


def test_unpacked_under_kills(trials: ShardTrials) -> None:
    """Shards become the npy layout that a build with npy has, whenever that is interrupted; nothing is computed."""
    output = trials.fresh()
    assert trials.build(output).status == 0
    both = ("--format", f"npy,{trials.format}")
    for nth in (2, 9, 20, 40, 70):
        ended = trials.build(output, Fault(nth=nth), *both)
        assert (ended.computed, ended.status) == ([], -9), ended.stderr
    last = trials.build(output, None, *both)
    assert (last.status, last.computed) == (0, [])
    assert public_files(output) == public_files(trials.reference)


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
