"""What can be known of a sample without the models: its text ids, its audio's header, the reason to reject it.

Gives `Inspector`, which runs in many processes at once, and `Inspection`, its result. Decides through `load_sample`, as
a build does. Knows nothing of whole manifests.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from hfprep.errors import RejectedSample
from hfprep.inputs.audio.decode import TARGET_SAMPLING_RATE, load_waveform, read_header
from hfprep.inputs.text.scripts import DoubtfulGrammar, doubtful_grammar, has_digits
from hfprep.inputs.text.tokenizer import Tokenized
from hfprep.models.input_features import extract_input_features, num_input_frames
from hfprep.pipeline.inspection import Stores
from hfprep.pipeline.intake import Loaded, SampleLimits, Task, check_seconds, load_sample, reject
from hfprep.recipes.base import TextEncoder
from hfprep.schema import Rejection, Schema, Segment, Utterance

SPACE_PIECE = "\u2581"  # SentencePiece's mark for a space
TEXTS_EACH = 3  # of a language, and of each doubtful grammar, whose stages are shown


@dataclass(frozen=True, slots=True)
class Inspection:
    """What was found of one row that a build would take.

    `lengths`: those of its columns, by name, as far as they are known. `unknown`: the pieces that the tokenizer does
    not know. `doubtful`: what speaks against the grammar that a text without a language gets. `normalized` and `pieces`
    are there for some rows of each language. `is_flat`: the sound is silence, a constant, or channels that cancel each
    other; known only of clips that were decoded.
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


@dataclass(frozen=True, slots=True, kw_only=True)
class InspectorSettings:
    """What decides about a row: the tokenizer (None: texts are not looked at), the limits, how audio is read."""

    text_encoder: TextEncoder | None
    limits: SampleLimits
    via_sampling_rate: int | None = None
    decode: bool = False
    named_stores: frozenset[str] = frozenset()


class _Remembering:
    """A text encoder that keeps what it made of the last text, where it can show that."""

    def __init__(self, encoder: TextEncoder) -> None:
        self.encoder = encoder
        self.tokenize: Callable[[str, str | None], Tokenized] | None = getattr(encoder, "tokenize", None)
        self.last: Tokenized | None = None

    def encode(self, text: str, language: str | None = None) -> np.ndarray:
        if self.tokenize is None:
            return self.encoder.encode(text, language)
        self.last = self.tokenize(text, language)
        return self.last.ids


class Inspector:
    """Looks at rows, one after another; one for each thread or process."""

    def __init__(self, settings: InspectorSettings) -> None:
        self.settings = settings
        self.stores = Stores(settings.named_stores)
        self._shown = Counter[str | DoubtfulGrammar | None]()

    def inspect(self, utterance: Utterance) -> Inspection | Rejection:
        """Everything about one row, or why a build would reject it."""
        limits = self.settings.limits
        encoder = self.settings.text_encoder
        text = None if encoder is None else _Remembering(encoder)
        schema = limits.schema
        need = schema.all_groups if text is not None else schema.audio_groups
        task = Task.of(schema, utterance, need)
        try:
            self.stores.identify(utterance.path, by_content=False)
        except RejectedSample as error:
            return reject(task, error.reason, error.message)
        header = _HeaderReader(self.settings.via_sampling_rate, self.settings.decode)
        loaded = load_sample(task, text, header.read, limits)  # type: ignore[arg-type]
        if not isinstance(loaded, Loaded):
            return loaded[1]
        tokenized = text.last if text is not None else None
        num_tokens = None if loaded.text_ids is None else len(loaded.text_ids)
        return Inspection(
            lengths=_lengths(schema, num_tokens, limits.num_codes(loaded.num_frames)),
            unknown=() if tokenized is None else tuple(piece.replace(SPACE_PIECE, "") for piece in tokenized.unknown),
            **self._text(utterance, tokenized),
            num_frames=loaded.num_frames,
            seconds=loaded.seconds or 0.0,
            sampling_rate=header.sampling_rate,
            channels=header.channels,
            format=header.format,
            is_flat=header.is_flat,
        )

    def _text(self, utterance: Utterance, tokenized: Tokenized | None) -> dict[str, Any]:
        """What of an `Inspection` is about the text rules; texts themselves go with the first rows of each kind."""
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
    """The lengths of tokens and codes that are not the same for all samples."""
    counts = {"tokens": num_tokens, "codes": num_codes}
    return {
        column.lengths[-1]: count
        for column in schema.columns
        if column.lengths and (count := counts.get(column.kind)) is not None
    }


@dataclass
class _HeaderReader:
    """Reads the audio of one sample: its header alone, or all of it as a build does."""

    via: int | None
    decode: bool
    sampling_rate: int = 0
    channels: int = 0
    format: str = ""
    is_flat: bool = False

    def read(
        self, path: str, check_frames: Callable[[int], None], segment: Segment | None = None
    ) -> tuple[np.ndarray, float]:
        check = check_seconds(check_frames)
        found = read_header(path, segment=segment, check_seconds=check)
        self.sampling_rate, self.channels, self.format = found.sampling_rate, found.channels, found.format
        if self.decode:
            waveform = load_waveform(path, via=self.via, segment=segment, check_seconds=check)
            self.is_flat = waveform.is_flat
            check_frames(num_input_frames(len(waveform.samples)))
            return extract_input_features(waveform.samples), waveform.seconds
        frames = frames_of_header(found.seconds, found.sampling_rate, self.via)
        check_frames(frames)
        return np.empty((frames, 0), np.float32), found.seconds


def frames_of_header(seconds: float, sampling_rate: int, via: int | None = None) -> int:
    """Model frames that a file of that length and rate in Hz will have once it is resampled."""
    num_samples = round(seconds * sampling_rate)
    if via is not None and sampling_rate != TARGET_SAMPLING_RATE:
        num_samples, sampling_rate = -(-num_samples * via // sampling_rate), via
    return num_input_frames(-(-num_samples * TARGET_SAMPLING_RATE // sampling_rate))


_inspector: list[Inspector] = []


def start_process(settings: InspectorSettings) -> None:
    """Prepare this worker process; called once in each."""
    torch.set_num_threads(1)
    _inspector[:] = [Inspector(settings)]


def inspect_in_process(rows: Sequence[Utterance]) -> list[Inspection | Rejection]:
    """Look at some rows in a worker process."""
    return [_inspector[0].inspect(row) for row in rows]
