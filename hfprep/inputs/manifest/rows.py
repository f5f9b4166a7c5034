"""Manifest lines to rows or rejections.

Takes the lines of a file (UTF-8, with or without BOM); `parse_line` makes each an `Utterance` or a `Rejection`. A bad
line never stops the reading. Looks up audio files but never opens them; knows nothing about earlier runs.
"""

import glob
import json
import math
import os
import re
from collections.abc import Iterator, Sequence
from io import BufferedReader
from pathlib import Path
from typing import Any, BinaryIO

from hfprep.errors import ConfigError, Reason, RejectedSample
from hfprep.inputs.text.language import read_hint
from hfprep.io.json_text import is_encodable, json_text
from hfprep.io.object_storage import is_url, joined, open_stream, refusal, url_of
from hfprep.io.references import moved, parse_reference
from hfprep.schema import MAX_SECONDS, Rejection, Utterance

MAX_NAME_BYTES = 255  # one path component, on every common Linux file system
MAX_ID_FOLDERS = 64
MAX_LINE_BYTES = 1 << 24
MAX_CACHED_FOLDERS = 1024
MAX_ID_BYTES = 3000  # leaves room for the output directory within PATH_MAX (4096)
KNOWN_FIELDS = frozenset({"id", "text", "audio", "speaker", "language", "duration"})
DEFAULT_SPLIT = "train"
_NPY_SUFFIX_BYTES = len(".npy")
_UTF8_MARK = b"\xef\xbb\xbf"
# Ids that are valid without a closer look: short components of ASCII letters, and a dot in the last one only.
_PLAIN_ID = re.compile(r"(?:[\w-]{1,100}/){0,8}[\w-][\w.-]{0,99}", re.ASCII)
_CONTROL_CHARACTER = re.compile(r"[\x00-\x1f\x7f]")
BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}")
_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")

RawRow = bytes | dict[str, Any] | RejectedSample  # a line, a parsed row, or why it could not be read
NumberedRow = tuple[int, RawRow]


def numbered_lines(path: Path) -> Iterator[tuple[int, bytes | RejectedSample]]:
    """Number (from 1) and bytes of each line that is not blank. Raises ConfigError if there is no such file."""
    with open_manifest(path) as stream:
        number = 0
        while raw := stream.readline(MAX_LINE_BYTES):
            number += 1
            if len(raw) == MAX_LINE_BYTES and not raw.endswith(b"\n"):
                skip_line(stream)
                message = f"the line is longer than {MAX_LINE_BYTES >> 20} MiB"
                yield number, RejectedSample(Reason.INVALID_JSON, message)
                continue
            if raw.strip():
                yield number, raw


def skip_line(stream: BinaryIO) -> None:
    """Skip the rest of a line."""
    while (rest := stream.readline(MAX_LINE_BYTES)) and not rest.endswith(b"\n"):
        pass


def open_manifest(path: Path) -> BufferedReader:
    """Open a manifest for reading bytes, after its UTF-8 mark if it has one.

    Raises ConfigError if it does not exist or is UTF-16.
    """
    url = url_of(path)
    name = url or str(path)
    try:
        stream = open_stream(url) if url else open(path, "rb")  # noqa: SIM115 - the caller closes it
    except OSError as error:
        raise ConfigError(f"--manifest {name!r} cannot be read: {error.strerror or error}") from error
    start = stream.read(len(_UTF8_MARK))
    if start.startswith(_UTF16_MARKS):
        stream.close()
        raise ConfigError(f"--manifest {name!r} is UTF-16; convert it to UTF-8: iconv -f UTF-16 -t UTF-8 IN > OUT")
    stream.seek(len(start) if start == _UTF8_MARK else 0)
    return stream


def folder_of(manifest: Path) -> str:
    """The folder of a manifest, absolute; for a manifest that is a folder (or FOLDER:SPLIT), that folder.

    For a pattern it is the common parent of its files.
    """
    url = url_of(manifest)
    if url is not None:
        return url.rpartition("/")[0]
    path = os.path.abspath(manifest)
    beside_split = path.rpartition(":")[0]
    for place in (path, beside_split):
        if place and os.path.isdir(place):
            return place
    folder = os.path.dirname(path)
    while not os.path.isdir(folder) and is_pattern(folder):
        folder = os.path.dirname(folder)
    return folder


def is_pattern(path: str) -> bool:
    """Whether a path contains wildcards or a range in braces."""
    return glob.has_magic(path) or BRACES.search(path) is not None


def chosen_split(splits: Sequence[str], wanted: str | None, where: str) -> str:
    """The wanted split of a data set; if None, the only one or `train`. Raises a ConfigError that lists the splits."""
    if wanted is not None:
        if wanted not in splits:
            raise ConfigError(f"{where} has no split {wanted!r}; it has: {', '.join(splits)}")
        return wanted
    if len(splits) == 1:
        return splits[0]
    if DEFAULT_SPLIT in splits:
        return DEFAULT_SPLIT
    raise ConfigError(f"{where} has several splits; name one after a colon: {' '.join(':' + name for name in splits)}")


class AudioFinder:
    """Finds audio files: absolute, or relative to the working directory, the manifest's folder, or its parent.

    A clip inside another file (see `references`) is looked up beside the manifest first: such references come from the
    input, and a file of the same name in the working directory may be unrelated. URLs stay as they are. For a manifest
    in object storage, paths are relative to its folder. With `audio_root`, which may be a URL, files are only looked up
    there. `working_folder`, if it exists, is used instead of the current one.
    """

    def __init__(self, manifest: Path, audio_root: Path | str | None = None, working_folder: str | None = None) -> None:
        folder = folder_of(manifest)
        named = None if audio_root is None else url_of(audio_root) or os.path.abspath(audio_root)
        parent = os.path.dirname(folder)
        here = working_folder if working_folder and os.path.isdir(working_folder) else os.getcwd()
        self._remote = folder if is_url(folder) else None
        self._remote_audio = (named or folder) if is_url(named or folder) else None
        self.roots = tuple(dict.fromkeys((here, folder, parent) if named is None else (named,)))
        self.container_roots = tuple(dict.fromkeys((folder, parent, here)))
        self._beside = self.roots.index(folder if named is None else named)
        self._folders: dict[tuple[str, tuple[str, ...]], tuple[str, ...]] = {}

    def find(self, audio: str) -> str:
        """The first candidate that exists; if none does, the one beside the manifest."""
        reference = parse_reference(audio)
        if reference is not None:
            return moved(reference, self._place(reference.file, self._remote, self.container_roots, 0))
        return self._place(audio, self._remote_audio, self.roots, self._beside)

    def _place(self, path: str, remote: str | None, roots: tuple[str, ...], otherwise: int) -> str:
        if os.path.isabs(path) or is_url(path):
            return path
        if remote is not None:
            return joined(remote, path)
        found = self._with_folder(os.path.dirname(path), roots)
        if found == (roots[otherwise],):  # the only candidate: whether it exists is checked when it is opened
            return os.path.join(roots[otherwise], path)
        for root in found:
            candidate = os.path.join(root, path)
            if os.path.exists(candidate):
                return candidate
        return os.path.join(roots[otherwise], path)

    def _with_folder(self, folder: str, roots: tuple[str, ...]) -> tuple[str, ...]:
        """The roots that contain such a folder: looked up once per folder, not per file."""
        found = self._folders.get((folder, roots))
        if found is None:
            if len(self._folders) >= MAX_CACHED_FOLDERS:
                self._folders.clear()
            found = tuple(root for root in roots if os.path.isdir(os.path.join(root, folder)))
            self._folders[folder, roots] = found
        return found


class NoLookup(AudioFinder):
    """An AudioFinder for rows whose audio another part of the build reads: does not access the disk."""

    def find(self, audio: str) -> str:
        """The value unchanged."""
        return audio


def duplicate_id(line: int, sample_id: str, first_line: int) -> Rejection:
    """The rejection of a row whose id is on an earlier line."""
    message = f"duplicate id {sample_id!r} (first on line {first_line}); ids must be unique"
    return Rejection(line, sample_id, Reason.DUPLICATE_ID, message)


def parse_line(number: int, raw: RawRow, finder: AudioFinder, language: str | None) -> Utterance | Rejection:
    """Parse a manifest line (or row) to an `Utterance`, or a `Rejection` that says what is wrong with it."""
    sample_id: str | None = None
    try:
        row = parse_object(raw)
        sample_id = _read_id(row)
        check_id(sample_id)
        text, audio = _read_text(row, "text"), _read_text(row, "audio")
        if not text.strip():
            raise RejectedSample(Reason.EMPTY_TEXT, "text is empty; give the words that are spoken")
        if not audio or "\0" in audio:
            raise RejectedSample(Reason.INVALID_FIELD, f"audio is {audio!r}; give the path of an audio file")
        problem = refusal(audio)
        if problem is not None:
            raise RejectedSample(Reason.AUDIO_MISSING, f"audio is {audio[:200]!r}; {problem}")
        extra = {key: value for key, value in row.items() if key not in KNOWN_FIELDS}
        return Utterance(
            line=number,
            id=sample_id,
            text=text,
            audio=audio,
            path=finder.find(audio),
            speaker=_read_label(row, "speaker"),
            language=language or _read_language(row),
            duration=_read_duration(row),
            extra=json_text(extra) if extra else "{}",
            offset=_read_seconds(row, "offset"),
        )
    except RejectedSample as error:
        return Rejection(number, sample_id, error.reason, error.message)


def parse_object(raw: RawRow) -> dict[str, Any]:
    """The JSON object of a line. Raises RejectedSample."""
    if isinstance(raw, dict):
        return raw
    text = decoded(raw)
    try:
        row = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RejectedSample(Reason.INVALID_JSON, f"the line is not JSON: {error}") from None
    if not isinstance(row, dict):
        raise RejectedSample(Reason.INVALID_JSON, f"the line is a JSON {type(row).__name__}, not an object")
    return row


def decoded(raw: bytes | RejectedSample) -> str:
    """The text of a line. Raises RejectedSample."""
    if isinstance(raw, RejectedSample):
        raise raw
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        found = f"byte {raw[error.start]:#04x} at column {error.start + 1}"
        message = f"the line is not UTF-8 ({found}); save the file as UTF-8"
        raise RejectedSample(Reason.INVALID_ENCODING, message) from None


def _field(row: dict[str, Any], name: str) -> Any:
    if name not in row:
        raise RejectedSample(Reason.MISSING_FIELD, f"the field {name!r} is missing; fields: {sorted(row)[:12]}")
    return row[name]


def _is_number(value: Any, *kinds: type) -> bool:
    return isinstance(value, kinds) and not isinstance(value, bool)


def _string(name: str, value: Any, allowed: str = "a string") -> str:
    if not isinstance(value, str):
        raise RejectedSample(Reason.INVALID_FIELD, f"{name} is {json.dumps(value)[:80]}; it must be {allowed}")
    if not is_encodable(value):
        reason = Reason.INVALID_ID if name == "id" else Reason.INVALID_FIELD
        raise RejectedSample(reason, f"{name} contains half of a surrogate pair; save the text as UTF-8")
    return value


def _read_text(row: dict[str, Any], name: str) -> str:
    return _string(name, _field(row, name))


def _read_id(row: dict[str, Any]) -> str:
    value = _field(row, "id")
    return str(value) if _is_number(value, int) else _string("id", value, "a string or an integer")


def _read_label(row: dict[str, Any], name: str) -> str | None:
    value = row.get(name)
    if value is None or value == "":
        return None
    return str(value) if _is_number(value, int) else _string(name, value)


def _read_language(row: dict[str, Any]) -> str | None:
    value = _read_label(row, "language")
    if value is None or not value.strip():
        return value
    try:
        return read_hint(value)
    except ValueError as error:
        message = f"language is {value[:80]!r}, not a known language code; {error}"
        raise RejectedSample(Reason.INVALID_FIELD, message) from None


def _read_duration(row: dict[str, Any]) -> float | None:
    seconds = _read_seconds(row, "duration")
    if seconds == 0 and row.get("offset") is not None:
        raise RejectedSample(Reason.INVALID_FIELD, "duration is 0; a segment (with offset) must be longer than 0 s")
    return seconds


def _read_seconds(row: dict[str, Any], name: str) -> float | None:
    value = row.get(name)
    if value is None:
        return None
    try:
        seconds = float(value) if _is_number(value, int, float) else math.nan
    except OverflowError:  # an integer of hundreds of digits
        seconds = math.inf
    if not 0 <= seconds <= MAX_SECONDS:
        message = f"{name} is {json.dumps(value)[:80]}; it must be seconds, from 0 to {MAX_SECONDS:.0e}"
        raise RejectedSample(Reason.INVALID_FIELD, message)
    return seconds


def check_id(sample_id: str) -> None:
    """Raise RejectedSample(INVALID_ID) unless a file of that name stays inside the output directory.

    "a/b" makes a subfolder. Rejected: empty or dot components, absolute paths, control characters, names too long for a
    file system, and folders named like an artifact ("a.npy/b"), which would collide with the file of "a".
    """
    if _PLAIN_ID.fullmatch(sample_id):
        return
    parts = sample_id.split("/")
    problem = None
    if not sample_id or any(part in ("", ".", "..") for part in parts):
        problem = "it is empty, absolute, or has an empty, '.' or '..' component"
    elif _CONTROL_CHARACTER.search(sample_id):
        problem = "it contains a control character"
    elif len(parts) > MAX_ID_FOLDERS:
        problem = f"it has more than {MAX_ID_FOLDERS} components"
    elif any(part.endswith(".npy") for part in parts[:-1]):
        problem = "a folder in it is named like an artifact (.npy)"
    elif len(sample_id.encode()) > MAX_ID_BYTES or any(
        len(part.encode()) + _NPY_SUFFIX_BYTES > MAX_NAME_BYTES for part in parts
    ):
        problem = f"it has a component longer than {MAX_NAME_BYTES - _NPY_SUFFIX_BYTES} bytes, or is too long"
    if problem:
        raise RejectedSample(Reason.INVALID_ID, f"id {sample_id[:80]!r} cannot be a file name: {problem}; rename it")
