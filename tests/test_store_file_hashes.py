"""Hashes of large files: as hashlib's, remembered, never those of another file, whatever becomes of the processes."""

import hashlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from hfprep.errors import CheckpointError
from hfprep.io import file_hashes, hash_file
from hfprep.io.file_hashes import FileHashes, Hashers

CONTENT = os.urandom(300_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture(autouse=True)
def every_file_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_hashes, "LARGE_BYTES", 1)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "weights.safetensors"
    path.write_bytes(CONTENT)
    return path


@pytest.fixture
def hashers() -> Iterator[Hashers]:
    with Hashers() as hashers:
        yield hashers


@pytest.fixture
def hashes(tmp_path: Path, hashers: Hashers) -> FileHashes:
    return FileHashes(tmp_path / "sha256.json", hashers)


def no_hashing_here(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> str:
        raise AssertionError(f"{path} was hashed in this process")

    monkeypatch.setattr(file_hashes, "sha256_file", refuse)


def no_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(command: list[str], **options: object) -> None:
        raise AssertionError(f"{command} was started")

    monkeypatch.setattr(subprocess, "Popen", refuse)


@pytest.mark.parametrize("size", [0, 1, 4096, 4097, 300_000])
def test_a_mapped_file_has_the_hash_of_one_that_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    monkeypatch.setattr(hash_file, "WINDOW_BYTES", 4096)
    path = tmp_path / "file"
    path.write_bytes(CONTENT[:size])
    assert hash_file.mapped_sha256(str(path)) == hashlib.sha256(CONTENT[:size]).hexdigest()


def test_a_process_hashes_ahead(path: Path, hashes: FileHashes, monkeypatch: pytest.MonkeyPatch) -> None:
    hashes.begin([path])
    no_hashing_here(monkeypatch)
    no_processes(monkeypatch)
    assert hashes.sha256({"semantic_model": path}) == {"semantic_model": SHA256}


def test_without_that_it_is_hashed_when_it_is_asked_for(
    path: Path, hashes: FileHashes, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_hashing_here(monkeypatch)
    assert hashes.sha256({"semantic_model": path}) == {"semantic_model": SHA256}


def test_a_small_file_is_hashed_here(path: Path, hashes: FileHashes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_hashes, "LARGE_BYTES", len(CONTENT) + 1)
    no_processes(monkeypatch)
    assert hashes.sha256({"semantic_model": path}) == {"semantic_model": SHA256}


def test_what_is_remembered_is_not_hashed_again(
    path: Path, hashes: FileHashes, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashes.sha256({"semantic_model": path})
    no_hashing_here(monkeypatch)
    no_processes(monkeypatch)
    with Hashers() as later:
        again = FileHashes(hashes.memory, later)
        again.begin([path])
        assert again.sha256({"semantic_model": path}) == {"semantic_model": SHA256}


def test_a_file_that_takes_its_place_meanwhile_has_its_own_hash(path: Path, hashes: FileHashes) -> None:
    hashes.begin([path])
    other = path.with_name("other")
    other.write_bytes(CONTENT[::-1])
    other.replace(path)
    assert hashes.sha256({"semantic_model": path}) == {"semantic_model": hashlib.sha256(CONTENT[::-1]).hexdigest()}


@pytest.mark.parametrize("python", ["/bin/false", "/no/such/python", ""])
def test_where_no_process_hashes_it_this_one_does(
    path: Path, hashes: FileHashes, monkeypatch: pytest.MonkeyPatch, python: str
) -> None:
    monkeypatch.setattr(sys, "executable", python)
    hashes.begin([path])
    assert hashes.sha256({"semantic_model": path}) == {"semantic_model": SHA256}


def test_a_process_that_is_killed_costs_nothing_but_time(path: Path, hashes: FileHashes, hashers: Hashers) -> None:
    hashes.begin([path])
    for process in hashers._running.values():
        process.kill()
    assert hashes.sha256({"semantic_model": path}) == {"semantic_model": SHA256}


def test_a_file_that_is_not_there_is_named(path: Path, hashes: FileHashes) -> None:
    missing = path.with_name("missing.safetensors")
    with pytest.raises(CheckpointError, match=r"missing\.safetensors cannot be read: No such file"):
        hashes.sha256({"semantic_model": missing})


def test_processes_end_with_whoever_asked(path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    forever = tmp_path / "forever.py"
    forever.write_text("import time\ntime.sleep(600)\n", encoding="utf-8")
    monkeypatch.setattr(file_hashes, "_PROGRAM", forever)
    with Hashers() as hashers:
        hashers.begin("key", path)
        (process,) = hashers._running.values()
        assert process.poll() is None
        began = time.monotonic()
    assert process.returncode == -9
    assert time.monotonic() - began < 60


def test_hashing_begins_before_anything_heavy_is_imported(golden_small: Path, tmp_path: Path) -> None:
    """And what a build writes down is what hashlib finds."""
    code = """
import pathlib, sys
from hfprep.pipeline.config import BuildConfig
from hfprep.io import file_hashes

file_hashes.LARGE_BYTES = 1
begin, seen = file_hashes.Hashers.begin, []

def begin_seen(self, key, path):
    seen.append((path.name, bool({"torch", "datasets"} & set(sys.modules))))
    return begin(self, key, path)

file_hashes.Hashers.begin = begin_seen
from hfprep.cli.app import run_build

folder = pathlib.Path(sys.argv[1])
config = BuildConfig(
    manifest=folder / "manifest.jsonl", models=folder / "checkpoints", output_dir=pathlib.Path(sys.argv[2])
)
assert run_build(config) == 0
assert ("gpt.pth", False) in seen and ("model.safetensors", False) in seen, seen
"""
    output = tmp_path / "out"
    subprocess.run([sys.executable, "-c", code, str(golden_small), str(output)], check=True, timeout=300)
    remembered = (output / ".hfprep" / "sha256.json").read_text(encoding="utf-8")
    gpt = hashlib.sha256((golden_small / "checkpoints" / "gpt.pth").read_bytes()).hexdigest()
    assert gpt in remembered
    assert gpt in (output / "stats.json").read_text(encoding="utf-8")
