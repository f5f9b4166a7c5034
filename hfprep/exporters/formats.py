"""Which format a path holds, and the sample set in it."""

from pathlib import Path

from hfprep.errors import StoreError
from hfprep.exporters.arrow import ArrowSet, is_arrow_set
from hfprep.exporters.npy import NpySet, is_npy_output
from hfprep.exporters.samples import SampleSet
from hfprep.exporters.webdataset import WebDatasetSet, is_webdataset


def open_set(path: Path) -> SampleSet:
    """The finished sample set in a folder, of whichever format; StoreError where there is none."""
    if is_npy_output(path):
        return NpySet(path)
    if is_arrow_set(path):
        return ArrowSet(path)
    if is_webdataset(path):
        return WebDatasetSet(path)
    if not path.exists():
        raise StoreError(f"there is no folder {path}")
    raise StoreError(
        f"{path} holds no finished sample set: neither manifests (npy), nor dataset_dict.json (Arrow), nor index.json "
        "(WebDataset); if a build or an export into it was interrupted, run it again"
    )
