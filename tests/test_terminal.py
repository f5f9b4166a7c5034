"""What a person sees in a terminal of 80 columns: real commands on a pseudo terminal, and their screen."""

import dataclasses
import gc
import importlib
import json
import logging
import re
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch

import hfprep
from tests.av_files import encode, tone
from tests.fake_hub import TOKEN, serve_hub
from tests.fake_model_hub import hub_environment, serve_models
from tests.sample_sets import make_output
from tests.terminal import COLUMNS, Session, run_in_terminal

HFPREP = (sys.executable, "-m", "hfprep")
SLOW_MODEL = """
import logging, sys, time
import hfprep
from hfprep.models.semantic_encoder import EncoderLayer

def slowly(self, *arguments, forward=EncoderLayer.forward):
    time.sleep(0.15)
    return forward(self, *arguments)

EncoderLayer.forward = slowly
if "--logging" in sys.argv:
    logging.basicConfig(format="THEIRS %(message)s")
manifest, models, output = sys.argv[1:4]
hfprep.build(hfprep.BuildConfig(manifest=manifest, models=models, output_dir=output, engine="inline", batch_size=9))
"""


def run(*arguments: str | Path, **options: object) -> Session:
    session = run_in_terminal([*HFPREP, *arguments], **options)  # type: ignore[arg-type]
    assert "Traceback" not in session.text
    return session


def models_of(golden_small: Path) -> Path:
    return golden_small / "checkpoints"


@pytest.fixture
def manifest(golden_small: Path, tmp_path: Path) -> Path:
    """The golden rows, an mp3 at which its decoder complains, a clip that is not there."""
    rows = [json.loads(line) for line in (golden_small / "manifest.jsonl").read_text(encoding="utf-8").splitlines()]
    for row in rows:
        row["audio"] = str(golden_small / row["audio"])
    whole = encode(tmp_path / "noisy.mp3", "mp3", "libmp3lame", tone(3, 16_000), 16_000).read_bytes()
    damaged = bytearray(whole)
    for place in np.random.default_rng(0).integers(1_000, len(whole) - 10, 20):
        damaged[place] ^= 0x55
    (tmp_path / "noisy.mp3").write_bytes(damaged)
    rows.append({"id": "noisy", "text": "Noise.", "audio": str(tmp_path / "noisy.mp3"), "language": "en"})
    rows.append({"id": "gone", "text": "Nothing.", "audio": "nowhere.wav", "language": "en"})
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


SEVERAL = """
import json, sys
from hfprep.cli.app import main

for arguments in json.loads(sys.argv[1]):
    print("$", *arguments[:1], flush=True)
    sys.argv = ["hfprep", *arguments]
    try:
        main()
    except SystemExit as end:
        print("status", end.code or 0, flush=True)
"""


def run_several(*commands: list[str | Path], **options: object) -> list[str]:
    """What each of some commands shows, in one process after another; no line is wider than the terminal."""
    words = json.dumps([list(map(str, command)) for command in commands])
    session = run_in_terminal([sys.executable, "-c", SEVERAL, words], **options)  # type: ignore[arg-type]
    assert "Traceback" not in session.text, session.text
    return [part.partition("\n")[2].strip("\n") for part in f"\n{session.text}".split("\n$ ")[1:]]


def bars(text: str) -> list[str]:
    return [line for line in text.splitlines() if "━" in line]


def test_a_build_has_one_bar_below_its_log_lines(manifest: Path, golden_small: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    # By a short name: the summary's first line gives the folder as it was given, however long that is.
    arguments: list[str | Path] = [
        "--manifest",
        manifest,
        "--output-dir",
        output.name,
        "--models",
        models_of(golden_small),
    ]
    done = run("build", *arguments, folder=tmp_path)
    assert done.status == 0, done.text
    assert done.screen.wrapped == 0
    lines = done.text.splitlines()
    bar = next(number for number, line in enumerate(lines) if "━" in line)
    assert re.fullmatch(r"━+ 100% 9/9, [\d.]+x real time, \d:\d\d:\d\d elapsed", lines[bar]), lines[bar]
    assert re.match(r"\d\d:\d\d:\d\d 10 lines: 9 to compute", lines[0])
    assert any(re.match(r"\d\d:\d\d:\d\d models loaded on cpu", line) for line in lines[:bar])
    assert any(re.match(r"\d\d:\d\d:\d\d warning: the validation split is empty", line) for line in lines[:bar])
    assert lines[bar + 1].startswith("hfprep build: ")
    assert "mpg123" not in done.raw
    assert "Illegal" not in done.raw
    assert "INFO" not in done.raw
    assert all(len(bars(text)) <= 1 for _, text in done.looks), "a bar was left behind"
    record = (output / ".hfprep" / "build.log").read_text(encoding="utf-8")
    assert re.search(rf"INFO {re.escape(str(tmp_path))}/noisy.mp3: the mp3 decoder says: \S", record)
    assert "elapsed" in record


def test_a_program_s_own_log_lines_and_the_bar_of_a_long_batch(
    golden_small: Path, manifest: Path, tmp_path: Path
) -> None:
    script = tmp_path / "program.py"
    script.write_text(SLOW_MODEL)
    arguments = (manifest, models_of(golden_small), tmp_path / "out", "--logging")
    done = run_in_terminal([sys.executable, script, *arguments])
    assert done.status == 0, done.text
    lines = done.text.splitlines()
    assert next(line for line in lines if line.startswith("THEIRS")) == "THEIRS 10 lines: 9 to compute, 1 rejected"
    assert "elapsed" in lines[-1]
    assert all(len(bars(text)) <= 1 for _, text in done.looks), "a bar was left behind"
    computing = [(seconds, bars(text)[0]) for seconds, text in done.looks if " 0/9" in text]
    shares = sorted({int(share) for _, line in computing for share in re.findall(r"(\d+)%", line)})
    assert len(shares) >= 4, f"the bar does not move during a batch: {shares}"
    estimated = [seconds for seconds, line in computing if " left" in line]
    assert estimated[0] - computing[0][0] < 3
    assert any(seconds > estimated[0] for seconds, _ in computing[:-1])


def state() -> list[object]:
    """What a build must leave as it found it."""
    loggers = [logging.getLogger(name) for name in (None, "hfprep", "hfprep.record", "datasets")]
    found = [(one.level, one.propagate, one.disabled, list(one.handlers)) for one in loggers]
    threads = [torch.get_num_threads()]
    other = threading.Thread(target=lambda: threads.append(torch.get_num_threads()))
    other.start()
    other.join()
    collector = [gc.isenabled(), gc.get_threshold(), gc.get_freeze_count()]
    bars = datasets.are_progress_bars_disabled()
    return [found, logging.root.manager.disable, collector, bars, threads, sys.stderr, sys.stdout]


SETTINGS: dict[str, Callable[[], None]] = {
    "none": lambda: None,
    "no collector": gc.disable,
    "no bars": datasets.disable_progress_bars,
    "threads": lambda: torch.set_num_threads(3),
    "errors only": lambda: logging.getLogger("hfprep").setLevel(logging.ERROR),
    "warnings only": lambda: logging.getLogger("hfprep").setLevel(logging.WARNING),
}


@pytest.mark.usefixtures("two_layers")
@pytest.mark.parametrize(("setting", "workers"), [*((name, False) for name in SETTINGS), ("none", True)])
def test_a_build_leaves_the_program_as_it_was(
    golden_small: Path,
    manifest: Path,
    tmp_path: Path,
    setting: str,
    workers: bool,
    request: pytest.FixtureRequest,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Logging, the collector, the bars of datasets and torch's threads, whether the build ends well or not."""
    if workers:
        request.getfixturevalue("real_workers")
    # As without the environment of tests, in which nothing can change the bars, and without pytest's handlers.
    monkeypatch.setattr(importlib.import_module("datasets.utils.tqdm"), "HF_DATASETS_DISABLE_PROGRESS_BARS", None)
    monkeypatch.setattr(logging.root, "handlers", [])
    datasets.enable_progress_bars()
    threads, level = torch.get_num_threads(), logging.getLogger("hfprep").level
    models, output = models_of(golden_small), tmp_path / "out"
    config = hfprep.BuildConfig(manifest=manifest, models=models, output_dir=output, max_samples=2)
    SETTINGS[setting]()
    try:
        before = state()
        hfprep.build(config)
        assert state() == before
        with pytest.raises(hfprep.ConfigError):
            hfprep.build(dataclasses.replace(config, manifest=Path("nowhere")))
        assert state() == before
    finally:
        gc.enable()
        datasets.disable_progress_bars()
        torch.set_num_threads(threads)
        logging.getLogger("hfprep").setLevel(level)
    shown = capfd.readouterr().err
    assert ("INFO" in shown) is ("only" not in setting)
    assert shown.count("the validation split is empty") == (setting != "errors only")


@pytest.fixture(scope="module")
def sessions(golden_small: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, str]]:
    """What commands show, one after another in one process: exit status and text."""
    folder = tmp_path_factory.mktemp("sessions")
    rows = [json.loads(line) for line in (golden_small / "manifest.jsonl").read_text(encoding="utf-8").splitlines()]
    for number, row in enumerate(rows):
        row |= {"audio": str(golden_small / row["audio"]), "id": f"a_rather_long_name_of_a_clip/{number:040}"}
    lines = [json.dumps(row) for row in rows] + ['{"id": "gone", "text": "x", "audio": "nowhere.wav"}']
    (folder / "rows.jsonl").write_text("\n".join(lines))
    (folder / "ja.jsonl").write_text("\n".join(lines[:2]))
    (folder / "lacking").mkdir()
    models = str(models_of(golden_small))
    to_do = ["--manifest", "rows.jsonl", "--output-dir", "out"]
    several = ["--dataset", "en=rows.jsonl=en", "--dataset", "ja=ja.jsonl=ja", "--engine", "inline"]
    commands: dict[str, list[str | Path]] = {
        "dry run": ["build", *to_do, "--models", models, "--dry-run", "--num-processes", "3"],
        "several": ["build", *several, "--models", models, "--val-count", "1"],
        "check": ["check", "rows.jsonl", "--models", models],
        "verify": ["verify", "en"],
        "doctor": ["doctor", "--models", models],
        "no models, offline": ["doctor"],
        "build without models": ["build", *to_do],
        "build with a folder that lacks files": ["build", *to_do, "--models", "lacking"],
        "no such option": ["build", *to_do, "--modells", models],
        "nothing to verify": ["verify", "nowhere"],
    }
    shown = run_several(*commands.values(), folder=folder, environment={"HF_HUB_OFFLINE": "1"})
    found = {}
    for name, text in zip(commands, shown, strict=True):
        said, _, status = text.rpartition("status ")
        found[name] = int(status), said
    return found


def words(text: str) -> str:
    """The text without the lines of tables and the breaks of lines."""
    return " ".join(re.sub(r"[│┃┏┓┗┛┌┐└┘├┤━─┳┻┬┴╇┡┩┼╭╮╰╯]", " ", text).split())


def test_tables_fit_and_nothing_is_cut(sessions: dict[str, tuple[int, str]]) -> None:
    for name, (_, text) in sessions.items():
        assert all(len(line) <= COLUMNS for line in text.splitlines()), name
        assert "\u2026" not in text or name == "check", name  # examples of texts are cut to a length
        for line in text.splitlines():
            assert line[:1] not in "│┃" or line[-1] in "│┃", f"{name}: {line}"


def test_the_plan_of_a_build(sessions: dict[str, tuple[int, str]]) -> None:
    status, text = sessions["dry run"]
    assert status == 0
    assert "hfprep build --dry-run: out" in text
    assert "to compute 8 0.004 h" in words(text)
    assert "process 2 cpu" in words(text)


def test_the_summary_of_several_data_sets(sessions: dict[str, tuple[int, str]]) -> None:
    status, text = sessions["several"]
    assert status == 0
    assert re.search(r"━+ 100% 8/8, .* elapsed\n", text)
    table = words(text[text.index("hfprep build: 2 data sets") :])
    assert "en (en) 9 8 1 0.004" in table
    assert "7 train, 1 val, 8 computed" in table
    assert "total 11 10 1 0.005" in table


def test_what_check_and_verify_say(sessions: dict[str, tuple[int, str]]) -> None:
    status, text = sessions["check"]
    assert status == 1
    assert "lines 9" in words(text)
    assert "audio_missing 1 line 9 (gone)" in words(text)
    assert "lines checked" not in text, "the counter goes when it is done"
    assert sessions["verify"] == (0, "en: npy, 8 samples, 0 faults\n")
    assert sessions["nothing to verify"][0] == 1


def test_where_there_are_no_models_the_command_that_gets_them_is_named(sessions: dict[str, tuple[int, str]]) -> None:
    status, text = sessions["build without models"]
    assert status == 1
    assert "python -m hfprep download DIR fetches them" in text.replace("\n", "")
    status, text = sessions["build with a folder that lacks files"]
    assert status == 1
    assert "hfprep: lacking lacks config.yaml, bpe.model, wav2vec2bert_stats.pt, gpt.pth," in text.replace("\n", "")
    assert "; python -m hfprep download lacking fetches them" in text.replace("\n", "")
    status, text = sessions["no models, offline"]
    assert status == 1
    assert "HF_HUB_OFFLINE is set" in words(text)
    assert text.count("hfprep download DIR") == 1, "one remedy for all of them is said once"
    assert text.endswith("3 problems to solve before a build.\n")
    assert sessions["doctor"][0] == 0


def test_a_wrong_option_is_named(sessions: dict[str, tuple[int, str]]) -> None:
    status, text = sessions["no such option"]
    assert status == 2
    assert "No such option: --modells" in text


def test_download_shows_what_it_fetches(golden_small: Path, tmp_path: Path) -> None:
    with serve_models(models_of(golden_small)) as hub:
        environment = hub_environment(hub.url) | {"HF_HUB_DISABLE_PROGRESS_BARS": None}
        done = run("download", "models", folder=tmp_path, environment=environment)
    assert done.status == 0, done.text
    assert done.text.startswith("downloading 8 files of the indextts-2 models to models, ")
    assert done.text.endswith("Ready: python -m hfprep build --models models ...")
    assert "━" not in done.text, "the bar goes when all is there"
    assert "Fetching" not in done.text, "the hub library's own bars are not shown"
    assert done.screen.wrapped == 0


def test_push_says_what_it_sends_and_to_whom(tmp_path: Path) -> None:
    make_output(tmp_path / "out")
    with serve_hub() as hub:
        environment = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1",
                       "HF_HUB_OFFLINE": "0", "NO_PROXY": "127.0.0.1", "HF_TOKEN": TOKEN}  # fmt: skip
        done = run("push", "out", "user/features", folder=tmp_path, environment=environment)
    assert done.status == 0, done.text
    said = done.text.splitlines()
    assert re.match(r"To user/features, a new private repository: 12 samples \(8 train, 4", said[0])
    assert hub.repositories["user/features"].private
