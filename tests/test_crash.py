"""Real builds killed with SIGKILL at every named point and at random moments, then run again: nothing is ever lost.

The quick part kills once at each point and at ten random moments; the slow part (scripts/soak) many times more, with
other batch sizes, worker and process counts in between.
"""

import json
import random
import shutil
from collections.abc import Callable, Iterable

import pytest

from tests.crash_child import CrashServer, Fault
from tests.crash_trials import SPLITS, Trials

QUICK_RANDOM_KILLS = 10
Recorder = Callable[[str, object], None]


@pytest.fixture(scope="module")
def trials(crash_server: CrashServer, tmp_path_factory: pytest.TempPathFactory) -> Trials:
    return Trials(crash_server, tmp_path_factory.mktemp("crash"))


def test_a_quiet_run_passes_every_kind_of_point(trials: Trials) -> None:
    """The points that the kills below are drawn from are those that durability depends on."""
    points = set(trials.points())
    for column in trials.columns:
        assert {("before-rename", column), ("after-rename", column), ("before-sync-folder", column)} <= points
    for name in (*SPLITS, ".preprocessing_progress.txt"):
        for point in ("before-append", "mid-append", "after-append", "before-rename", "before-sync"):
            assert (point, name) in points
    assert {("before-commit", ".hfprep/state.sqlite"), ("after-write", "stage"), ("after-sync", "stage")} <= points
    assert trials.quiet_run.status == 0
    assert sorted(trials.quiet_run.computed) == ["folder/synth2", "synth1", "synth3", "synth4", "synth6"]


def one_of_each(faults: Iterable[Fault]) -> list[Fault]:
    """The faults whose point or kind of file none of the earlier ones has."""
    chosen, seen = [], set[tuple[str, str]]()
    for fault in faults:
        its = {("point", fault.point), ("kind", fault.kind)}
        if not its <= seen:
            chosen.append(fault)
            seen |= its
    return chosen


@pytest.mark.parametrize("pairs", ["some", pytest.param("all", marks=pytest.mark.slow)])
def test_killed_once_at_every_point(trials: Trials, pairs: str) -> None:
    """Several kills strike the same output one after another; each is followed by all checks.

    The quick set has every point and every kind of file, the slow set every point with every kind.
    """
    faults = trials.every_point(seed=1)
    assert len(faults) > 50
    chosen = faults if pairs == "all" else one_of_each(faults)
    assert trials.kill_and_continue(chosen, kills=8) == len(chosen) > 15


def test_killed_at_random_moments(trials: Trials) -> None:
    assert trials.kill_and_continue(trials.random_moments(seed=2, number=QUICK_RANDOM_KILLS)) > 0


SLOW_PUBLISHING = """
import time
from hfprep.store.layout import Publisher
publish = Publisher.publish
Publisher.publish = lambda *arguments: (time.sleep(0.3), publish(*arguments))[1]
"""


@pytest.mark.parametrize("nth", [1, 3])
def test_a_kill_costs_the_batch_in_flight_and_no_more(trials: Trials, nth: int) -> None:
    """Killed while a batch of two is published, at leisure: the next one has not begun to compute meanwhile."""
    output = trials.fresh()
    patches = {"slow_publishing": SLOW_PUBLISHING}
    ended = trials.build(output, Fault(point="before-rename", kind="codes", nth=nth), patches=patches)
    assert ended.status == -9
    assert len(ended.computed) == 2 * (nth // 2 + 1)
    again = trials.build(output)
    assert len(set(ended.computed) & set(again.computed)) == 2
    trials.check_final(output, exact=False)


def test_single_samples_come_out_byte_for_byte(trials: Trials) -> None:
    """With one sample a batch the plan is the same whatever was done before, and so is every byte."""
    exact = Trials(trials.server, trials.folder / "exact", batch_size=1)
    kills = [
        Fault(point="after-rename", kind="codes", nth=2),
        Fault(point="mid-append", kind="train_manifest.jsonl", nth=1),
        Fault(point="before-commit", kind=".hfprep/state.sqlite", nth=5),
    ]
    assert exact.kill_and_continue(kills, exact=True) == len(kills)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_killed_at_every_point_again_and_again(trials: Trials, seed: int, record_property: Recorder) -> None:
    faults = trials.every_point(seed=10 + seed, per_point=2)
    random.Random(seed).shuffle(faults)
    struck = trials.kill_and_continue(faults, kills=1 + seed)
    record_property("kills at named points", f"{struck} of {len(faults)}")
    assert struck == len(faults)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_killed_at_many_random_moments(trials: Trials, seed: int, record_property: Recorder) -> None:
    struck = trials.kill_and_continue(trials.random_moments(seed=20 + seed, number=40), kills=1 + seed)
    record_property("kills at random moments", struck)
    assert struck >= 30


@pytest.mark.slow
@pytest.mark.parametrize("num_processes", [1, 2])
def test_killed_and_continued_in_another_way(trials: Trials, num_processes: int, record_property: Recorder) -> None:
    """Every rerun has another batch size, worker count and process count."""
    draw = random.Random(num_processes)
    struck = 0
    for _ in range(8):
        output = trials.fresh()
        for _ in range(2):
            options = ["--batch-size", draw.choice([1, 2, 5]), "--workers", draw.choice([1, 2])]
            options += ["--num-processes", num_processes]
            longest = trials.quiet_run.seconds * (4 if num_processes > 1 else 1)
            ended = trials.build(output, Fault(after_seconds=draw.uniform(0.1, longest)), *options)
            struck += ended.status == -9
            assert ended.status in (0, -9), ended.stderr
            if output.exists():
                trials.check_after_kill(output, exact=False)
        last = trials.build(output, None, "--batch-size", draw.choice([1, 2, 5]), "--num-processes", 3 - num_processes)
        assert last.status == 0, last.stderr
        trials.check_final(output, exact=False)
    record_property(f"kills with {num_processes} processes", struck)
    assert struck > 0


def test_a_split_that_moves_is_never_in_both(trials: Trials) -> None:
    """Killed at each rename while the validation share changes to and fro, no id is ever in both manifests."""
    output = trials.fresh()
    assert trials.build(output).status == 0
    ratio = {True: 0.3, False: 0.9}
    for nth in range(1, 9):
        ended = trials.build(output, Fault(point="after-rename", nth=nth), "--val-ratio", ratio[nth % 2 == 0])
        assert not ended.computed
        trials.check_after_kill(output, exact=False)
    last = trials.build(output)
    assert last.status == 0
    assert not last.computed
    trials.check_final(output, exact=False)


@pytest.mark.parametrize(
    "lost",
    [[".preprocessing_progress.txt"], list(SPLITS), ["stats.json", "rejected.jsonl"], [".hfprep/sha256.json"]],
    ids=lambda names: names[0],
)
def test_a_lost_list_is_made_again(trials: Trials, lost: list[str]) -> None:
    output = trials.fresh()
    shutil.copytree(trials.quiet, output)
    for name in lost:
        (output / name).unlink()
    again = trials.build(output)
    assert (again.status, again.computed) == (0, [])
    trials.check_final(output, exact=True)


@pytest.mark.parametrize("damage", ["lost", "emptied", "garbage"])
def test_without_the_state_everything_is_computed_again(trials: Trials, damage: str) -> None:
    output = trials.fresh()
    shutil.copytree(trials.quiet, output)
    state = output / ".hfprep" / "state.sqlite"
    if damage == "lost":
        state.unlink()
    else:
        state.write_bytes(b"" if damage == "emptied" else b"this is not a database " * 400)
    again = trials.build(output)
    assert again.status == 0, again.stderr
    assert len(again.computed) == len(trials.quiet_run.computed)
    trials.check_final(output, exact=True)
    adopted = trials.fresh()
    shutil.copytree(trials.quiet, adopted)
    (adopted / ".hfprep" / "state.sqlite").unlink()
    again = trials.build(adopted, None, "--skip-existing")
    assert (again.status, again.computed) == (0, [])
    trials.check_final(adopted, exact=True)


@pytest.mark.parametrize("name", [*SPLITS, ".preprocessing_progress.txt", "rejected.jsonl", "stats.json"])
@pytest.mark.parametrize("tail", ["cut", "garbage"])
def test_a_torn_tail_is_cut(trials: Trials, name: str, tail: str) -> None:
    output = trials.fresh()
    shutil.copytree(trials.quiet, output)
    whole = (output / name).read_bytes()
    (output / name).write_bytes(whole[:-7] if tail == "cut" else whole + b'{"id": "synth1", "au\xff\x00')
    again = trials.build(output)
    assert (again.status, again.computed) == (0, [])
    trials.check_final(output, exact=True)


@pytest.mark.parametrize("damage", ["cut", "empty", "gone", "longer"])
def test_a_damaged_artifact_is_computed_again_and_only_that(trials: Trials, damage: str) -> None:
    output = trials.fresh()
    shutil.copytree(trials.quiet, output)
    broken = output / "codes" / "synth3.npy"
    whole = broken.read_bytes()
    if damage == "gone":
        broken.unlink()
    else:
        broken.write_bytes({"cut": whole[:-1], "empty": b"", "longer": whole + b"\0"}[damage])
    untouched = (output / "condition" / "synth3.npy").stat()
    again = trials.build(output)
    assert (again.status, again.computed) == (0, ["synth3"])
    trials.check_final(output, exact=False)
    now = (output / "condition" / "synth3.npy").stat()
    assert (now.st_ino, now.st_mtime_ns) == (untouched.st_ino, untouched.st_mtime_ns)


def test_the_manifest_of_a_killed_run_lists_what_it_finished(trials: Trials) -> None:
    """Work is durable batch by batch: what was appended before the kill is there before any rerun."""
    output = trials.fresh()
    ended = trials.build(output, Fault(point="before-rename", kind="codes", nth=3))
    assert ended.status == -9
    listed = [json.loads(line)["id"] for name in SPLITS for line in (output / name).read_text().splitlines()]
    assert len(listed) == 2
    again = trials.build(output)
    assert len(again.computed) == 3
    assert not set(listed) & set(again.computed)
    trials.check_final(output, exact=False)
