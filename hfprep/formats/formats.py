"""Which format a path holds, and the sample set in it."""

from pathlib import Path

from hfprep.errors import StoreError
from hfprep.formats.arrow import ArrowSet, is_arrow_set
from hfprep.formats.npy import NpySet, is_npy_output, read_state_value
from hfprep.formats.samples import SampleSet
from hfprep.formats.webdataset import WebDatasetSet, is_webdataset
from hfprep.io.object_storage import check_local
from hfprep.store.layout import PRIVATE

SHARD_FORMATS = ("arrow", "webdataset")
KEPT_FORMAT = "packed_format"  # in the state: the format that an output without npy is kept in, by its first name


def kept_in(path: Path) -> Path | None:
    """The folder of the set that a build's output holds where it is not in the npy layout; else None."""
    if is_npy_output(path) or not (path / PRIVATE).is_dir():
        return None
    kept = read_state_value(path, KEPT_FORMAT)
    folders = [path / name for name in SHARD_FORMATS if kept in (name, None)]
    return next((folder for folder in folders if is_arrow_set(folder) or is_webdataset(folder)), None)


def no_manifests(path: Path) -> str:
    """What to say of a folder that has no manifests, where a command needs them: an explanation and the way out.

    Raises ConfigError if it is a URL.
    """
    check_local(path)
    kept = kept_in(path)
    if kept is None and not (is_arrow_set(path) or is_webdataset(path)):
        return f"{path} holds no manifests; give the output directory of a build"
    return (
        f"{path} holds no manifests, but a set in the {kept.name if kept else 'Arrow or WebDataset'} format; "
        f"write it as npy first: python -m hfprep export-npy {path} NEW, and give NEW (or, for another tokenizer, run "
        "the build again with it: only text ids are computed)"
    )


def open_set(path: Path) -> SampleSet:
    """The finished sample set in a folder, of whichever format; raises StoreError if there is none.

    The output of a build is the set that it keeps its features in.
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
        raise StoreError(f"there is no folder {path}")
    raise StoreError(
        f"{path} holds no finished sample set: neither manifests (npy), nor dataset_dict.json (Arrow), nor index.json "
        "(WebDataset); if a build or an export into it was interrupted, run it again"
    )
