"""Durable file operations: whole or not there, in the order that survives a crash."""

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hfprep.errors import StoreError
from hfprep.io import atomic

Points = list[tuple[str, str]]


@pytest.fixture
def points() -> Iterator[Points]:
    """The named points that are reached, with the names of their files."""
    reached: Points = []
    atomic.set_observer(lambda point, path: reached.append((point, Path(path).name)))
    yield reached
    atomic.set_observer(None)


@pytest.fixture
def fail_at() -> Iterator[Callable[[str, BaseException], None]]:
    """Raises an error at a named point."""

    def arm(point: str, error: BaseException) -> None:
        def observe(here: str, _: str) -> None:
            if here == point:
                raise error

        atomic.set_observer(observe)

    yield arm
    atomic.set_observer(None)


def test_a_file_is_written_synced_renamed_and_its_folder_synced(tmp_path: Path, points: Points) -> None:
    atomic.write_bytes(tmp_path / "stats.json", b"{}")
    assert (tmp_path / "stats.json").read_bytes() == b"{}"
    names = ["before-write", "after-write", "before-sync", "after-sync", "before-rename", "after-rename"]
    assert points == [(name, "stats.json") for name in names] + [
        ("before-sync-folder", tmp_path.name),
        ("after-sync-folder", tmp_path.name),
    ]


@pytest.mark.parametrize("point", ["before-write", "after-write", "before-sync", "after-sync", "before-rename"])
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_a_replacement_that_fails_leaves_the_old_file_alone(
    tmp_path: Path, fail_at: Callable[[str, BaseException], None], point: str, error: BaseException
) -> None:
    path = tmp_path / "train_manifest.jsonl"
    path.write_bytes(b"old\n")
    fail_at(point, error)
    with pytest.raises(StoreError if isinstance(error, OSError) else KeyboardInterrupt):
        atomic.write_lines(path, [b"new\n"])
    assert [(found.name, found.read_bytes()) for found in tmp_path.iterdir()] == [(path.name, b"old\n")]


@pytest.mark.parametrize("point", ["before-append", "before-sync", "after-append"])
def test_an_append_that_fails_leaves_no_torn_line(
    tmp_path: Path, fail_at: Callable[[str, BaseException], None], point: str
) -> None:
    path = tmp_path / "progress.txt"
    file = atomic.AppendedFile(path)
    file.append([b"one\n", b"two\n"])
    fail_at(point, OSError(errno.ENOSPC, "No space left on device"))
    with pytest.raises(StoreError, match="No space left on device; free some space and run the same command again"):
        file.append([b"three\n"])
    assert path.read_bytes() == b"one\ntwo\n"
    atomic.set_observer(None)
    file.append([b"three\n"])
    file.append([])
    file.close()
    assert path.read_bytes() == b"one\ntwo\nthree\n"


def test_an_append_torn_by_a_full_disk_is_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system takes half of a line, then says that the disk is full."""
    path = tmp_path / "progress.txt"
    file = atomic.AppendedFile(path)
    file.append([b"first\n"])
    write = os.write

    def full_after_three(descriptor: int, data: bytes) -> int:
        if len(data) < 7:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(descriptor, bytes(data)[:3])

    monkeypatch.setattr(os, "write", full_after_three)
    with pytest.raises(StoreError):
        file.append([b"second\n"])
    monkeypatch.undo()
    file.close()
    assert path.read_bytes() == b"first\n"


def test_short_writes_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: write(descriptor, bytes(data)[:2]))
    file = atomic.AppendedFile(tmp_path / "lines")
    file.append([b"abcdefg\n"])
    monkeypatch.undo()
    file.close()
    assert (tmp_path / "lines").read_bytes() == b"abcdefg\n"


@pytest.mark.parametrize(
    ("number", "advice"),
    [
        (errno.ENOSPC, "free some space"),
        (errno.EDQUOT, "free some space"),
        (errno.EROFS, "make the folder writable"),
        (errno.EACCES, "make the folder writable"),
        (errno.ESTALE, "check the disk or the network mount"),
        (errno.EIO, "check the disk or the network mount"),
        (errno.EXDEV, "keep the whole output directory on one file system"),
        (errno.EISDIR, "check that path"),
    ],
)
def test_each_error_of_the_system_comes_with_advice(number: int, advice: str) -> None:
    with pytest.raises(StoreError) as caught, atomic.explained("out/codes"):
        raise OSError(number, os.strerror(number), "out/codes/a.npy")
    expected = f"cannot write out/codes/a.npy: {os.strerror(number)}; {advice} and run the same command again"
    assert str(caught.value) == expected
    assert isinstance(caught.value.__cause__, OSError)
