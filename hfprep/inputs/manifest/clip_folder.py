"""A folder of audio files, each with a text file of the same name: `a.wav`, `a.txt`.

Rows are numbered from 1 in the order of the audio files' names; the id is the name without its suffix.
"""

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from hfprep.errors import Reason, RejectedSample
from hfprep.inputs.manifest.field_map import FieldMap
from hfprep.inputs.manifest.rows import NumberedRow

AUDIO_SUFFIXES = (".wav", ".flac", ".mp3", ".ogg", ".opus", ".m4a", ".aac", ".webm")
MAX_TEXT_BYTES = 1 << 20
LOOKED_AT = 1000


def clip_rows(folder: Path, fields: FieldMap) -> Iterator[NumberedRow]:
    """Number and row of each audio file of a folder."""
    return fields.applied_to(enumerate(_audio_names(folder), start=1), partial(_row, folder))


def _row(folder: Path, name: str) -> dict[str, Any]:
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


def holds_pairs(folder: Path) -> bool:
    """Whether a folder looks like one: at least one of the first audio files has its text beside it."""
    return any(_text_of(folder, name).is_file() for name in _audio_names(folder)[:LOOKED_AT])


def _audio_names(folder: Path) -> list[str]:
    return sorted(name for name in os.listdir(folder) if name.lower().endswith(AUDIO_SUFFIXES))


def _text_of(folder: Path, name: str) -> Path:
    return folder / f"{name.rpartition('.')[0]}.txt"
