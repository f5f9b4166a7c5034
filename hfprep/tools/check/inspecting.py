"""Inspects samples without the models: text ids, the audio's header, the reason for rejection.

Provides `Inspector`, which runs in several processes, and `Inspection`, its result. It uses `load_sample`, as a build
does.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from hfprep.errors import RejectedSample
from hfprep.inputs.audio.decode import goes_through, load_waveform, read_header
from hfprep.inputs.text.scripts import DoubtfulGrammar, doubtful_grammar, has_digits
from hfprep.inputs.text.tokenizer import Tokenized
from hfprep.pipeline.inspection import identify_audio
from hfprep.pipeline.intake import CheckFrames, Clip, SampleLimits, Task, check_seconds, load_sample, reject
from hfprep.pipeline.stores import Stores
from hfprep.recipes.base import AudioInput, TextEncoder
from hfprep.schema import Rejection, Schema, Segment, Utterance
from hfprep.tools.tokenizer.model_file import SPACE_PIECE

NOTHING = np.empty(0, np.float32)  # the samples of an inspected clip are not kept
TEXTS_EACH = 3  # texts with stages per language, and per doubtful grammar


@dataclass(frozen=True, slots=True)
class Inspection:
    """The result for a row that a build would accept.

    `lengths`: the known lengths of its columns, by name. `unknown`: the pieces that the tokenizer does not know.
    `doubtful`: why the grammar of a text without a language may be wrong. `normalized` and `pieces` are set for some
    rows of each language. `is_flat`: the audio is silent, constant, or its channels cancel each other; only for decoded
    clips.
    """

    lengths: Mapping[str, int]
    unknown: tuple[str, ...]
    doubtful: DoubtfulGrammar | None
    digits_left: bool
    normalized: str | None
    pieces: tuple[str, ...]
    num_frames: int
    seconds: float
    sampling_rate: int
    channels: int
    format: str
    is_flat: bool = False


class _Remembering:
    """A text encoder that keeps the tokenization of the last text, if the encoder provides it."""

    def __init__(self, encoder: TextEncoder) -> None:
        self.encoder = encoder
        self.tokenize: Callable[[str, str | None], Tokenized] | None = getattr(encoder, "tokenize", None)
        self.last: Tokenized | None = None

    def encode(self, text: str, language: str | None = None) -> np.ndarray:
        if self.tokenize is None:
            return self.encoder.encode(text, language)
        self.last = self.tokenize(text, language)
        return self.last.ids

    def doubt(self, text: str, language: str | None) -> DoubtfulGrammar | None:
        return self.encoder.doubt(text, language)

    def fingerprint(self) -> str:
        return self.encoder.fingerprint()


@dataclass(kw_only=True)
class Inspector:
    """Inspects rows one after another. Use one per thread or process.

    `text_encoder` None: texts are not checked. With `decode`, all audio is decoded, not only the headers read.
    """

    text_encoder: TextEncoder | None
    audio: AudioInput
    limits: SampleLimits
    decode: bool = False

    def __post_init__(self) -> None:
        self._stores = Stores(self.limits.options.named_stores)
        self._shown = Counter[str | DoubtfulGrammar | None]()

    def inspect(self, utterance: Utterance) -> Inspection | Rejection:
        """Inspect a row; returns the rejection if a build would reject it."""
        text = None if self.text_encoder is None else _Remembering(self.text_encoder)
        schema = self.limits.schema
        need = schema.all_groups if text is not None else schema.audio_groups
        task = Task.of(schema, utterance, need)
        about_audio: dict[str, Any] = {"sampling_rate": 0, "channels": 0, "format": ""}

        def read(path: str, check_frames: CheckFrames, segment: Segment | None) -> Clip:
            return self._stores.ask(path, lambda: self._read(about_audio, path, check_frames, segment))

        try:
            identify_audio(utterance.path, by_content=False, stores=self._stores)
        except RejectedSample as error:
            return reject(task, error.reason, error.message)
        loaded = load_sample(task, text, read, self.limits)
        if isinstance(loaded, Rejection):
            return loaded
        tokenized = text.last if text is not None else None
        num_tokens = None if loaded.text_ids is None else len(loaded.text_ids)
        return Inspection(
            lengths=_lengths(schema, num_tokens, self.limits.num_codes(loaded.num_frames)),
            unknown=() if tokenized is None else tuple(piece.replace(SPACE_PIECE, "") for piece in tokenized.unknown),
            **self._text(utterance, tokenized),
            num_frames=loaded.num_frames,
            seconds=loaded.seconds or 0.0,
            **about_audio,
        )

    def _read(self, about: dict[str, Any], path: str, check_frames: CheckFrames, segment: Segment | None) -> Clip:
        """Read a clip's header, or all of it, as a build does; puts the fields of an `Inspection` into `about`."""
        check, rate = check_seconds(check_frames, self.audio), self.audio.sampling_rate
        via = self.limits.options.via_sampling_rate
        found = read_header(path, segment=segment, check_seconds=check)
        about |= {"sampling_rate": found.sampling_rate, "channels": found.channels, "format": found.format}
        if not self.decode:
            frames = self.audio.num_frames(samples_of_header(found.seconds, found.sampling_rate, rate, via))
            check_frames(frames)
            return Clip(NOTHING, frames, found.seconds)
        waveform = load_waveform(path, sampling_rate=rate, via=via, segment=segment, check_seconds=check)
        about["is_flat"] = waveform.is_flat
        frames = self.audio.num_frames(len(waveform.samples))
        check_frames(frames)
        self.audio.prepare(waveform.samples, on_gpu=False)  # raises if the samples cannot be used
        return Clip(NOTHING, frames, waveform.seconds)

    def _text(self, utterance: Utterance, tokenized: Tokenized | None) -> dict[str, Any]:
        """The fields of an `Inspection` about text, with the texts themselves for the first rows of each kind."""
        if self.text_encoder is not None:
            doubtful = self.text_encoder.doubt(utterance.text, utterance.language)
        else:
            doubtful = None if utterance.language else doubtful_grammar(utterance.text)
        normalized = None if tokenized is None else tokenized.stages.normalized
        kinds = (doubtful, utterance.language) if doubtful is not None else (utterance.language,)
        shown = tokenized if any(self._shown[kind] < TEXTS_EACH for kind in kinds) else None
        self._shown.update(kinds)
        return {
            "doubtful": doubtful,
            "digits_left": normalized is not None and has_digits(normalized),
            "normalized": normalized if shown is not None else None,
            "pieces": () if shown is None else shown.pieces,
        }


def _lengths(schema: Schema, num_tokens: int | None, num_codes: int) -> dict[str, int]:
    """The variable lengths of tokens and codes."""
    counts = {"tokens": num_tokens, "codes": num_codes}
    return {
        column.lengths[-1]: count
        for column in schema.columns
        if column.lengths and (count := counts.get(column.kind)) is not None
    }


def samples_of_header(seconds: float, sampling_rate: int, target: int, via: int | None = None) -> int:
    """The number of samples at `target` Hz of a file with this length and sampling rate (Hz)."""
    num_samples = round(seconds * sampling_rate)
    if via is not None and goes_through(via, sampling_rate, target):
        num_samples, sampling_rate = -(-num_samples * via // sampling_rate), via
    return -(-num_samples * target // sampling_rate)


_inspector: list[Inspector] = []


def start_process(make_inspector: Callable[[], Inspector]) -> None:
    """Initialise this worker process."""
    torch.set_num_threads(1)
    _inspector[:] = [make_inspector()]


def inspect_in_process(rows: Sequence[Utterance]) -> list[Inspection | Rejection]:
    """Inspect rows in a worker process."""
    return [_inspector[0].inspect(row) for row in rows]
