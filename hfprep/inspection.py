"""What the disk says of manifest rows: their audio, the artifacts of finished samples, artifacts to adopt.

Takes rows and what the state knows of them; looks files up, and opens none but the headers of what may be adopted.
Decides nothing, changes nothing; safe to use from several threads.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hfprep.audio.decode import TARGET_SAMPLING_RATE, read_header
from hfprep.audio.input_features import num_input_frames
from hfprep.errors import Reason, RejectedSample
from hfprep.records import COLUMNS, Need, Utterance
from hfprep.store.fingerprints import AudioIdentity
from hfprep.store.layout import NpyOutput
from hfprep.store.state import SampleState

ADOPTED_LENGTH_SLACK = 1  # frames; a header's length of an mp3 may be a little off


def identify_audio(path: str, *, by_content: bool) -> AudioIdentity:
    """Which file is there at `path`; RejectedSample where there is none or it cannot be looked at."""
    try:
        return AudioIdentity.of(path, by_content=by_content)
    except (FileNotFoundError, NotADirectoryError):
        message = f"there is no file {path}; correct `audio` or restore the file"
        raise RejectedSample(Reason.AUDIO_MISSING, message) from None
    except OSError as error:
        raise RejectedSample(Reason.AUDIO_UNREADABLE, f"{path}: {error.strerror or error}") from error


@dataclass(frozen=True, slots=True)
class Inspected:
    """One row: its audio, what is known of it, which finished groups are not whole, what may be adopted."""

    identity: AudioIdentity
    known: SampleState | None
    incomplete: Need
    adopted: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Inspector:
    """Looks at rows; adopts artifacts without a record only if `adopt`, and only where they are `model_dim` wide."""

    output: NpyOutput
    hash_audio: bool
    adopt: bool
    model_dim: int | None

    def inspect(self, rows: Sequence[tuple[Utterance, SampleState | None]]) -> list[Inspected | RejectedSample]:
        """What the disk says of each of these rows; a RejectedSample where the audio is not there."""
        found: list[Inspected | RejectedSample] = []
        for utterance, known in rows:
            try:
                found.append(self._inspect(utterance, known))
            except RejectedSample as error:
                found.append(error)
        return found

    def _inspect(self, utterance: Utterance, known: SampleState | None) -> Inspected:
        identity = identify_audio(utterance.path, by_content=self.hash_audio)
        if known is not None:
            return Inspected(identity, known, self.output.incomplete(utterance.id, known), {})
        return Inspected(identity, None, Need.NOTHING, self._adoptable(utterance) if self.adopt else {})

    def _adoptable(self, utterance: Utterance) -> dict[str, Any]:
        """Lengths of the artifacts on disk that count as done; of audio columns only where the codes fit the audio."""
        shapes = {name: self.output.read_shape(name, utterance.id) for name in COLUMNS}
        values: dict[str, Any] = {}
        if shapes["text_ids"] and shapes["text_ids"][0]:
            values |= {"text": True, "text_len": shapes["text_ids"][0]}
        codes, condition, emo_vec = shapes["codes"], shapes["condition"], shapes["emo_vec"]
        if codes and condition and emo_vec and condition[1:] == emo_vec and self.model_dim in (None, emo_vec[0]):
            try:
                header = read_header(utterance.path)
            except RejectedSample:
                return values
            expected = num_input_frames(round(header.seconds * TARGET_SAMPLING_RATE))
            if abs(codes[0] - expected) <= ADOPTED_LENGTH_SLACK:
                values |= {"codes": True, "latents": True, "code_len": codes[0], "seconds": header.seconds}
                values |= {"condition_len": condition[0], "model_dim": condition[1]}
            else:
                values["mended"] = True
        return values
