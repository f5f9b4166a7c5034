"""Planning in several processes: the same plan, state and listing as in one, whatever happens to a process."""

import json
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hfprep.errors import StopRequested, StoreError
from hfprep.inputs.manifest.rows import AudioFinder, parse_line
from hfprep.io.npy_format import npy_bytes
from hfprep.pipeline import examining, examining_processes, planning
from hfprep.pipeline.config import Part
from hfprep.pipeline.engines.pool import WorkerPool, WorkerProcess
from hfprep.pipeline.inspection import Inspector
from hfprep.pipeline.plan import PlanOptions
from hfprep.pipeline.planning import Planner
from hfprep.schema import Utterance
from hfprep.store.fingerprints import AudioIdentity, Fingerprinter, source_of
from hfprep.store.layout import NpyOutput
from hfprep.store.listing import Entry
from hfprep.store.state import Finished, State
from tests.quick import some_quick
from tests.sample_schemas import speech_schema

SCHEMA = speech_schema(4)
LENGTHS = {"text_len": 3, "code_len": 5, "condition_len": 32}
FINGERPRINTER = Fingerprinter(SCHEMA, {name: {"models": "these"} for name in SCHEMA.group_names})
NUM_ROWS = 60
DYING = """
import os, sys
sys.path.insert(0, sys.argv.pop())
from hfprep.pipeline.engines.lifeline import start
from hfprep.pipeline.examining import Examiner
examine = Examiner.examine
def failing(self, lines):
    if lines[0][0] > 20:
        {what}
    return examine(self, lines)
Examiner.examine = failing
start(*sys.argv[1:], "hfprep.pipeline.examining_processes")
"""


class Listed(list[Entry]):
    """A listing that keeps what it is given."""

    def add(self, entry: Entry) -> None:
        self.append(entry)


@pytest.fixture(autouse=True)
def many_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "CHUNK_ROWS", 8)
    monkeypatch.setattr(planning, "CHUNKS_HERE", 1)


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    """Finished rows (two of three), new ones, and such that are rejected: two have an id of an earlier chunk."""
    path = tmp_path / "rows.jsonl"
    lines = []
    for number in range(NUM_ROWS):
        (tmp_path / f"{number}.wav").write_bytes(b"x" * number)
        lines.append(json.dumps({"id": f"row-{number}", "text": f"Text {number}.", "audio": f"{number}.wav"}))
    lines[11], lines[33] = "no JSON", '{"id": "row-33"}'
    lines[22] = json.dumps({"id": "row-22", "text": "No audio.", "audio": "none.wav"})
    lines[44], lines[58] = lines[3], lines[44].replace("row-44", "row-43")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def finished(tmp_path: Path, manifest: Path) -> NpyOutput:
    """An output in which rows are finished, some of them with a changed text, a missing file or a damaged state."""
    output = NpyOutput(tmp_path / "out", SCHEMA)
    output.reset_work()
    state, finder = State(output.state_file, SCHEMA), AudioFinder(manifest)
    for number, line in enumerate(manifest.read_bytes().splitlines(), 1):
        row = parse_line(number, line, finder, None)
        if number % 3 and isinstance(row, Utterance) and number not in (23, 45, 59):
            then = row._replace(text="Another text.") if number % 7 == 0 else row
            audio = AudioIdentity.of(row.path, by_content=False)
            prints = FINGERPRINTER.of(then, audio)
            for column in SCHEMA.columns:
                place = output.artifact(column.name, row.id)
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_bytes(npy_bytes(np.zeros(SCHEMA.shape(column, LENGTHS), column.dtype)))
            groups = {
                group: Finished(prints[group], {name: LENGTHS[name] for name in column.lengths})
                for group in SCHEMA.group_names
                for column in SCHEMA.columns_of([group])[:1]
            }
            state.finish(row.id, groups, seconds=number / 7, source=source_of(then, audio))
    state.close()
    output.artifact("codes", "row-30").unlink()
    output.artifact("emo_vec", "row-51").write_bytes(b"cut")
    with sqlite3.connect(output.private / "state.sqlite") as database:
        database.execute("UPDATE samples SET finished = '{' WHERE id = 'row-46'")
    database.close()
    return output


def planned(
    output: NpyOutput, manifest: Path, folder: Path, stop: Callable[[], bool] = lambda: False, **options: Any
) -> dict[str, Any]:
    """Everything that comes out of planning, with a copy of the state."""
    place = NpyOutput(output.root, SCHEMA)
    place.private, place.work = folder, folder / "work"
    place.work.mkdir(parents=True)
    (folder / "state.sqlite").write_bytes((output.private / "state.sqlite").read_bytes())
    state, listing = State(folder / "state.sqlite", SCHEMA), Listed()
    try:
        planner = Planner(place, state, FINGERPRINTER, PlanOptions(**{"workers": 2} | options), listing)
        plan = planner.plan(manifest, stop=stop)
        return {
            "plan": plan.path.read_bytes(),
            "counts": plan.counts,
            "listing": list(listing),
            "rejections": list(state.rejections()),
            "state": state.query("SELECT * FROM samples ORDER BY id"),
        }
    finally:
        state.close()


@pytest.mark.parametrize("seconds", [pytest.param(1e9, id="fast"), pytest.param(-1.0, id="slow")])
def test_threads_look_files_up_where_that_is_slow(
    finished: NpyOutput, manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: float
) -> None:
    """From the second block of the first chunk on, and they find the same."""
    expected = planned(finished, manifest, tmp_path / "one block")
    monkeypatch.setattr(planning, "CHUNKS_HERE", None)
    monkeypatch.setattr(examining, "INSPECTED_TOGETHER", 2)
    monkeypatch.setattr(examining, "SLOW_LOOKUP", seconds)
    here, inspect = list[bool](), Inspector.inspect

    def noted(inspector: Inspector, rows: Any) -> Any:
        here.append(threading.current_thread() is threading.main_thread())
        return inspect(inspector, rows)

    monkeypatch.setattr(Inspector, "inspect", noted)
    assert planned(finished, manifest, tmp_path / "many blocks") == expected
    assert len(here) > 2
    assert here == [True, *([seconds > 0] * (len(here) - 1))]


@pytest.mark.parametrize("options", some_quick([{"workers": 3}, {}, {"part": Part(1, 3)}, {"hash_audio": True}], 2))
def test_processes_find_what_one_finds(
    finished: NpyOutput, manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    several = planned(finished, manifest, tmp_path / "several", **options)
    monkeypatch.setattr(planning, "CHUNKS_HERE", None)
    monkeypatch.setattr(examining_processes, "CODE", "raise SystemExit")
    one = planned(finished, manifest, tmp_path / "one", **options)
    assert one == several
    counts = one["counts"]
    assert counts.rows + counts.rejected + counts.capped == counts.lines_read
    assert min(counts.reused, counts.pending, counts.rejected) > 0
    if not options:
        assert [(item.line, item.reason) for item in one["rejections"]] == [
            (12, "invalid_json"),
            (23, "audio_missing"),
            (34, "missing_field"),
            (45, "duplicate_id"),
            (59, "duplicate_id"),
        ]
        assert "first on line 4)" in one["rejections"][3].message
        assert counts.changed == 6


@pytest.mark.parametrize("what", some_quick(["os.kill(os.getpid(), 9)", "os._exit(9)", "raise ValueError('a bug')"], 3))
def test_a_process_that_dies_costs_nothing_but_time(
    finished: NpyOutput,
    manifest: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    what: str,
) -> None:
    whole = planned(finished, manifest, tmp_path / "whole")
    assert "this one reads its lines" not in caplog.text
    monkeypatch.setattr(examining_processes, "CODE", DYING.format(what=what))
    assert planned(finished, manifest, tmp_path / "dying") == whole
    assert "this one reads its lines" in caplog.text


@pytest.fixture
def processes(monkeypatch: pytest.MonkeyPatch) -> list[WorkerProcess]:
    """The processes that are started."""
    started, take = [], WorkerPool.take

    def taken(pool: WorkerPool, rank: int) -> WorkerProcess:
        started.append(take(pool, rank))
        return started[-1]

    monkeypatch.setattr(WorkerPool, "take", taken)
    return started


def test_an_error_of_a_process_ends_the_plan(
    finished: NpyOutput,
    manifest: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    processes: list[WorkerProcess],
) -> None:
    fail = "from hfprep.errors import StoreError; raise StoreError('the disk is gone')"
    monkeypatch.setattr(examining_processes, "CODE", DYING.format(what=fail))
    with pytest.raises(StoreError, match="the disk is gone"):
        planned(finished, manifest, tmp_path / "failed")
    assert len(processes) == 2
    assert all(item.process.poll() is not None for item in processes)


def test_a_request_to_stop_ends_the_processes(
    finished: NpyOutput, manifest: Path, tmp_path: Path, processes: list[WorkerProcess]
) -> None:
    with pytest.raises(StopRequested):
        planned(finished, manifest, tmp_path / "stopped", stop=lambda: len(processes) == 2)
    assert len(processes) == 2
    assert all(item.process.poll() is not None for item in processes)


def test_a_short_manifest_and_a_cap_start_no_process(
    finished: NpyOutput,
    manifest: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    processes: list[WorkerProcess],
) -> None:
    capped = planned(finished, manifest, tmp_path / "capped", max_samples=50)["counts"]
    assert (capped.rows, capped.rejected, capped.capped) == (50, 4, 6)
    monkeypatch.setattr(planning, "CHUNK_ROWS", NUM_ROWS)
    assert planned(finished, manifest, tmp_path / "short")["counts"].lines_read == NUM_ROWS
    assert not processes
