"""Hashes of large files: as hashlib's, remembered, never those of another file; files that change while in use."""

import hashlib
import json
import os
from pathlib import Path

import pytest

from hfprep.errors import CheckpointError
from hfprep.io import file_hashes
from hfprep.io.file_hashes import FileHashes, FileIdentity, check_not_overwritten

CONTENT = os.urandom(300_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "weights.safetensors"
    path.write_bytes(CONTENT)
    return path


@pytest.fixture
def hashes(tmp_path: Path) -> FileHashes:
    return FileHashes(tmp_path / "sha256.json")


def test_many_files_are_hashed_at_once_each_with_its_own_hash(tmp_path: Path, hashes: FileHashes) -> None:
    paths = {str(size): tmp_path / str(size) for size in (0, 1, 4096, 4097, 300_000)}
    for size, path in paths.items():
        path.write_bytes(CONTENT[: int(size)])
    expected = {size: hashlib.sha256(CONTENT[: int(size)]).hexdigest() for size in paths}
    assert hashes.sha256(paths) == expected


def test_what_is_remembered_is_not_hashed_again(
    path: Path, hashes: FileHashes, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashes.sha256({"semantic_model": path})
    monkeypatch.setattr(file_hashes, "sha256_file", lambda path: pytest.fail(f"{path} was hashed again"))
    assert FileHashes(hashes.cache).sha256({"gpt": path}) == {"gpt": SHA256}


def test_a_memory_that_is_not_json_is_made_anew(path: Path, hashes: FileHashes) -> None:
    hashes.cache.write_text("{", encoding="utf-8")
    assert hashes.sha256({"a": path}) == {"a": SHA256}
    assert SHA256 in json.loads(hashes.cache.read_text(encoding="utf-8")).values()


def test_a_file_that_takes_its_place_has_its_own_hash(path: Path, hashes: FileHashes) -> None:
    hashes.sha256({"semantic_model": path})
    other = path.with_name("other")
    other.write_bytes(CONTENT[::-1])
    other.replace(path)
    assert hashes.sha256({"semantic_model": path}) == {"semantic_model": hashlib.sha256(CONTENT[::-1]).hexdigest()}


def test_a_file_that_is_not_there_is_named(path: Path, hashes: FileHashes) -> None:
    missing = path.with_name("missing.safetensors")
    with pytest.raises(CheckpointError, match=r"missing\.safetensors cannot be read: No such file"):
        hashes.sha256({"semantic_model": missing})


def test_only_a_file_that_is_written_to_is_overwritten(path: Path) -> None:
    """Weights that are mapped are those of the file that was opened, whatever has its name now."""
    seen = {path: FileIdentity.of(path)}
    check_not_overwritten(seen)
    with open(path, "r+b") as stream:
        stream.write(b"x")
    with pytest.raises(CheckpointError, match=r"weights\.safetensors was overwritten while its weights were in use"):
        check_not_overwritten(seen)
    other = path.with_name("other")
    other.write_bytes(CONTENT)
    other.replace(path)
    check_not_overwritten(seen)
    path.unlink()
    check_not_overwritten(seen)


def test_another_machine_may_number_its_inodes_in_its_own_way(path: Path) -> None:
    here = FileIdentity.of(path)
    elsewhere = FileIdentity(here.size, here.mtime_ns, here.inode + 1, "another")
    check_not_overwritten({path: elsewhere})
    os.utime(path, ns=(0, 0))
    with pytest.raises(CheckpointError, match="was overwritten"):
        check_not_overwritten({path: elsewhere})
