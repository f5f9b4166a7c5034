"""Opens `--manifest` with the reader of its format, detected by a file's suffix or the contents of a folder."""

import glob
import hashlib
import itertools
import json
import os
import re
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from hfprep.errors import ConfigError, Reason, RejectedSample
from hfprep.inputs.manifest.field_map import FIELDS, FieldMap
from hfprep.inputs.manifest.lines import LJSPEECH_DELIMITER, json_lines, ljspeech, table_rows
from hfprep.inputs.manifest.rows import (
    BRACES,
    MAX_LINE_BYTES,
    NumberedRow,
    chosen_split,
    folder_of,
    is_pattern,
    open_manifest,
)
from hfprep.io.object_storage import any_url, refusal, url_of

METADATA = "metadata.csv"
CLIPS = "wavs"  # where LJSpeech keeps its audio
PARQUET_SUFFIXES = (".parquet", ".pq")
SAVED_MARKS = ("dataset_dict.json", "state.json")
PACKED_SUFFIXES = (".gz", ".tgz", ".bz2", ".xz", ".zst", ".zip")
FILE_SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".tab", ".txt", ".tar", *PARQUET_SUFFIXES, *PACKED_SUFFIXES)
OTHER_SUFFIXES = (
    *(".wav", ".flac", ".mp3", ".ogg", ".opus", ".m4a", ".aac", ".webm", ".mp4", ".mkv", ".aiff", ".wma"),
    *(".feather", ".arrow", ".ipc", ".npy", ".npz", ".pt", ".pth", ".safetensors", ".xlsx", ".sqlite", ".db", ".h5"),
)
BINARY_FILES = {
    b"RIFF": "a wav file",
    b"fLaC": "a flac file",
    b"OggS": "an Ogg file",
    b"ID3": "an mp3 file",
    b"ARROW1": "an Arrow file (give the folder of a saved data set, or Parquet)",
    b"PAR1": "a Parquet file (name it .parquet)",
    b"PK\x03\x04": "a zip file (or a spreadsheet: save it as CSV)",
    b"\x1f\x8b": "compressed with gzip (decompress it)",
    b"SQLite format 3": "a database",
    b"\x93NUMPY": "a numpy array",
}
KALDI = "wav.scp"
LIST_SUFFIXES = (".jsonl", ".csv", ".tsv")
DATA = "data"  # the folder of Parquet files in a repository of the Hub
SPLIT_FILE = re.compile(r"(?P<split>[A-Za-z0-9_.]+?)(?:-\d+-of-\d+)?(?:-[0-9a-f]{16})?\.(?:parquet|pq)", re.IGNORECASE)
LFS_POINTER = b"version https://git-lfs"
AUDIO_SUFFIXES = (".wav", ".flac", ".mp3", ".ogg", ".opus", ".m4a", ".aac", ".webm")
MAX_TEXT_BYTES = 1 << 20
LOOKED_AT = 1000
MAX_NAMES = 10_000  # names that are read to describe a folder of no known format
HUB_ID = re.compile(r"(?P<repository>[\w.-]+/[\w.-]+)(?:/(?P<config>[^/:]+))?(?::(?P<split>[\w.-]+))?")
MAX_FILES = 1_000_000  # that braces may expand to
SHOWN_NAMES = 5
KNOWN = (
    "a JSONL, CSV, TSV, Parquet or tar file; an LJSpeech folder (metadata.csv), a saved data set, or a folder of "
    "*.parquet, *.tar, or audio files with texts beside them; a pattern such as 'shards/*.tar' or "
    "'shards/{0000..0099}.tar'; or a data set on the Hub: USER/NAME[/CONFIG][:SPLIT]"
)


Rows = Iterator[NumberedRow]


def open_source(manifest: Path, fields: FieldMap) -> Rows:
    """Number and row of each sample, under hfprep's field names; the format is detected. Raises ConfigError."""
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
    if is_pattern(text):
        return _open_files(manifest, tuple(_matching(text)), fields)
    found = HUB_ID.fullmatch(text)
    if found and not text.endswith(FILE_SUFFIXES) and not Path(found["repository"]).parent.is_dir():
        from hfprep.inputs.manifest.arrow import open_hub

        return open_hub(found["repository"], found["config"], found["split"], fields).lines()
    other = any_url(manifest)
    problem = None if other is None else refusal(other)
    if problem is not None:
        raise ConfigError(f"--manifest {text!r}: {problem}")
    open_manifest(manifest).close()  # raises: there is no such file
    return json_lines(manifest, fields)


def rows_sha256(manifest: Path, fields: FieldMap) -> str:
    """SHA-256 of a manifest: of the content of a JSONL, CSV or TSV file, otherwise of all rows."""
    lines = manifest.is_file() or url_of(manifest) is not None
    if lines and manifest.suffix.lower() not in (".tar", *PARQUET_SUFFIXES):
        with open_manifest(manifest) as stream:
            stream.seek(0)
            return hashlib.file_digest(stream, "sha256").hexdigest()
    digest = hashlib.sha256()
    for number, raw in open_source(manifest, fields):
        row = raw if isinstance(raw, dict) else str(raw)
        digest.update(json.dumps([number, row], ensure_ascii=False).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def _open_remote(manifest: Path, url: str, fields: FieldMap) -> Rows:
    if url.endswith("/") or manifest.suffix.lower() == ".tar" or is_pattern(url):
        raise ConfigError(
            f"--manifest {url!r}: folders, tars and patterns are not read from object storage; give a JSONL, CSV, TSV "
            "or Parquet file there (its audio may be URLs, and ranges of tars: docs/inputs.md)"
        )
    return _open_file(manifest, fields)


def _open_file(path: Path, fields: FieldMap) -> Rows:
    suffix = path.suffix.lower()
    if suffix == ".tar" or suffix in PARQUET_SUFFIXES:
        return _open_files(path, (path,), fields)
    if suffix in PACKED_SUFFIXES:
        raise ConfigError(
            f"--manifest {str(path)!r} is packed; decompress it first (uncompressed tars are read directly)"
        )
    if path.name == KALDI:
        raise ConfigError(
            f"--manifest {str(path)!r} is a Kaldi file: the texts are in another file, and an entry can be a "
            "command; make a JSONL file from both (docs/inputs.md shows how)"
        )
    _refuse_other_files(path)
    if suffix == ".csv":
        return _open_csv(path, fields)
    if suffix in (".tsv", ".tab"):
        return table_rows(path, fields, tabs=True)
    return json_lines(path, fields)


def _refuse_other_files(path: Path) -> None:
    """Raise ConfigError for a file that is not text, such as audio: otherwise every line of it would be rejected."""
    with open_manifest(path) as stream:
        begin = stream.read(16)
    what = next((name for magic, name in BINARY_FILES.items() if begin.startswith(magic)), None)
    if what is None and path.suffix.lower() in OTHER_SUFFIXES:
        what = f"a {path.suffix.lower()} file"
    if what is not None:
        raise ConfigError(f"--manifest {str(path)!r} is {what}, not a manifest; it must be {KNOWN}")


def _open_csv(path: Path, fields: FieldMap) -> Rows:
    """Open LJSpeech's metadata.csv, which has no header, or any other table, which has one, even beside wavs/."""
    with open_manifest(path) as stream:
        first = stream.readline(MAX_LINE_BYTES).decode("utf-8", "replace").strip()
    beside_clips = path.name == METADATA and LJSPEECH_DELIMITER in first and (path.parent / CLIPS).is_dir()
    if not beside_clips:
        return table_rows(path, fields)
    values = [value.strip() for value in first.split(LJSPEECH_DELIMITER)]
    named = {fields.source(name) for name in FIELDS}.intersection(values)
    if named and not os.path.isfile(path.parent / CLIPS / f"{values[0]}.wav"):
        return table_rows(path, fields, clips=CLIPS)
    return ljspeech(path, fields)


def _open_folder(folder: Path, split: str | None, fields: FieldMap) -> Rows:
    if any((folder / name).is_file() for name in SAVED_MARKS):
        from hfprep.inputs.manifest.arrow import open_saved

        return open_saved(folder, split, fields).lines()
    if (folder / DATA).is_dir() and not (folder / METADATA).is_file():
        paths = _with_suffix(folder / DATA, PARQUET_SUFFIXES)
        if paths:
            return _open_files(folder, _of_split(folder, paths, split), fields)
    if split is not None:
        raise ConfigError(f"--manifest {str(folder)!r} is not a saved data set; omit :{split}")
    if (folder / METADATA).is_file():
        return _open_file(folder / METADATA, fields)
    for suffixes in ((".tar",), PARQUET_SUFFIXES):
        paths = _with_suffix(folder, suffixes)
        if paths:
            return _open_files(folder, paths, fields)
    problem = _what_is_in(folder)
    if problem is None:
        return _clip_rows(folder, fields)
    raise ConfigError(f"--manifest {str(folder)!r} {problem}")


def _with_suffix(folder: Path, suffixes: Sequence[str]) -> tuple[Path, ...]:
    return tuple(sorted(path for path in folder.iterdir() if path.suffix.lower() in suffixes and path.is_file()))


def _of_split(folder: Path, paths: tuple[Path, ...], split: str | None) -> tuple[Path, ...]:
    """The files of one split of a repository of the Hub, by their names."""
    by_split: dict[str, list[Path]] = {}
    for path in paths:
        found = SPLIT_FILE.fullmatch(path.name)
        by_split.setdefault(found["split"] if found else path.stem, []).append(path)
    return tuple(by_split[chosen_split(list(by_split), split, f"--manifest {str(folder)!r}")])


def _what_is_in(folder: Path) -> str | None:
    """Why a folder cannot be read, and what to give instead; None if it has audio files with texts."""
    names = sorted(path.name for path in itertools.islice(folder.iterdir(), MAX_NAMES))
    if KALDI in names:
        return f"is a Kaldi folder: make a JSONL file from its {KALDI} and text (docs/inputs.md shows how)"
    lists = [name for name in names if name.endswith(LIST_SUFFIXES)]
    if lists:
        return f"is a folder with manifests in it; name one of them: {', '.join(lists[:SHOWN_NAMES])}"
    if _holds_pairs(folder):
        return None
    inner = [name for name in names if any((folder / name).glob("*.parquet"))]
    if inner:
        shown = ", ".join(str(folder / name) for name in inner[:SHOWN_NAMES])
        return f"contains folders of Parquet files; name one of them: {shown}"
    return f"is a folder without anything that can be read; it must be {KNOWN}"


def _open_files(manifest: Path, paths: tuple[Path, ...], fields: FieldMap) -> Rows:
    where = f"--manifest {str(manifest)!r}"
    suffixes = {path.suffix.lower() for path in paths}
    if not paths or len(suffixes) > 1 or not suffixes <= {".tar", *PARQUET_SUFFIXES}:
        raise ConfigError(f"{where} matches {len(paths)} files; it must match *.tar or *.parquet files")
    folder = folder_of(manifest)  # which references to clips inside the files are relative to
    base = manifest.parent if url_of(folder) is not None else Path(folder)
    if suffixes == {".tar"}:
        from hfprep.inputs.manifest.tars import tar_rows

        return tar_rows(where, paths, fields, base)
    _refuse_pointers(where, paths)
    from hfprep.inputs.manifest.parquet import ParquetFiles

    return ParquetFiles(where, paths, fields, base).lines()


def _refuse_pointers(where: str, paths: Sequence[Path]) -> None:
    """Raise ConfigError for Git LFS pointers: small text files in place of files that were not downloaded."""
    for path in paths:
        if url_of(path) is None and os.path.getsize(path) < len(LFS_POINTER) * 20:
            with open(path, "rb") as stream:
                if stream.read(len(LFS_POINTER)) == LFS_POINTER:
                    raise ConfigError(f"{where}: {path} is a pointer of Git LFS, not the file; fetch it: git lfs pull")


def _matching(pattern: str) -> list[Path]:
    """Files that match a pattern, in any of its components; all names that braces expand to must exist."""
    plain = folder_of(Path(pattern))
    rest = os.path.relpath(os.path.abspath(pattern), plain)
    start = plain if os.path.isabs(pattern) else os.path.relpath(plain)
    names = _expanded(rest, pattern)
    if not glob.has_magic(rest):
        missing = [name for name in names if not os.path.exists(os.path.join(plain, name))]
        if missing:
            what = f"{len(missing)} files are missing, the first is {missing[0]!r}"
            raise ConfigError(f"--manifest {pattern!r}: {what}")
        return [Path(start, name) for name in names]
    found: set[str] = set()
    for name in names:
        matches = glob.glob(os.path.join(glob.escape(start), name), recursive=True)
        if not matches and len(names) > 1:
            raise ConfigError(f"--manifest {pattern!r}: files are missing, the first is {name!r}")
        found.update(matches)
    return sorted(map(Path, found))


def _expanded(text: str, pattern: str) -> list[str]:
    """Expand ranges in braces to all names."""
    names = [text]
    while names and (braces := BRACES.search(names[0])) is not None:
        first, last = int(braces[1]), int(braces[2])
        if not 0 <= (last - first + 1) * len(names) <= MAX_FILES:
            raise ConfigError(f"--manifest {pattern!r}: {braces[0]} names too many files, or runs backwards")
        names = [
            BRACES.sub(f"{number:0{len(braces[1])}d}", name, count=1)
            for name in names
            for number in range(first, last + 1)
        ]
    return names


def _clip_rows(folder: Path, fields: FieldMap) -> Rows:
    """A folder of audio files, each with a text file of the same name: `a.wav`, `a.txt`.

    Rows are numbered from 1 in the order of the audio files' names; the id is the name without its suffix.
    """
    return fields.applied_to(enumerate(_audio_names(folder), start=1), partial(_clip_row, folder))


def _clip_row(folder: Path, name: str) -> dict[str, Any]:
    path = _text_of(folder, name)
    if path.exists() and not path.is_file():  # reading a pipe would block
        raise RejectedSample(Reason.INVALID_FIELD, f"{path.name} is not a regular file")
    try:
        with open(path, "rb") as stream:
            content = stream.read(MAX_TEXT_BYTES + 1)
    except FileNotFoundError:
        raise RejectedSample(Reason.MISSING_FIELD, f"there is no {path.name} beside {name}") from None
    except OSError as error:
        raise RejectedSample(Reason.INVALID_FIELD, f"{path.name}: {error.strerror or error}") from None
    if len(content) > MAX_TEXT_BYTES:
        raise RejectedSample(Reason.INVALID_FIELD, f"{path.name} is larger than {MAX_TEXT_BYTES} bytes")
    try:
        text = content.decode("utf-8-sig").strip()
    except UnicodeDecodeError:
        raise RejectedSample(Reason.INVALID_ENCODING, f"{path.name} is not UTF-8; save it as UTF-8") from None
    return {"id": name.rpartition(".")[0], "audio": name, "text": text}


def _holds_pairs(folder: Path) -> bool:
    """Whether a folder looks like one: at least one of the first audio files has its text beside it."""
    return any(_text_of(folder, name).is_file() for name in _audio_names(folder)[:LOOKED_AT])


def _audio_names(folder: Path) -> list[str]:
    return sorted(name for name in os.listdir(folder) if name.lower().endswith(AUDIO_SUFFIXES))


def _text_of(folder: Path, name: str) -> Path:
    return folder / f"{name.rpartition('.')[0]}.txt"
