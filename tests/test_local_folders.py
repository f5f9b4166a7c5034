"""What takes folders of this machine says so of a URL, and of a folder that cannot be written to says the way out."""

import os
from pathlib import Path
from typing import Any

import pytest

import hfprep
from hfprep.cli import app as cli
from hfprep.errors import ConfigError
from hfprep.io.object_storage import any_url
from tests.sample_sets import make_output

URL = "s3://bucket/out"
READ = [
    ("pairs", URL),
    ("verify", URL),
    ("report", URL),
    ("push", URL, "me/set"),
    ("export-arrow", URL, "x"),
    ("export-webdataset", URL, "x"),
    ("export-npz", URL, "x"),
    ("export-npy", URL, "x"),
    ("export-manifests", URL, "x"),
    ("retokenize", URL, "--tokenizer", "x.model"),
    ("merge", URL, "--output-dir", "x"),
    ("pairs", "hf://datasets/me/set"),
    ("verify", "https://host/out"),
]
WRITTEN = [
    ("export-arrow", "OUT", URL),
    ("export-webdataset", "OUT", URL),
    ("export-npz", "OUT", URL),
    ("export-manifests", "OUT", URL),
    ("report", "OUT", "--output", f"{URL}/r.html"),
]


def said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: object) -> list[str]:
    monkeypatch.setattr("sys.argv", ["hfprep", *map(str, words)])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == 1
    return capsys.readouterr().err.splitlines()


@pytest.mark.parametrize("command", [*READ, *WRITTEN], ids=" ".join)
def test_a_url_is_one_line_that_says_where_to_copy_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: tuple[str, ...]
) -> None:
    output = make_output(tmp_path / "out")
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    words = [str(output) if word == "OUT" else word for word in command]
    (line,) = said(monkeypatch, capsys, *words)
    assert "is a URL, but this " in line
    assert "://" in line
    assert sorted(tmp_path.rglob("*")) == before


def test_other_urls_are_no_output_of_a_build(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, golden_small: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    options: dict[str, Any] = {"manifest": golden_small / "manifest.jsonl", "models": golden_small / "checkpoints"}
    with pytest.raises(ConfigError, match="'https://host/out' is a URL"):
        hfprep.build(hfprep.BuildConfig(output_dir=Path("https://host/out"), **options))
    with pytest.raises(ConfigError, match="'s3://bucket/out' is a URL"):
        hfprep.load("s3://bucket/out")
    assert not list(tmp_path.iterdir())


def test_names_that_look_like_urls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert any_url(Path("s3://bucket/out")) == URL
    assert any_url("http://host/out") == "http://host/out"
    assert [any_url(name) for name in ("out", "/out", "C:/out", "a/b:c/d", "s3:")] == [None] * 5
    (tmp_path / "s3:" / "bucket" / "out").mkdir(parents=True)
    assert any_url(Path("s3://bucket/out")) is None  # it is there


@pytest.mark.parametrize(
    ("command", "advice"),
    [
        (("pairs", "OUT"), "export-manifests"),
        (("pairs", "OUT", "--form", "npz"), "export-npz"),
        (("report", "OUT"), "--output FILE"),
    ],
)
def test_a_folder_that_cannot_be_written_to(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    command: tuple[str, ...],
    advice: str,
) -> None:
    output = make_output(tmp_path / "out")
    access = os.access
    monkeypatch.setattr("os.access", lambda path, mode: mode != os.W_OK and access(path, mode))
    before = sorted(tmp_path.rglob("*"))
    (line,) = said(monkeypatch, capsys, *(str(output) if word == "OUT" else word for word in command))
    assert f"{output} is not writable; " in line
    assert advice in line
    assert sorted(tmp_path.rglob("*")) == before
