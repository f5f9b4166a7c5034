"""Progress: shares, estimates and lines by hand-computed numbers; a notebook's bar; how far a batch is."""

import io
import logging
import re
import sys
import time
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from hfprep.pipeline import progress as progress_module
from hfprep.pipeline.engines.messages import Underway
from hfprep.pipeline.intake import Loaded, Task
from hfprep.pipeline.progress import BuildProgress
from hfprep.pipeline.underway import Watch, work_of
from hfprep.schema import Utterance
from hfprep.store.fingerprints import AudioIdentity
from hfprep.store.layout import PlannedRow

AUDIO = frozenset({"codes"})


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, in seconds, as a test sets it."""
    now = [100.0]
    monkeypatch.setattr(progress_module, "time", types.SimpleNamespace(monotonic=lambda: now[0]))
    return now


def batch(progress: BuildProgress, done: int, work: float, rejected: int = 0) -> None:
    progress.advance(
        done=done, rejected=rejected, audio_seconds=work, num_frames=10 * done, padded_frames=12 * done, work=work
    )


def test_what_is_left_goes_by_the_work_that_is_done(clock: list[float]) -> None:
    with BuildProgress(shown=False) as progress:
        progress.begin(10, 100.0)
        assert (progress.share, progress.line()) == (None, "loading the models")
        clock[0] += 30  # for the models: no part of the pace
        progress.underway(0, Underway(60.0, 0.0))
        assert progress.seconds_left is None
        clock[0] += 6
        progress.underway(0, Underway(60.0, 0.5))  # 30 s of sound in 6 s
        assert progress.share == pytest.approx(0.3)
        assert progress.seconds_left == pytest.approx(14.0)
        clock[0] += 6
        progress.underway(0, None)
        batch(progress, 3, 50.0, rejected=1)  # 50, and a tenth of everything for the one that is rejected
        assert progress.share == pytest.approx(0.6)
        assert progress.line() == " 60% 4/10, 1.2x real time, 1 rejected, 0:00:08 left"
        batch(progress, 6, 40.0)
        clock[0] += 8
        progress.end()
    assert progress.line() == "100% 10/10, 1.8x real time, 1 rejected, 0:00:50 elapsed"


def test_a_gpu_s_first_batch_has_no_pace_and_the_second_has(clock: list[float]) -> None:
    with BuildProgress(shown=False) as progress:
        progress.begin(100, 100.0)
        clock[0] += 40
        batch(progress, 10, 10.0)
        assert progress.seconds_left is None
        clock[0] += 2
        batch(progress, 20, 20.0)
        assert progress.seconds_left == pytest.approx(7.0)


def test_a_batch_that_is_lost_with_its_worker_does_not_count(clock: list[float]) -> None:
    with BuildProgress(shown=False) as progress:
        progress.begin(2, 10.0)
        progress.underway(0, Underway(5.0, 0.2))
        progress.underway(1, Underway(5.0, 0.6))
        assert progress.share == pytest.approx(0.4)
        progress.underway(1, None)
        assert progress.share == pytest.approx(0.1)
        clock[0] += 1


def test_where_there_is_no_terminal_a_line_comes_from_time_to_time(
    clock: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="hfprep")
    with BuildProgress() as progress:
        progress.begin(1000, 1000.0)
        for _ in range(100):
            clock[0] += 1
            batch(progress, 1, 1.0)
        progress.end()
    assert [message.split(",")[0] for message in caplog.messages] == ["  3% 30/1", "  6% 60/1", "  9% 90/1", "100/1"]


def test_a_notebook_has_a_bar(clock: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str] = []

    class Handle:
        def update(self, drawn: str) -> None:
            shown.append(drawn)

    def display(drawn: str, *, display_id: bool) -> Handle:
        assert display_id
        shown.append(drawn)
        return Handle()

    ipython: Any = types.ModuleType("IPython")
    ipython.get_ipython = lambda: types.SimpleNamespace(kernel=object())
    ipython.display = types.ModuleType("IPython.display")
    ipython.display.display, ipython.display.HTML = display, str
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", ipython.display)
    with BuildProgress() as progress:
        progress.stage("reading <b>")
        clock[0] += 1
        progress.begin(4, 4.0)
        for _ in range(4):
            clock[0] += 1
            batch(progress, 1, 1.0)
        progress.end()
    assert shown[0] == "<progress></progress> starting"
    assert '<progress value="0.500"></progress>  50% 2/4' in shown[-4]
    assert shown[-1].startswith('<progress value="1.000"></progress> 100% 4/4')
    assert "elapsed" in shown[-1]
    assert "<b>" not in "".join(shown)


def test_the_last_bar_is_as_full_as_the_line_beside_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Console(file=io.StringIO(), force_terminal=True, color_system=None, width=80)
    monkeypatch.setattr(progress_module, "console", lambda: terminal)
    assert isinstance(terminal.file, io.StringIO)
    with BuildProgress() as progress:
        progress.begin(4, 4.0)
        batch(progress, 2, 2.0)
        end = time.monotonic() + 30
        while " 50% 2/4" not in terminal.file.getvalue():
            assert time.monotonic() < end, "the bar is not drawn"
            time.sleep(0.01)
        batch(progress, 2, 2.0)
        progress.end()
    last = terminal.file.getvalue().rsplit("\r", 1)[-1]
    assert re.search(r"━{20,} 100% 4/4", last), last


def row(*, need: str, duration: float | None = None, size: int = 0) -> PlannedRow:
    utterance = Utterance(line=1, id="a", text="a", audio="a.wav", path="a.wav", duration=duration)
    return PlannedRow(utterance, {}, AudioIdentity(size, 0, None), frozenset({need}))


def test_the_work_of_a_row_is_its_audio_s_length_or_else_its_size() -> None:
    assert work_of(row(need="codes", duration=2.5, size=10), AUDIO) == 2.5
    assert work_of(row(need="codes", size=32_000), AUDIO) == 2.0
    assert work_of(row(need="codes"), AUDIO) == 0.0
    assert 0 < work_of(row(need="text", duration=2.5), AUDIO) < 0.1


class Layers(torch.nn.Module):
    """Two layers, for a batch in two parts, of 1 and 3 frames."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList([torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)])

    def forward(self) -> None:
        for frames in (1, 3):
            hidden = torch.zeros(1, frames, 2)
            for layer in self.layers:
                hidden = layer(hidden)


def test_a_batch_s_share_goes_by_the_frames_of_its_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hfprep.pipeline.underway.SECONDS_BETWEEN_NEWS", 0.0)
    told: list[float] = []
    model: Any = Layers()
    watch = Watch(model, lambda tasks, share: told.append(share))
    task = Task(row(need="codes").utterance, AUDIO, True)
    clips = [Loaded(task, None, np.zeros(1, np.float32), 1.0, frames) for frames in (1, 3)]
    model()  # not of a batch: a control sample, say
    with watch.batch(clips):
        model()
    watch.close()
    model()
    assert told == [0.0, 0.125, 0.25, 0.625, 1.0]


def test_levels_that_a_program_has_set_hold_for_its_handlers(tmp_path: Path) -> None:
    from hfprep.io.record import record
    from hfprep.pipeline.logs import log_to_file

    seen: list[str] = []

    class Handler(logging.Handler):
        def emit(self, line: logging.LogRecord) -> None:
            seen.append(line.getMessage())

    logger, handler = logging.getLogger("hfprep"), Handler()
    level = logger.level
    logging.getLogger().addHandler(handler)
    try:
        for chosen in (logging.NOTSET, logging.WARNING):
            logger.setLevel(chosen)
            with log_to_file(tmp_path / "build.log", as_json=False):
                logging.getLogger("hfprep.some.where").info("info")
                logging.getLogger("hfprep.some.where").warning("warning")
                record.info("for the record")
    finally:
        logging.getLogger().removeHandler(handler)
        logger.setLevel(level)
    assert seen == ["info", "warning", "warning"]
    lines = (tmp_path / "build.log").read_text().splitlines()
    assert [line.split(" ", 3)[3] for line in lines] == 2 * ["info", "warning", "for the record"]
