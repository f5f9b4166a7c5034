"""`--manifest` -> the reader of its format, told by what is there: a file's suffix, or what lies in a folder."""

import glob
import hashlib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from hfprep.errors import ConfigError
from hfprep.inputs.manifest.field_map import FieldMap
from hfprep.inputs.manifest.lines import LJSPEECH_DELIMITER, Delimited, JsonLines, LJSpeech
from hfprep.inputs.manifest.rows import RawRow, open_manifest
from hfprep.io.object_storage import url_of

METADATA = "metadata.csv"
PARQUET_SUFFIXES = (".parquet", ".pq")
SAVED_MARKS = ("dataset_dict.json", "state.json")
PACKED_SUFFIXES = (".gz", ".tgz", ".bz2", ".xz", ".zst", ".zip")
FILE_SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".tab", ".txt", ".tar", *PARQUET_SUFFIXES, *PACKED_SUFFIXES)
HUB_ID = re.compile(r"(?P<repository>[\w.-]+/[\w.-]+)(?:/(?P<config>[^/:]+))?(?::(?P<split>[\w.-]+))?")
BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}")
KNOWN = (
    "a JSONL, CSV, TSV, Parquet or tar file; a folder of LJSpeech (metadata.csv), of a saved data set, of *.parquet or "
    "of *.tar; a pattern such as 'shards/*.tar' or 'shards/{0000..0099}.tar'; or a data set of the Hub: "
    "USER/NAME[/CONFIG][:SPLIT]"
)


class Source(Protocol):
    """The rows of a manifest, of whichever format."""

    def lines(self) -> Iterator[tuple[int, RawRow]]: ...


def open_source(manifest: Path, fields: FieldMap) -> Source:
    """Find out what `manifest` is and open it; rows come under our names. Raises ConfigError."""
    text = str(manifest)
    url = url_of(manifest)
    if url is not None:
        return _open_remote(manifest, url, fields)
    if manifest.is_dir():
        return _open_folder(manifest, None, fields)
    if manifest.exists():
        return _open_file(manifest, fields)
    beside_split, colon, split = text.rpartition(":")
    if colon and Path(beside_split).is_dir():
        return _open_folder(Path(beside_split), split, fields)
    if glob.has_magic(manifest.name) or BRACES.search(manifest.name):
        return _open_files(manifest, tuple(_matching(manifest)), fields)
    found = HUB_ID.fullmatch(text)
    if found and not text.endswith(FILE_SUFFIXES) and not Path(found["repository"]).parent.is_dir():
        from hfprep.inputs.manifest.arrow import open_hub

        return open_hub(found["repository"], found["config"], found["split"], fields)
    open_manifest(manifest).close()  # raises: there is no such file
    return JsonLines(manifest, fields)


def rows_sha256(manifest: Path, fields: FieldMap) -> str:
    """What tells one manifest from another: of a JSONL, CSV or TSV file its content, else the hash of all rows."""
    digest = hashlib.sha256()
    lines = manifest.is_file() or url_of(manifest) is not None
    if lines and manifest.suffix.lower() not in (".tar", *PARQUET_SUFFIXES):
        with open_manifest(manifest) as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
            return digest.hexdigest()
    for number, raw in open_source(manifest, fields).lines():
        row = raw if isinstance(raw, dict) else str(raw)
        digest.update(json.dumps([number, row], ensure_ascii=False).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def _open_remote(manifest: Path, url: str, fields: FieldMap) -> Source:
    if url.endswith("/") or manifest.suffix.lower() == ".tar" or glob.has_magic(url) or BRACES.search(url):
        raise ConfigError(
            f"--manifest {url!r}: folders, tars and patterns are not read from object storage; give a JSONL, CSV, TSV "
            "or Parquet file there (its audio may be URLs, and ranges of tars: docs/inputs.md)"
        )
    return _open_file(manifest, fields)


def _open_file(path: Path, fields: FieldMap) -> Source:
    suffix = path.suffix.lower()
    if suffix == ".csv":
        return LJSpeech(path, fields) if _is_ljspeech(path) else Delimited(path, fields)
    if suffix in (".tsv", ".tab"):
        return Delimited(path, fields, tabs=True)
    if suffix in PACKED_SUFFIXES:
        raise ConfigError(f"--manifest {str(path)!r} is packed; unpack it first: what is inside is read where it lies")
    if suffix == ".tar" or suffix in PARQUET_SUFFIXES:
        return _open_files(path, (path,), fields)
    return JsonLines(path, fields)


def _open_folder(folder: Path, split: str | None, fields: FieldMap) -> Source:
    if any((folder / name).is_file() for name in SAVED_MARKS):
        from hfprep.inputs.manifest.arrow import open_saved

        return open_saved(folder, split, fields)
    if split is not None:
        raise ConfigError(f"--manifest {str(folder)!r} is not a saved data set; leave :{split} out")
    if (folder / METADATA).is_file():
        return _open_file(folder / METADATA, fields)
    for suffix in (".tar", *PARQUET_SUFFIXES):
        paths = sorted(path for path in folder.iterdir() if path.suffix.lower() == suffix)
        if paths:
            return _open_files(folder, tuple(paths), fields)
    raise ConfigError(f"--manifest {str(folder)!r} is a folder without anything that can be read; it must be {KNOWN}")


def _open_files(manifest: Path, paths: tuple[Path, ...], fields: FieldMap) -> Source:
    where = f"--manifest {str(manifest)!r}"
    suffixes = {path.suffix.lower() for path in paths}
    if not paths or len(suffixes) > 1 or not suffixes <= {".tar", *PARQUET_SUFFIXES}:
        raise ConfigError(f"{where} matches {len(paths)} files; it must match *.tar or *.parquet files")
    if suffixes == {".tar"}:
        from hfprep.inputs.manifest.tars import Tars

        return Tars(where, paths, fields)
    from hfprep.inputs.manifest.parquet import ParquetFiles

    return ParquetFiles(where, paths, fields)


def _matching(pattern: Path) -> list[Path]:
    """Files that match a pattern in its last component; all that braces name must be there."""
    braces = BRACES.search(pattern.name)
    if braces is None:
        return sorted(Path(found) for found in glob.glob(str(pattern)))
    first, last = braces[1], braces[2]
    names = [
        pattern.name[: braces.start()] + f"{number:0{len(first)}d}" + pattern.name[braces.end() :]
        for number in range(int(first), int(last) + 1)
    ]
    missing = [name for name in names if not os.path.exists(pattern.parent / name)]
    if missing:
        raise ConfigError(f"--manifest {str(pattern)!r}: {len(missing)} files are missing, the first is {missing[0]!r}")
    return [pattern.parent / name for name in names]


def _is_ljspeech(path: Path) -> bool:
    """Whether a metadata.csv is LJSpeech's: no header, fields between bars, clips in wavs/ beside it."""
    with open_manifest(path) as stream:
        first = stream.readline()
    return path.name == METADATA and LJSPEECH_DELIMITER.encode() in first and (path.parent / "wavs").is_dir()
