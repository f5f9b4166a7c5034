"""The records that travel through hfprep and the columns that a sample consists of.

Gives frozen dataclasses for one manifest row (`Utterance`), its features (`Features`) and its refusal
(`Rejection`), and the one table of feature columns (`COLUMNS`). Knows nothing of files, models or tensors' origin.
"""

from dataclasses import dataclass
from enum import IntFlag
from typing import Any

import numpy as np

from hfprep.errors import Reason


class Need(IntFlag):
    """Groups of feature columns that are computed, reused and fingerprinted together."""

    NOTHING = 0
    TEXT = 1
    CODES = 2
    LATENTS = 4
    AUDIO = CODES | LATENTS
    ALL = TEXT | CODES | LATENTS


@dataclass(frozen=True, slots=True)
class Column:
    """One feature of a sample: its name (also its folder in the npy layout), dtype, rank and group."""

    name: str
    dtype: np.dtype[Any]
    ndim: int
    need: Need


COLUMNS: dict[str, Column] = {
    column.name: column
    for column in (
        Column("text_ids", np.dtype(np.int32), 1, Need.TEXT),
        Column("codes", np.dtype(np.int32), 1, Need.CODES),
        Column("condition", np.dtype(np.float32), 2, Need.LATENTS),
        Column("emo_vec", np.dtype(np.float32), 1, Need.LATENTS),
    )
}


@dataclass(frozen=True, slots=True)
class Utterance:
    """One valid manifest row.

    `audio` is the manifest's own value, `path` where it was found. `language` is the hint in force (the
    run's, else the row's own). `extra` holds the manifest's other fields as a JSON object.
    """

    line: int
    id: str
    text: str
    audio: str
    path: str
    speaker: str | None = None
    language: str | None = None
    duration: float | None = None
    extra: str = "{}"


@dataclass(frozen=True, slots=True)
class Features:
    """What was computed for one utterance; a column that was not asked for is None.

    text_ids: int32 (text_len,). codes: int32 (code_len,). condition: float32 (32, model_dim).
    emo_vec: float32 (model_dim,). `seconds` is the audio's own length, None where audio was not read.
    """

    text_ids: np.ndarray | None = None
    codes: np.ndarray | None = None
    condition: np.ndarray | None = None
    emo_vec: np.ndarray | None = None
    seconds: float | None = None

    def arrays(self) -> dict[str, np.ndarray]:
        """The columns that are there, by name, in the order of `COLUMNS`."""
        return {name: value for name in COLUMNS if (value := getattr(self, name)) is not None}


@dataclass(frozen=True, slots=True)
class Rejection:
    """Why a manifest line is not in the output. `line` counts from 1; `id` is None where none could be read."""

    line: int
    id: str | None
    reason: Reason
    message: str

    def record(self) -> dict[str, Any]:
        """The object that stands in rejected.jsonl."""
        return {"line": self.line, "id": self.id, "reason": self.reason.value, "message": self.message}


def artifact_path(column: str, sample_id: str) -> str:
    """Path of a sample's array in the npy layout, relative to the output directory, with forward slashes."""
    return f"{column}/{sample_id}.npy"


def manifest_record(
    utterance: Utterance, *, text_len: int, code_len: int, condition_len: int, seconds: float | None
) -> dict[str, Any]:
    """The object that stands for a sample in train_manifest.jsonl and val_manifest.jsonl."""
    duration = utterance.duration
    if duration is None and seconds is not None:
        duration = round(seconds, 6)
    sample_id = utterance.id
    return {
        "id": sample_id,
        "audio_path": utterance.audio.removeprefix("./"),
        "text": utterance.text,
        "speaker": utterance.speaker,
        "language": utterance.language,
        "duration": duration,
        "text_ids_path": artifact_path("text_ids", sample_id),
        "text_len": text_len,
        "codes_path": artifact_path("codes", sample_id),
        "code_len": code_len,
        "condition_path": artifact_path("condition", sample_id),
        "condition_len": condition_len,
        "emo_vec_path": artifact_path("emo_vec", sample_id),
    }
