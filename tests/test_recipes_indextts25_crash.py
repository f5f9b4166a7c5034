"""Builds of IndexTTS-2.5 killed with SIGKILL and run again, as test_crash and test_crash_shards do with IndexTTS-2.

The quick part kills at one point of each kind; the slow part at every point and at random moments, into every format.
"""

import os
import random
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.crash_child import CrashServer, Fault
from tests.crash_trials import CLIPS25, COLUMNS25, GOLDEN25, SPLITS, Trials
from tests.test_crash_shards import ShardTrials

# What a run comes by: columns, lists, the state.
KINDS = (
    ("after-rename", "spk_emb"),
    ("before-sync-folder", "emo_vec"),
    ("mid-append", SPLITS[0]),
    ("before-commit", ".hfprep/state.sqlite"),
)
SHARD_POINTS = ("mid-append", "before-rename")


@pytest.fixture(scope="module")
def server() -> Iterator[CrashServer]:
    """In memory where there is such a file system: SIGKILL loses nothing that was written, synced or not."""
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    folder = Path(tempfile.mkdtemp(prefix="hfprep-crash-", dir=memory))
    with CrashServer(folder / "server", GOLDEN25.name) as running:
        yield running
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def trials(server: CrashServer) -> Trials:
    return Trials(server, server.folder.parent / "npy", golden=GOLDEN25, clips=CLIPS25, columns=COLUMNS25)


@pytest.fixture(scope="module", params=["arrow", pytest.param("webdataset", marks=pytest.mark.slow)])
def shards(server: CrashServer, request: pytest.FixtureRequest) -> ShardTrials:
    return ShardTrials(
        server,
        server.folder.parent / request.param,
        batch_size=1,
        golden=GOLDEN25,
        clips=CLIPS25,
        columns=COLUMNS25,
        shard_size="2KB",
        format=request.param,
    )


def test_a_quiet_run_comes_by_the_points_of_every_column(trials: Trials) -> None:
    points = set(trials.points())
    for column in COLUMNS25:
        assert {("before-rename", column), ("after-rename", column), ("before-sync-folder", column)} <= points
    assert set(KINDS) <= points
    assert sorted(trials.quiet_run.computed) == ["folder/synth4", "synth3", "synth5", "synth6"]


@pytest.mark.slow
def test_killed_at_one_point_of_each_kind(trials: Trials) -> None:
    draw = random.Random(4)
    faults = [Fault(point=point, kind=kind, nth=draw.randint(1, trials.points()[point, kind])) for point, kind in KINDS]
    assert trials.kill_and_continue(faults, kills=4) == len(KINDS)


def test_shards_killed_while_appended_to_and_described(shards: ShardTrials) -> None:
    chosen = {fault.point: fault for fault in shards.every_point(seed=5) if fault.point in SHARD_POINTS}
    assert shards.kill_and_continue(chosen.values(), kills=2) == len(SHARD_POINTS)


@pytest.mark.slow
@pytest.mark.parametrize("third", range(3))
def test_killed_at_every_point(trials: Trials, third: int) -> None:
    faults = trials.every_point(seed=30, per_point=1)
    random.Random(0).shuffle(faults)
    mine = faults[third::3]
    assert trials.kill_and_continue(mine, kills=1 + third) == len(mine) > 15


@pytest.mark.slow
def test_killed_at_random_moments(trials: Trials) -> None:
    assert trials.kill_and_continue(trials.random_moments(seed=31, number=40), kills=2) >= 30


@pytest.mark.slow
def test_shards_killed_at_every_point_and_at_random_moments(shards: ShardTrials) -> None:
    faults = shards.every_point(seed=32, per_point=1)
    random.Random(6).shuffle(faults)
    assert shards.kill_and_continue(faults, kills=2) == len(faults)
    assert shards.kill_and_continue(shards.random_moments(seed=33, number=30), kills=3) >= 20
