"""Runs that are asked to stop, or whose disk is full, read-only or gone: a clear word, nothing corrupt, and on it goes.

Real command lines in children of crash_child's fork server.
"""

import contextlib
import errno
import fcntl
import gc
import json
import logging
import logging.handlers
import os
import pickle
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import hfprep
from hfprep.errors import Reason, RejectedSample
from hfprep.io import atomic
from hfprep.io.lock import OutputLock
from hfprep.models.semantic_encoder import SemanticEncoder
from hfprep.pipeline.collector import no_garbage_collection
from hfprep.pipeline.logs import log_to_file
from hfprep.recipes.indextts2.feature_model import FeatureModel
from tests.crash_child import CrashServer, Ended, Fault
from tests.crash_trials import GOLDEN, SPLITS, Trials

TWO_INTERRUPTS = """
import os, signal, time
from hfprep.recipes.indextts2.feature_model import FeatureModel
def twice(self, *arguments, **options):
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(0.2)
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(60)
FeatureModel.forward = twice
"""
AUDIO_GOES = """
import os
from pathlib import Path
from hfprep.recipes.indextts2.feature_model import FeatureModel
forward, folder = FeatureModel.forward, Path({folder!r})
def goes(self, *arguments, **options):
    for path in folder.glob("*gone*"):
        path.unlink()
    for path in folder.glob("*broken*"):
        path.write_bytes(b"RIFF nothing that can be played")
    return forward(self, *arguments, **options)
FeatureModel.forward = goes
"""


@pytest.fixture(scope="module")
def trials(crash_server: CrashServer, tmp_path_factory: pytest.TempPathFactory) -> Trials:
    return Trials(crash_server, tmp_path_factory.mktemp("failures"))


def last_line(ended: Ended) -> str:
    """What the command said in the end; a traceback is not a message."""
    assert "Traceback" not in ended.stderr, ended.stderr
    return ended.stderr.splitlines()[-1]


def listed(output: Path) -> set[str]:
    return {json.loads(line)["id"] for name in SPLITS for line in (output / name).read_text().splitlines()}


# Being asked to stop


@pytest.mark.parametrize(("name", "status"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_a_signal_finishes_the_batch_and_says_how_to_go_on(trials: Trials, name: str, status: int) -> None:
    output = trials.fresh()
    ended = trials.build(output, Fault(do=name, point="before-append", kind=".preprocessing_progress.txt", nth=1))
    assert ended.status == status, ended.stderr
    assert f"{name}: finishing the batch in flight" in ended.stderr
    assert "Interrupted with" in ended.stdout
    assert "Run the same command again to continue." in ended.stdout
    assert "left to do" in ended.stdout
    assert listed(output) == set(ended.computed)  # all that was computed is kept
    assert 2 <= len(ended.computed) <= 4
    pending = json.loads((output / "stats.json").read_bytes())["pending"]
    assert 5 - len(ended.computed) <= pending <= 6 - len(ended.computed)  # the clip that cannot be read may be left
    assert not (output / ".hfprep" / "work").exists()
    again = trials.build(output)
    assert again.status == 0
    assert len(again.computed) == 5 - len(ended.computed)
    trials.check_final(output, exact=False)


def test_a_signal_while_the_manifest_is_read_changes_nothing(trials: Trials) -> None:
    output = trials.fresh()
    shutil.copytree(trials.quiet, output)
    stopped = trials.build(output, Fault(do="SIGTERM", point="after-commit", nth=1), "--val-ratio", 0.9)
    assert stopped.status in (0, 143)
    fresh = trials.fresh()
    ended = trials.build(fresh, Fault(do="SIGINT", point="before-write", kind="train_manifest.jsonl", nth=1))
    assert (ended.status, ended.computed) == (130, [])
    again = trials.build(fresh)
    assert again.status == 0
    trials.check_final(fresh, exact=True)


def test_a_second_interrupt_stops_at_once(trials: Trials) -> None:
    output = trials.fresh()
    ended = trials.build(output, patches={"twice": TWO_INTERRUPTS})
    assert ended.status in (130, -signal.SIGINT), (ended.status, ended.stderr)
    assert ended.seconds < 20
    again = trials.build(output)
    assert again.status == 0
    trials.check_final(output, exact=True)


# Disks


def test_a_disk_that_fills_up_at_some_points(trials: Trials) -> None:
    """ENOSPC at every sixth of the points where anything is written, synced, renamed, appended or committed."""
    faults = trials.every_point(seed=5, do="ENOSPC")[::6]
    assert trials.kill_and_continue(faults, kills=8) == len(faults) > 7


@pytest.mark.slow
@pytest.mark.parametrize("do", ["ENOSPC", "EIO"])
def test_a_disk_that_fails_at_every_point(trials: Trials, do: str) -> None:
    faults = trials.every_point(seed=6, do=do, per_point=2)
    assert trials.kill_and_continue(faults, kills=3) == len(faults) > 100


@pytest.mark.parametrize(
    ("do", "advice"),
    [("EROFS", "make the folder writable"), ("EIO", "check the disk"), ("EDQUOT", "space")],
)
def test_other_ways_of_a_disk_to_fail(trials: Trials, do: str, advice: str) -> None:
    output = trials.fresh()
    for point, kind in (("before-rename", "condition"), ("before-append", "train_manifest.jsonl")):
        ended = trials.build(output, Fault(do=do, point=point, kind=kind, nth=1))
        assert ended.status == 1
        assert advice in last_line(ended)
        trials.check_after_kill(output, exact=False)
    assert trials.build(output).status == 0
    trials.check_final(output, exact=False)


@pytest.mark.parametrize("limit", [200, 2_000, 9_000, 13_000, 20_000])
def test_files_that_may_not_grow(trials: Trials, limit: int) -> None:
    """A limit on file sizes strikes where no point is named: inside SQLite, Arrow and NumPy."""
    output = trials.fresh()
    ended = trials.build(output, None, max_file_bytes=limit)
    if ended.status:
        assert ended.status == 1
        assert last_line(ended).startswith("hfprep: ")
        assert "run the same command again" in last_line(ended)
    else:
        trials.check_final(output, exact=True)
    assert trials.build(output).status == 0
    trials.check_final(output, exact=False)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 160 KiB; skipped where none may be mounted."""
    place = tmp_path / "small"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=160k", "tmpfs", str(place)]
    if os.geteuid() != 0 or subprocess.run(command, check=False, capture_output=True).returncode != 0:
        pytest.skip("mounting a small file system needs root")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=False)


def remount(place: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", str(place)], check=True)


@pytest.mark.parametrize("size", ["72k", "120k", "144k", "156k", "168k"])
def test_a_small_disk_and_then_a_larger_one(trials: Trials, small_disk: Path, size: str) -> None:
    """Whatever is being written when the disk is full, from the first file on to the last."""
    output = small_disk / "out"
    remount(small_disk, f"size={size}")
    ended = trials.build(output)
    assert ended.status == 1
    assert "space" in last_line(ended) or "full" in last_line(ended)
    trials.check_after_kill(output, exact=False)
    remount(small_disk, "size=4m")
    assert trials.build(output).status == 0
    trials.check_final(output, exact=False)


def test_a_read_only_disk(trials: Trials, small_disk: Path) -> None:
    remount(small_disk, "size=4m")
    output = small_disk / "out"
    assert trials.build(output, None, "--max-samples", 2).status == 0
    before = {path: path.read_bytes() for path in output.rglob("*") if path.is_file()}
    remount(small_disk, "ro")
    ended = trials.build(output)
    assert ended.status == 1
    assert "Read-only file system; make the folder writable and run the same command again" in last_line(ended)
    assert {path: path.read_bytes() for path in output.rglob("*") if path.is_file()} == before
    remount(small_disk, "rw")
    assert trials.build(output).status == 0
    trials.check_final(output, exact=False)


@pytest.mark.parametrize("name", ["codes", ".hfprep", "train_manifest.jsonl", ""])
def test_something_else_stands_in_the_place(trials: Trials, name: str) -> None:
    """A file where a folder has to be, or the other way round; the output itself may be a file, too."""
    output = trials.fresh()
    place = output / name
    place.parent.mkdir(parents=True, exist_ok=True)
    if name.endswith(".jsonl"):
        place.mkdir()
        (place / "kept").touch()
    else:
        place.write_text("not a folder")
    ended = trials.build(output)
    assert ended.status == 1
    assert str(output) in last_line(ended)
    shutil.rmtree(place) if place.is_dir() else place.unlink()
    assert trials.build(output).status == 0
    trials.check_final(output, exact=False)


# Two runs, and what changes under a run


def test_a_second_run_is_refused_by_name(trials: Trials) -> None:
    output = trials.fresh()
    with OutputLock(output / ".hfprep" / "lock"):
        ended = trials.build(output)
        assert (ended.status, ended.computed) == (1, [])
        assert "another run is writing to" in last_line(ended)
        for holder in (str(os.getpid()), socket.gethostname()):
            assert holder in last_line(ended)
    assert trials.build(output).status == 0


def test_a_lock_does_not_outlive_its_holder(trials: Trials) -> None:
    output = trials.fresh()
    assert trials.build(output, Fault(point="before-rename", kind="codes", nth=1)).status == -9
    assert "pid" in (output / ".hfprep" / "lock").read_text()
    assert trials.build(output).status == 0


def test_a_file_system_without_locks_is_used_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with caplog.at_level(logging.WARNING, logger="hfprep"), OutputLock(tmp_path / "lock"):
        assert "does not support locks; make sure that no other run writes here" in caplog.text


@pytest.mark.parametrize("how", ["gone", "broken"])
def test_audio_that_goes_while_the_run_goes_on(trials: Trials, how: str, tmp_path: Path) -> None:
    """Sound when the manifest was read, gone or spoilt when its turn comes: rejected, and taken up when it is back."""
    clip = tmp_path / f"{how}.wav"
    shutil.copy(GOLDEN / "audio" / "synth6.ogg", clip)
    rows = [json.loads(line) for line in (GOLDEN / "manifest.jsonl").read_text(encoding="utf-8").splitlines()]
    rows = [row | {"audio": str(GOLDEN / row["audio"])} for row in rows if row["id"] in ("synth0", "synth1", "synth7")]
    rows += [{"id": "late", "text": "its turn comes last", "audio": str(clip), "duration": 0.4}]
    manifest = tmp_path / "manifest.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    output = trials.fresh()
    options: list[object] = ["build", "--manifest", manifest, "--models", GOLDEN / "checkpoints", "--batch-size", 1]
    options += ["--output-dir", output, "--workers", 1]
    one_at_a_time = (
        "import hfprep.pipeline.features\n"
        "hfprep.pipeline.features.ExtractorSettings.__init__.__kwdefaults__['prefetch_bytes'] = 1\n"
    )
    ended = trials.server.run(options, None, patches={"go": one_at_a_time + AUDIO_GOES.format(folder=str(tmp_path))})
    assert ended.status == 0, ended.stderr
    assert listed(output) == {"synth0", "synth1", "synth7"}
    (rejected,) = [json.loads(line) for line in (output / "rejected.jsonl").read_text().splitlines()]
    assert (rejected["id"], rejected["line"]) == ("late", 4)
    assert rejected["reason"] == ("audio_missing" if how == "gone" else "audio_unreadable")
    assert str(clip) in rejected["message"]
    shutil.copy(GOLDEN / "audio" / "synth6.ogg", clip)
    again = trials.server.run(options)
    assert (again.status, again.computed) == (0, ["late"])
    assert (output / "rejected.jsonl").read_bytes() == b""


@pytest.mark.parametrize("shift", [-(10**6), 10**6])
def test_a_clock_that_jumps_loses_nothing(trials: Trials, shift: int) -> None:
    """Between runs the wall clock goes back (or ahead) eleven days: what is finished stays finished."""
    clock = f"import time\nreal = time.time\ntime.time = lambda: real() + {shift}\n"
    output = trials.fresh()
    assert trials.build(output, Fault(point="before-rename", kind="codes", nth=3)).status == -9
    for path in output.rglob("*"):
        os.utime(path, (time.time() + shift, time.time() + shift))
    again = trials.build(output, None, patches={"clock": clock})
    assert again.status == 0
    assert len(again.computed) == 3
    trials.check_final(output, exact=False)
    assert trials.build(output).computed == []


def test_models_that_do_not_fit_end_the_run_by_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def load(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB.")

    monkeypatch.setattr(FeatureModel, "load", load)
    manifest, models = GOLDEN / "manifest.jsonl", GOLDEN / "checkpoints"
    with pytest.raises(hfprep.HfprepError, match="the models do not fit into the memory of"):
        hfprep.build(hfprep.BuildConfig(manifest=manifest, models=models, output_dir=tmp_path / "out", engine="inline"))


@pytest.mark.parametrize("engine", ["local", "inline"])
def test_a_checkpoint_that_is_overwritten_while_a_cpu_computes_with_it_ends_the_run(
    engine: str, tmp_path: Path, real_workers: None
) -> None:
    """Its weights are mapped, so that they change under the run; nothing that may come of that is kept."""
    models = tmp_path / "models"
    shutil.copytree(GOLDEN / "checkpoints", models)
    output = tmp_path / "out"
    config = hfprep.BuildConfig(
        manifest=GOLDEN / "manifest.jsonl", models=models, output_dir=output, batch_size=1, device="cpu", engine=engine
    )
    done = output / ".preprocessing_progress.txt"

    def overwrite(point: str, path: str) -> None:
        """Once the first sample is listed, write the same bytes again, in place."""
        if point == "after-append" and path == str(done) and len(done.read_bytes().splitlines()) == 1:
            (models / "gpt.pth").write_bytes((GOLDEN / "checkpoints" / "gpt.pth").read_bytes())

    atomic.set_observer(overwrite)
    try:
        with pytest.raises(hfprep.HfprepError, match=r"gpt\.pth was overwritten while its weights were in use"):
            hfprep.build(config)
    finally:
        atomic.set_observer(None)
    assert len(done.read_bytes().splitlines()) == 1
    assert hfprep.build(config).accepted == 8


def test_a_fault_that_strikes_every_sample_ends_the_build_and_rejects_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def no_compiler(*_: Any, **__: Any) -> None:
        raise RuntimeError("Cannot find ptxas")

    monkeypatch.setattr(SemanticEncoder, "forward", no_compiler)
    config = hfprep.BuildConfig(
        manifest=GOLDEN / "manifest.jsonl", models=GOLDEN / "checkpoints", output_dir=tmp_path / "out", batch_size=4
    )
    with pytest.raises(hfprep.HfprepError, match=r"5 samples failed one after another.*Cannot find ptxas.*doctor"):
        hfprep.build(config)
    assert not (tmp_path / "out" / "rejected.jsonl").read_bytes()
    monkeypatch.undo()
    assert hfprep.build(config).accepted == 8


def test_a_rejection_travels_between_processes() -> None:
    error = RejectedSample(Reason.AUDIO_EMPTY, "no samples")
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), copy.reason, copy.message, str(copy)) == (RejectedSample, *error.__reduce__()[1], str(error))


@pytest.mark.parametrize("enabled", [True, False])
def test_the_garbage_collector_is_as_it_was(enabled: bool) -> None:
    before = gc.isenabled()
    try:
        (gc.enable if enabled else gc.disable)()
        with contextlib.suppress(KeyError), no_garbage_collection():
            assert not gc.isenabled()
            raise KeyError
        assert gc.isenabled() is enabled
    finally:
        (gc.enable if before else gc.disable)()


def test_the_level_of_the_log_is_as_it_was(tmp_path: Path) -> None:
    logger = logging.getLogger("hfprep")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with log_to_file(tmp_path / "build.log", as_json=False):
            assert logger.level == logging.INFO
        assert logger.level == logging.ERROR
    finally:
        logger.setLevel(before)


@pytest.mark.parametrize("name", [None, "hfprep"])
def test_a_program_s_handlers_get_what_its_level_lets_through(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str | None
) -> None:
    """Wherever they are, once each; the log file gets everything."""
    logger, theirs = logging.getLogger("hfprep"), logging.handlers.BufferingHandler(10)
    monkeypatch.setattr(logger, "handlers", [])
    monkeypatch.setattr(logging.root, "handlers", [])
    logging.getLogger(name).addHandler(theirs)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with log_to_file(tmp_path / "build.log", as_json=False):
            logging.getLogger("hfprep.pipeline").info("one")
            logging.getLogger("hfprep.pipeline").error("two")
    finally:
        logger.setLevel(level)
    assert [record.getMessage() for record in theirs.buffer] == ["two"]
    assert re.findall("one|two", (tmp_path / "build.log").read_text(encoding="utf-8")) == ["one", "two"]
