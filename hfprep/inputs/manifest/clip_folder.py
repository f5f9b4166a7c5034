"""A folder of audio files, each with a text file of the same name: `a.wav`, `a.txt`.

Rows are numbered from 1 in the order of the audio files' names; the id is the name without its suffix.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hfprep.errors import Reason, RejectedSample
from hfprep.inputs.manifest.field_map import FieldMap
from hfprep.inputs.manifest.rows import RawRow

AUDIO_SUFFIXES = (".wav", ".flac", ".mp3", ".ogg", ".opus", ".m4a", ".aac", ".webm")
TEXT_SUFFIX = ".txt"
MAX_TEXT_BYTES = 1 << 20
LOOKED_AT = 1000


@dataclass(frozen=True, slots=True)
class ClipFolder:
    """The clips of one folder."""

    folder: Path
    fields: FieldMap

    def lines(self) -> Iterator[tuple[int, RawRow]]:
        """Number and row of each audio file."""
        for number, name in enumerate(_audio_names(self.folder), start=1):
            yield number, self.fields.applied(number, self._row, name)

    def _row(self, name: str) -> dict[str, Any]:
        stem = name.rpartition(".")[0]
        row = {"id": stem, "audio": name}
        path = _text_of(self.folder, stem)
        if path.exists() and not path.is_file():  # reading a pipe would block
            raise RejectedSample(Reason.INVALID_FIELD, f"{path.name} is not a regular file")
        try:
            with open(path, "rb") as stream:
                content = stream.read(MAX_TEXT_BYTES + 1)
        except FileNotFoundError:
            message = f"there is no {stem}{TEXT_SUFFIX} beside {name}"
            raise RejectedSample(Reason.MISSING_FIELD, message) from None
        except OSError as error:
            raise RejectedSample(Reason.INVALID_FIELD, f"{stem}{TEXT_SUFFIX}: {error.strerror or error}") from None
        if len(content) > MAX_TEXT_BYTES:
            raise RejectedSample(Reason.INVALID_FIELD, f"{stem}{TEXT_SUFFIX} is larger than {MAX_TEXT_BYTES} bytes")
        try:
            return row | {"text": content.decode("utf-8-sig").strip()}
        except UnicodeDecodeError:
            message = f"{stem}{TEXT_SUFFIX} is not UTF-8; save it as UTF-8"
            raise RejectedSample(Reason.INVALID_ENCODING, message) from None


def holds_pairs(folder: Path) -> bool:
    """Whether a folder looks like one: at least one of the first audio files has its text beside it."""
    return any(_text_of(folder, name.rpartition(".")[0]).is_file() for name in _audio_names(folder)[:LOOKED_AT])


def _audio_names(folder: Path) -> list[str]:
    return sorted(name for name in os.listdir(folder) if name.lower().endswith(AUDIO_SUFFIXES))


def _text_of(folder: Path, stem: str) -> Path:
    return folder / f"{stem}{TEXT_SUFFIX}"
