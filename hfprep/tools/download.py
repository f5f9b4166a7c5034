"""Downloads the published models of a recipe into a folder for `--models`, and verifies their hashes.

The hub library skips existing files and resumes interrupted downloads. The recipe lists the files.
"""

import contextlib
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from hfprep.errors import CheckpointError, StoreError
from hfprep.io.file_hashes import sha256_file
from hfprep.io.words import count, first_line, size
from hfprep.recipes.base import Download
from hfprep.recipes.options import ModelOptions
from hfprep.recipes.registry import choose_recipe, downloads


@dataclass(frozen=True, slots=True)
class Wanted:
    """Files to download from a repository, with their sizes in bytes and SHA-256 (if any) on the hub."""

    source: Download
    revision: str
    sizes: Mapping[str, int]
    hashes: Mapping[str, str]

    def missing(self, target: Path) -> list[str]:
        """The files that are missing in `target` or have another size."""
        paths = {name: target / self.source.folder / name for name in self.source.files}
        return [name for name, path in paths.items() if not path.is_file() or path.stat().st_size != self.sizes[name]]


Showing = Callable[[int, Callable[[], int]], contextlib.AbstractContextManager[None]]


def download(
    target: Path,
    *,
    name: str | None = None,
    report: Callable[[str], None] = lambda _: None,
    showing: Showing = lambda *_: contextlib.nullcontext(),
) -> None:
    """Download every file that a build with the recipe `name` needs into `target`.

    `name` defaults to the recipe of the files in `target`, or else to the first recipe.

    `report` is called with a line for each step; the first ones list what will be downloaded and its size. The download
    runs inside `showing(num_bytes, arrived)`, where `arrived()` returns the downloaded bytes. Raises CheckpointError if
    a repository cannot be reached, lacks a file, or a file has another SHA-256 than on the hub; StoreError if there is
    not enough disk space; ConfigError for an unknown recipe.
    """
    chosen = choose_recipe(name, ModelOptions(models=target if target.is_dir() else None))
    wanted = [ask_hub(source) for source in downloads(chosen)]
    missing = [(item, file) for item in wanted for file in item.missing(target)]
    num_bytes = sum(item.sizes[file] for item, file in missing)
    if num_bytes:
        files = count(len(missing), "file")
        report(f"downloading {files} of the {chosen.name} models to {target}, {size(num_bytes)} in all:")
    target.mkdir(parents=True, exist_ok=True)
    if (room := shutil.disk_usage(target).free) < num_bytes:
        raise StoreError(
            f"{target} has only {size(room)} free for a download of {size(num_bytes)}; give another folder"
        )
    for item in wanted:
        for file in item.source.files:
            said = size(item.sizes[file]) if (item, file) in missing else "already downloaded"
            report(f"  {item.source.repository} {file}: {said}")
    before = _bytes_in(target)
    if num_bytes:
        with _without_bars(), showing(num_bytes, lambda: _bytes_in(target) - before):
            for item in wanted:
                if item.missing(target):
                    _fetch(item, target / item.source.folder)
    for item in wanted:
        _check(item, target / item.source.folder)
    report("all files are complete and match the hub's sizes and SHA-256")


def ask_hub(source: Download) -> Wanted:
    """Query the hub for the sizes and hashes of these files."""
    import huggingface_hub

    with _explained(source):
        info = huggingface_hub.HfApi().model_info(source.repository, files_metadata=True)
    found = {item.rfilename: item for item in info.siblings or ()}
    for name in source.files:
        if name not in found:
            raise CheckpointError(f"the hub repository {source.repository} has no file {name}")
    return Wanted(
        source,
        info.sha or "main",
        {name: found[name].size or 0 for name in source.files},
        {name: item.lfs.sha256 for name, item in found.items() if item.lfs is not None},
    )


@contextlib.contextmanager
def _without_bars() -> Iterator[None]:
    """Disable the hub library's progress bars, of which there are several per file."""
    from huggingface_hub import constants
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    if are_progress_bars_disabled() or constants.HF_HUB_DISABLE_PROGRESS_BARS is not None:  # the setting has priority
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()


def _bytes_in(folder: Path) -> int:
    """The total size of all files, including partial downloads."""
    found = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):  # renamed meanwhile
            found += path.stat().st_size if path.is_file() else 0
    return found


def _fetch(wanted: Wanted, folder: Path) -> None:
    import huggingface_hub

    source = wanted.source
    with _explained(source):
        huggingface_hub.snapshot_download(
            source.repository, revision=wanted.revision, allow_patterns=list(source.files), local_dir=folder
        )


@contextlib.contextmanager
def _explained(source: Download) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # errors of whichever HTTP library is in use come through
        raise CheckpointError(
            f"{source.repository} could not be fetched: {first_line(error)}; check the network (and HF_ENDPOINT, "
            "HF_TOKEN), then run the same command again: complete files are kept"
        ) from error


def _check(wanted: Wanted, folder: Path) -> None:
    for name in wanted.source.files:
        path = folder / name
        if not path.is_file():
            raise CheckpointError(f"the hub repository {wanted.source.repository} has no file {name}")
        if name in wanted.hashes and (found := sha256_file(path)) != wanted.hashes[name]:
            raise CheckpointError(
                f"{path} has the SHA-256 {found}, but the hub's file has {wanted.hashes[name]}; delete it and run the "
                "same command again"
            )
