"""Detects the format of a path, and opens the sample set in it."""

from pathlib import Path

from hfprep.errors import StoreError
from hfprep.formats.arrow import ArrowSet, is_arrow_set
from hfprep.formats.npy import NpySet, is_npy_output
from hfprep.formats.samples import SampleSet
from hfprep.formats.webdataset import WebDatasetSet, is_webdataset
from hfprep.io.object_storage import check_local
from hfprep.store.layout import PRIVATE, STATE_FILE
from hfprep.store.state import read_value

SHARD_FORMATS = ("arrow", "webdataset")
KEPT_FORMAT = "packed_format"  # state key: the format of an output without npy (under its original name)


def kept_in(path: Path) -> Path | None:
    """The folder of the shards of a build's output; None if it is in the npy layout."""
    if is_npy_output(path) or not (path / PRIVATE).is_dir():
        return None
    kept = read_value(path / STATE_FILE, KEPT_FORMAT)
    folders = [path / name for name in SHARD_FORMATS if kept in (name, None)]
    return next((folder for folder in folders if is_arrow_set(folder) or is_webdataset(folder)), None)


def no_manifests(path: Path) -> str:
    """The error message for a folder without manifests, when a command needs them.

    Raises ConfigError for a URL.
    """
    check_local(path)
    kept = kept_in(path)
    if kept is None and not (is_arrow_set(path) or is_webdataset(path)):
        return f"{path} contains no manifests; give the output directory of a build"
    return (
        f"{path} contains no manifests, but a set in the {kept.name if kept else 'Arrow or WebDataset'} format; "
        f"write it as npy first: python -m hfprep export-npy {path} NEW, and give NEW (or, for another tokenizer, run "
        "the build again with it: only text ids are computed)"
    )


def open_set(path: Path) -> SampleSet:
    """The finished sample set in a folder, in any format; raises StoreError if there is none.

    For the output of a build, this is the set with its features.
    """
    check_local(path)
    if is_npy_output(path):
        return NpySet(path)
    if is_arrow_set(path):
        return ArrowSet(path)
    if is_webdataset(path):
        return WebDatasetSet(path)
    kept = kept_in(path)
    if kept is not None:
        return open_set(kept)
    if not path.exists():
        raise StoreError(f"{path} does not exist")
    raise StoreError(
        f"{path} contains no finished sample set: no manifests (npy), dataset_dict.json (Arrow) or index.json "
        "(WebDataset); if a build or an export into it was interrupted, run it again"
    )
