"""What comes from data is shown and never acts; what an output names is in it, and links in it are not followed."""

import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from hfprep.cli.app import app
from hfprep.cli.output import PlainTable, cell, say
from hfprep.cli.output import show as show_table
from hfprep.errors import ConfigError, StoreError
from hfprep.formats.card import card
from hfprep.formats.formats import open_set
from hfprep.formats.manifest_paths import export_manifests
from hfprep.formats.npy import export_npy
from hfprep.io import atomic
from hfprep.io.lock import OutputLock
from hfprep.io.printable import markdown, printable, printable_json, printable_lines
from hfprep.pipeline.logs import formatter, log_to_file
from hfprep.pipeline.retokenizing import copy_output
from hfprep.recipes.indextts2.config import ModelConfig
from tests.sample_sets import make_output

HOSTILE = "\x1b]0;owned\x07\x1b[2J[/x][red]\u202e\u009b1m\r\nnext"


def made(tmp_path: Path) -> Path:
    return make_output(tmp_path / "out", ids=("a", "b", "c", "d"), extra=False)


UNSAFE = set("\x1b\x07\r\u202e\u009b")


def test_what_could_act_is_shown_as_an_escape() -> None:
    assert printable("a\tb\x1b[0m\n\u2028é日[/x]") == "a\\tb\\x1b[0m\\n\\u2028é日[/x]"
    assert printable_lines("first\nINFO second\x1b") == "first\n    INFO second\\x1b"
    assert json.loads(printable_json(json.dumps(HOSTILE, ensure_ascii=False))) == HOSTILE
    assert not UNSAFE & set(printable_json(json.dumps(HOSTILE, ensure_ascii=False)))
    assert markdown("en|<b>[x](y)\n# h") == "en\\|\\<b\\>\\[x\\]\\(y\\)\\\\n\\# h"


@pytest.mark.parametrize("as_json", [False, True])
def test_data_forges_no_line_of_a_log(tmp_path: Path, as_json: bool) -> None:
    forged = f"{HOSTILE}\n2026-01-01 00:00:00,000 INFO 5/5 samples"
    with log_to_file(tmp_path / "build.log", as_json=as_json):
        log = logging.getLogger("hfprep.test")
        log.warning("%s: %s is %d", Path(f"/data/{forged}"), forged, 3)
        log.warning(f"said of {forged}")
        log.error("failed: %s", ValueError(forged))
    text = (tmp_path / "build.log").read_text(encoding="utf-8")
    assert not UNSAFE & set(text)
    lines = [line for line in text.split("\n") if line and not line.startswith("    ")]
    assert len(lines) == 3
    assert all(("WARNING" in line) or ("ERROR" in line) for line in lines)
    record = logging.LogRecord("hfprep", logging.INFO, "", 1, "%s", (forged,), None)
    assert not UNSAFE & set(formatter(as_json).format(record))


def test_tables_and_messages_show_markup_and_escapes_as_text(capsys: pytest.CaptureFixture[str]) -> None:
    table = PlainTable(f"of {HOSTILE}")
    table.add_column(HOSTILE, overflow="fold")
    table.add_row(HOSTILE)
    table.add_row(cell("one", HOSTILE))
    show_table(table)
    say(f"hfprep: {HOSTILE}", error=True)
    shown = capsys.readouterr()
    assert not UNSAFE & set(shown.out + shown.err)
    assert shown.out.count("[/x][red]") == 4
    assert "[/x][red]" in shown.err


def test_check_shows_a_hostile_manifest(tmp_path: Path, golden_small: Path) -> None:
    row: dict[str, Any] = json.loads((golden_small / "manifest.jsonl").read_bytes().splitlines()[0])
    row |= {"audio": str(golden_small / row["audio"]), "speaker": f"[/x]{HOSTILE}", "text": f"Hello {HOSTILE}"}
    rows = [row, row | {"id": "b", "audio": f"/nowhere/{HOSTILE}.wav", "speaker": "[bold]"}]
    manifest = tmp_path / "rows.jsonl"
    manifest.write_text("".join(json.dumps(item) + "\n" for item in rows))
    tokenizer = str(golden_small / "checkpoints" / "bpe.model")
    result = CliRunner().invoke(app, ["check", str(manifest), "--tokenizer", tokenizer])
    assert result.exit_code == 1, result.output
    assert not UNSAFE & set(result.output)
    assert "[/x]" in result.output


def test_verify_shows_a_hostile_output(tmp_path: Path) -> None:
    output = made(tmp_path)
    manifest = output / "train_manifest.jsonl"
    records = [json.loads(line) for line in manifest.read_bytes().splitlines()]
    records[0] |= {"id": HOSTILE}
    manifest.write_text("".join(json.dumps(record) + "\n" for record in records))
    result = CliRunner().invoke(app, ["verify", str(output)])
    assert result.exit_code == 1
    assert not UNSAFE & set(result.output)


def test_the_card_takes_languages_for_words(tmp_path: Path) -> None:
    output = made(tmp_path)
    for name in ("train_manifest.jsonl", "val_manifest.jsonl"):
        lines = (output / name).read_bytes().splitlines()
        changed = [json.loads(line) | {"language": "en](javascript:x)\n# Title <script>"} for line in lines]
        (output / name).write_text("".join(json.dumps(record) + "\n" for record in changed))
    text = card(open_set(output), "me/data", data_format="arrow", dtype="float32")
    assert "<script>" not in text
    assert "\n# Title" not in text
    assert "](javascript" not in text


# Outputs of others


@pytest.mark.parametrize(
    "path", ["/etc/passwd", "/etc/x.npy", "../x.npy", "codes/../../x.npy", "codes/\0.npy", 5, None]
)
def test_a_record_names_no_file_outside_its_output(tmp_path: Path, path: Any) -> None:
    output = made(tmp_path)
    np_file = next((output / "codes").rglob("*.npy"))
    shutil.copyfile(np_file, tmp_path / "x.npy")
    manifest = output / "train_manifest.jsonl"
    records = [json.loads(line) for line in manifest.read_bytes().splitlines()]
    manifest.write_text("".join(json.dumps(record | {"codes_path": path}) + "\n" for record in records))
    with pytest.raises(StoreError, match=r"which is (outside the output|not an array)"):
        list(open_set(output).split("train").samples())
    with pytest.raises(StoreError):
        export_npy(open_set(output), tmp_path / "exported")
    with pytest.raises(StoreError):
        export_manifests(output, tmp_path / "manifests")


@pytest.mark.parametrize("kind", ["link", "pipe", "huge"])
def test_an_array_is_a_regular_file_of_the_output(tmp_path: Path, kind: str) -> None:
    output = made(tmp_path)
    first = json.loads((output / "train_manifest.jsonl").read_bytes().splitlines()[0])
    path = output / first["codes_path"]
    path.rename(tmp_path / "x.npy")
    if kind == "link":
        path.symlink_to(tmp_path / "x.npy")
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.touch()
        os.truncate(path, 1 << 40)
    with pytest.raises(StoreError, match="cannot be read"):
        open_set(output).split("train").sample(0)
    if kind == "link":
        with pytest.raises(StoreError, match="symbolic link"):
            copy_output(output, tmp_path / "again")


@pytest.mark.parametrize(
    "name", ["lock", "build.log", "state.sqlite", "state.sqlite-journal", "work", "timeline.jsonl"]
)
def test_links_in_an_output_are_not_followed(tmp_path: Path, name: str) -> None:
    private = tmp_path / "out" / ".hfprep"
    private.mkdir(parents=True)
    victim = tmp_path / "victim"
    victim.write_text("kept")
    (private / name).symlink_to(victim)
    with pytest.raises(StoreError, match="symbolic link"), OutputLock(private / "lock"):
        pass
    assert victim.read_text() == "kept"
    private.rename(tmp_path / "elsewhere")
    private.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StoreError, match="symbolic link"), OutputLock(private / "lock"):
        pass


def test_files_are_not_written_through_links(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("kept")
    for name in ("a.json.tmp", "b.jsonl", "build.log"):
        (tmp_path / name).symlink_to(victim)
    atomic.write_bytes(tmp_path / "a.json", b"new")
    assert (tmp_path / "a.json").read_bytes() == b"new"
    with pytest.raises(StoreError, match="it is a symbolic link"):
        atomic.AppendedFile(tmp_path / "b.jsonl")
    with pytest.raises(StoreError, match="it is a symbolic link"), log_to_file(tmp_path / "build.log", as_json=False):
        pass
    assert victim.read_text() == "kept"


def test_readers_lock_without_writing(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    with OutputLock(lock, reading=True):
        assert not lock.exists()
    with OutputLock(lock):
        pass
    content = lock.read_bytes()
    lock.chmod(0o400)
    with OutputLock(lock, reading=True), OutputLock(lock, reading=True):
        assert lock.read_bytes() == content
        with pytest.raises(StoreError, match="another run"), OutputLock(lock):
            pass
    with OutputLock(lock), pytest.raises(StoreError, match="another run"), OutputLock(lock, reading=True):
        pass


def test_a_foreign_output_can_be_exported_and_gets_no_lock(tmp_path: Path) -> None:
    output = made(tmp_path)
    (output / ".hfprep").mkdir(exist_ok=True)
    before = sorted(output.rglob("*"))
    for command in ("export-arrow", "export-webdataset"):
        result = CliRunner().invoke(app, [command, str(output), str(tmp_path / command)])
        assert result.exit_code == 0, result.output
    assert sorted(output.rglob("*")) == before


def test_an_export_that_is_there_already_is_said_so(tmp_path: Path) -> None:
    output, target = made(tmp_path), tmp_path / "npy"
    first = CliRunner().invoke(app, ["export-npy", str(output), str(target)])
    times = {path: path.stat().st_mtime_ns for path in target.rglob("*")}
    again = CliRunner().invoke(app, ["export-npy", str(output), str(target)])
    assert (first.exit_code, again.exit_code) == (0, 0)
    assert "already" in again.output
    assert "already" not in first.output
    assert {path: path.stat().st_mtime_ns for path in target.rglob("*")} == times
    other = make_output(tmp_path / "other", ids=("x", "y"), extra=False)
    refused = CliRunner().invoke(app, ["export-npy", str(other), str(target)])
    assert isinstance(refused.exception, StoreError)


# Configs


def config_with(golden_small: Path, tmp_path: Path, key: str, value: Any) -> Path:
    values = yaml.safe_load((golden_small / "checkpoints" / "config.yaml").read_text())
    *sections, last = key.split(".")
    inner = values
    for section in sections:
        inner = inner[section]
    inner[last] = value
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("gpt.model_dim", 10**12),
        ("gpt.condition_module.num_blocks", 10**9),
        ("gpt.emo_condition_module.perceiver_mult", 10**9),
        ("semantic_codec.vocos_num_layers", 10**9),
        ("semantic_codec.codebook_size", 10**15),
    ],
)
def test_a_width_that_no_machine_holds_is_one_line(golden_small: Path, tmp_path: Path, key: str, value: int) -> None:
    with pytest.raises(ConfigError) as caught:
        ModelConfig.read(config_with(golden_small, tmp_path, key, value))
    assert f"{key} is {value}; it must be a whole number from 1 to" in str(caught.value)
    assert "\n" not in str(caught.value)


BOMB = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 60))


@pytest.mark.parametrize(
    "content",
    [
        "[" * 10_000,
        "{a: " * 10_000,
        "\n".join(" " * n + "a:" for n in range(1200)),
        BOMB + "gpt: *a59\n",
        BOMB + "gpt:\n  condition_type: *a59\n",
        "gpt: {condition_type: 2024-99-99}",
        f"gpt: {'9' * 5000}",
        "gpt: !!python/object:os.system x",
        "a: &a [*a]\ngpt: *a",
        "gpt: 1\n" * 100_000,
    ],
)
def test_an_absurd_config_is_one_short_error(tmp_path: Path, content: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(content)
    with pytest.raises(ConfigError) as caught:
        ModelConfig.read(path)
    assert len(str(caught.value)) < 1000


# Streams


@pytest.mark.parametrize("redirection", ["", ">&- 2>&-", "<&- >&- 2>&-", ">/dev/full 2>/dev/full", "2>&1 | true"])
def test_closed_streams_change_nothing_but_what_is_printed(tmp_path: Path, redirection: str) -> None:
    output = made(tmp_path)
    command = f'"{sys.executable}" -m hfprep export-webdataset "{output}" "{tmp_path / "shards"}"'
    script = f"set -o pipefail; {command} {redirection}"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "shards" / "index.json").is_file()
    assert bool(done.stdout) is (redirection == "")
