"""Builds of manifests with rows that reach for a store, or whose ids the output's file system does not hold."""

import errno
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import hfprep
from hfprep.errors import ConfigError, Reason, RejectedSample, StoreError
from hfprep.inputs.manifest.rows import AudioFinder
from hfprep.io import object_storage
from hfprep.pipeline.inspection import identify_audio
from hfprep.pipeline.stores import Stores
from hfprep.store.names import NameRules
from hfprep.tools.check.options import CheckOptions
from hfprep.tools.check.scan import check

pytestmark = pytest.mark.usefixtures("two_layers", "one_clip_is_timed")

Rows = list[dict[str, Any]]
Build = Callable[..., hfprep.Summary]


@pytest.fixture
def rows(golden_small: Path) -> Rows:
    lines = (golden_small / "manifest.jsonl").read_bytes().splitlines()
    return [row | {"audio": str(golden_small / row["audio"])} for row in map(json.loads, lines)][:4]


@pytest.fixture
def build(golden_small: Path, tmp_path: Path) -> Build:
    """Build these rows into `out`."""

    def run(rows: Rows, **options: Any) -> hfprep.Summary:
        manifest = tmp_path / "rows.jsonl"
        manifest.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        values: dict[str, Any] = {
            "models": golden_small / "checkpoints",
            "batch_size": 2,
            "output_dir": tmp_path / "out",
        }
        return hfprep.build(hfprep.BuildConfig(**{"manifest": manifest} | values | options))

    return run


def rejected(tmp_path: Path) -> list[tuple[int, str]]:
    lines = (tmp_path / "out" / "rejected.jsonl").read_bytes().splitlines()
    return [(row["line"], row["reason"]) for row in map(json.loads, lines)]


def accounted(summary: hfprep.Summary) -> bool:
    return summary.accepted + sum(summary.rejected.values()) + summary.capped == summary.lines_read


class Unreachable:
    """Stands for a store: what is asked of it fails, and is counted."""

    def __init__(self) -> None:
        self.asked = 0

    def info(self, path: str) -> None:
        self.asked += 1
        raise ConnectionError(f"no credentials for {path}")


def test_a_store_that_rows_chose_costs_those_rows(
    build: Build, rows: Rows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Unreachable()
    monkeypatch.setattr(object_storage, "opened", lambda url: (store, url))
    rows[1]["audio"] = "s3://theirs/a.wav"
    rows[2]["audio"] = "nosuchstore://theirs/a.wav"
    summary = build(rows)
    assert (summary.accepted, accounted(summary)) == (2, True)
    assert rejected(tmp_path) == [(2, "audio_unreadable"), (3, "audio_missing")]
    with pytest.raises(StoreError, match="no credentials"):
        build(rows, audio_root="s3://theirs")


def test_a_package_that_is_missing_costs_the_row(build: Build, rows: Rows, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(scheme: str) -> None:
        raise ImportError(f"Install {scheme}")

    monkeypatch.setattr("fsspec.get_filesystem_class", missing)
    summary = build([rows[0], rows[1] | {"audio": "gs://theirs/a.wav"}])
    assert (summary.accepted, summary.rejected) == (1, {"audio_unreadable": 1})


def test_a_store_is_asked_once_unless_it_has_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    store = Unreachable()
    monkeypatch.setattr(object_storage, "opened", lambda url: (store, url))
    stores = Stores(frozenset({"s3://mine"}))
    for name in ("a", "b"):
        with pytest.raises(RejectedSample) as caught:
            identify_audio(f"s3://theirs/{name}.wav", by_content=False, stores=stores)
        assert caught.value.reason is Reason.AUDIO_UNREADABLE
    assert store.asked == 1
    with pytest.raises(StoreError):
        identify_audio("s3://mine/a.wav", by_content=False, stores=stores)
    with pytest.raises(StoreError):  # its sample is finished: it was there
        identify_audio("s3://theirs/a.wav", by_content=False, stores=stores, finished=True)


class Failing:
    """Stands for a store that says how large its files are, and then does not give what it promised."""

    def __init__(self, content: bytes, answer: Callable[[bytes], bytes]) -> None:
        self.content, self.answer = content, answer
        self.asked = 0

    def info(self, path: str) -> dict[str, Any]:
        del path
        return {"size": len(self.content), "ETag": "1", "type": "file"}

    def cat_file(self, path: str, start: int, end: int) -> bytes:
        del path
        self.asked += 1
        return self.answer(self.content[start:end])


def refuses(_: bytes) -> bytes:
    raise PermissionError("Access Denied")


def is_gone(_: bytes) -> bytes:
    raise TimeoutError("no answer")


def has_none(_: bytes) -> bytes:
    raise FileNotFoundError("404")


ANSWERS = {
    "403": refuses,
    "404": has_none,
    "timeout": is_gone,
    "half": lambda content: content[: len(content) // 2],
    "more": lambda content: content + b"more",
    "nothing": lambda _: b"",
}


@pytest.mark.parametrize("answer", ANSWERS)
def test_a_store_that_fails_while_clips_are_read_costs_the_rows_that_chose_it(
    build: Build, rows: Rows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: str
) -> None:
    store = Failing(Path(rows[1]["audio"]).read_bytes(), ANSWERS[answer])
    monkeypatch.setattr(object_storage, "opened", lambda url: (store, url))
    rows[1]["audio"], rows[2]["audio"] = "s3://theirs/a.wav", "s3://theirs/b.tar#b.wav@0+100"
    for options in ({}, {"hash_audio": True}):
        summary = build(rows, **options)
        assert (summary.accepted, summary.pending, accounted(summary)) == (2, 0, True)
        assert [line for line, _ in rejected(tmp_path)] == [2, 3]
    monkeypatch.setattr(store, "answer", bytes)
    assert build(rows[:2]).accepted == 2  # what was rejected is read again


def test_credentials_that_expire_cost_rows_or_end_the_run(
    build: Build, rows: Rows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = Path(rows[1]["audio"]).read_bytes()

    def once(part: bytes) -> bytes:
        return part if store.asked == 1 else refuses(part)

    store = Failing(content, once)
    monkeypatch.setattr(object_storage, "opened", lambda url: (store, url))
    for number, row in enumerate(rows):
        row["audio"] = f"s3://theirs/{number}.wav"
    options = {"workers": 1, "batch_size": 1}
    summary = build(rows, **options)
    assert (summary.accepted, summary.rejected) == (1, {"audio_unreadable": 3})
    store.asked = 0
    with pytest.raises(StoreError, match="Access Denied"):
        build(rows, output_dir=tmp_path / "other", audio_root="s3://theirs", **options)


def test_check_and_adoption_reject_rows_of_a_store_that_fails(
    build: Build, rows: Rows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert build(rows).accepted == 4
    (tmp_path / "out" / ".hfprep" / "state.sqlite").unlink()
    store = Failing(Path(rows[1]["audio"]).read_bytes(), is_gone)
    monkeypatch.setattr(object_storage, "opened", lambda url: (store, url))
    rows[1]["audio"] = "s3://theirs/a.wav"
    found = check(CheckOptions(manifest=tmp_path / "rows.jsonl", decode=True))
    assert not found.findings.rejected
    summary = build(rows, skip_existing=True)
    assert (summary.accepted, summary.rejected) == (3, {"audio_unreadable": 1})
    found = check(CheckOptions(manifest=tmp_path / "rows.jsonl", decode=True))
    assert found.findings.rejected == {"audio_unreadable": 1}


# Names


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENAMETOOLONG, errno.EILSEQ])
def test_an_id_that_cannot_name_a_file_is_rejected_when_it_is_published(
    build: Build, rows: Rows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    replace = os.replace

    def picky(source: Any, target: Any) -> None:
        if "condition" in str(target) and "a:b" in str(target):
            raise OSError(number, os.strerror(number), str(target))
        replace(source, target)

    monkeypatch.setattr(os, "replace", picky)
    rows[1]["id"] = "x/a:b"
    summary = build(rows)
    assert (summary.accepted, accounted(summary)) == (3, True)
    assert rejected(tmp_path) == [(2, "invalid_id")]
    assert not list((tmp_path / "out").rglob("*a:b*"))
    assert build(rows).tally.done == 0


def test_what_is_no_fault_of_a_name_still_ends_the_run(
    build: Build, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(source: Any, target: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target))

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(StoreError, match="free some space"):
        build(rows)


def test_the_rules_of_a_common_linux_file_system(tmp_path: Path) -> None:
    rules = NameRules.of(tmp_path, tmp_path)
    assert (rules.refused, rules.folds, rules.longest_name) == ("", False, 255)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(RejectedSample, match="too long"):
        rules.check("/".join(["x" * 200] * 30))


def test_ids_that_a_file_system_takes_for_one_are_told(
    build: Build, rows: Rows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exfat = NameRules(refused=':*?"<>|\\', folds_case=True, composes=True)
    monkeypatch.setattr(NameRules, "of", classmethod(lambda cls, folder, root: exfat))
    for row, sample_id in zip(rows, ("Abc", "abc", "a?", "caf\u00e9"), strict=True):
        row["id"] = sample_id
    rows.append(rows[3] | {"id": "CAFE\u0301"})
    summary = build(rows)
    assert (summary.accepted, accounted(summary)) == (2, True)
    assert rejected(tmp_path) == [(2, "duplicate_id"), (3, "invalid_id"), (5, "duplicate_id")]
    messages = [json.loads(line)["message"] for line in (tmp_path / "out" / "rejected.jsonl").read_bytes().splitlines()]
    assert ["on line 1" in messages[0], "on line 4" in messages[2]] == [True, True]


@pytest.mark.parametrize("letter", [":", "?"])
def test_a_file_system_that_refuses_letters_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, letter: str
) -> None:
    opened = os.open

    def picky(path: Any, *arguments: Any, **options: Any) -> int:
        if letter in os.path.basename(str(path)):
            raise OSError(errno.EINVAL, "Invalid argument", str(path))
        return opened(path, *arguments, **options)

    monkeypatch.setattr(os, "open", picky)
    assert NameRules.of(tmp_path, tmp_path).refused == letter


# Where audio is looked for


def test_audio_is_looked_for_in_its_root(build: Build, rows: Rows, golden_small: Path, tmp_path: Path) -> None:
    folder = Path(rows[0]["audio"]).parent
    for row in rows:
        row["audio"] = Path(row["audio"]).name
    assert build(rows, output_dir=tmp_path / "none").accepted == 0
    summary = build(rows, audio_root=folder)
    assert summary.accepted == 4
    again = build(rows, audio_root=str(folder))
    assert (again.reused, again.tally.done) == (4, 0)


def test_a_message_about_missing_audio_names_the_path_beside_the_manifest(
    build: Build, rows: Rows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for here in (tmp_path, tmp_path.parent, Path("/")):
        monkeypatch.chdir(here)
        build([rows[0] | {"audio": "wavs/none.wav"}])
        row = json.loads((tmp_path / "out" / "rejected.jsonl").read_bytes())
        assert f" {tmp_path}/wavs/none.wav" in row["message"]
    assert AudioFinder(tmp_path / "m.jsonl", "s3://b/clips").find("../../x.wav") == "s3://b/x.wav"


def test_names_of_folders_need_not_be_utf8(build: Build, rows: Rows, tmp_path: Path) -> None:
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/d\xe9j\xe0"))
    folder.mkdir()
    for row in rows[:2]:
        (folder / Path(row["audio"]).name).write_bytes(Path(row["audio"]).read_bytes())
        row["audio"] = Path(row["audio"]).name
    rows[2]["audio"] = "none.wav"
    manifest = folder / "rows.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows[:3]))
    summary = build(rows, manifest=manifest)
    assert (summary.accepted, accounted(summary)) == (2, True)
    assert rejected(tmp_path) == [(3, "audio_missing")]
    assert build(rows, manifest=manifest).reused == 2
    with pytest.raises(ConfigError, match="whose path is UTF-8"):
        build(rows, output_dir=folder / "out")


def test_max_samples_counts_rows_that_are_computed(build: Build, rows: Rows, tmp_path: Path) -> None:
    rows[0]["audio"] = "none.wav"
    summary = build(rows, max_samples=2)
    assert (summary.accepted, summary.rejected, summary.capped) == (2, {"audio_missing": 1}, 1)


def test_a_rejection_can_be_sent_to_another_process() -> None:
    error = pickle.loads(pickle.dumps(RejectedSample(Reason.AUDIO_EMPTY, "said \udce9")))
    assert (type(error), error.reason, error.message) == (RejectedSample, Reason.AUDIO_EMPTY, "said \\udce9")
    assert str(error) == error.message
