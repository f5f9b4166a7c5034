"""Token ids of a text, from the model set's SentencePiece model.

Provides `TextTokenizer`: text and language hint in, int32 ids out, with the stages in between for inspection. Takes the
path of a SentencePiece model. Knows nothing about manifests, models or length limits.
"""

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from hfprep.errors import ConfigError, Reason, RejectedSample
from hfprep.inputs.text.normalizer import TextNormalizer, clean
from hfprep.inputs.text.scripts import DoubtfulGrammar, doubtful_grammar

# Hangul jamo; CJK radicals to Yi; Phags-pa to Hangul syllables; compatibility ideographs and forms; half-width forms;
# the supplementary ideographic planes (the ranges of the published code, indextts/utils/common.py).
_CJK = re.compile(
    "([\u1100-\u11ff\u2e80-\ua4cf\ua840-\ud7af\uf900-\ufaff\ufe30-\ufe4f\uff65-\uffdc\U00020000-\U0002ffff])"
)


def space_cjk(text: str) -> str:
    """Return a text in capitals with single spaces around each CJK character."""
    return " ".join(part.strip().upper() for part in _CJK.split(text) if part.strip())


@dataclass(frozen=True, slots=True)
class TextStages:
    """The stages of a text: cleaned, normalised, and as the vocabulary gets it."""

    cleaned: str
    normalized: str
    tokenizer_input: str


@dataclass(frozen=True, slots=True)
class Tokenized:
    """A text's stages, its ids (text_len,) int32, its pieces, and the pieces that are unknown to the model."""

    stages: TextStages
    ids: np.ndarray
    pieces: tuple[str, ...]
    unknown: tuple[str, ...]


class TextTokenizer:
    """Cleans, normalises and tokenizes texts.

    Thread-safe, and picklable (a copy reopens the model).
    """

    def __init__(self, model_path: Path, *, normalizer: TextNormalizer | None = None) -> None:
        """Open a SentencePiece model; raises ConfigError if the file is missing or not such a model."""
        self.model_path = Path(model_path)
        self.normalizer = normalizer if normalizer is not None else TextNormalizer()
        self._model = _open_model(self.model_path)

    def __reduce__(self) -> tuple[Callable[[], "TextTokenizer"], tuple[()]]:
        return partial(TextTokenizer, self.model_path, normalizer=self.normalizer), ()

    @property
    def vocab_size(self) -> int:
        """Number of pieces in the model; ids are below it."""
        return int(self._model.get_piece_size())

    @cached_property
    def model_sha256(self) -> str:
        """The SHA-256 of the model file, in hexadecimal."""
        return hashlib.sha256(self.model_path.read_bytes()).hexdigest()

    def fingerprint(self) -> str:
        """Return what the ids depend on besides the text and its hint: the normaliser's rules and the model file."""
        return f"{self.normalizer.fingerprint()}, tokenizer {self.model_sha256}"

    def prepare(self, text: str, language: str | None = None) -> TextStages:
        """Return a text's stages before tokenization; raises RejectedSample as `encode` does."""
        cleaned = clean(text)
        if not cleaned:
            raise RejectedSample(Reason.EMPTY_TEXT, f"the text {text[:60]!r} is empty after cleaning")
        if len(cleaned) == 1 and not "\ud800" <= cleaned <= "\udfff":
            # The published code passes a single character directly to SentencePiece.
            return TextStages(cleaned, cleaned, cleaned)
        normalized = self.normalizer.normalize(cleaned, language)
        tokenizer_input = space_cjk(normalized)
        if not tokenizer_input:
            raise RejectedSample(Reason.EMPTY_TEXT, f"the text {text[:60]!r} is empty after normalisation")
        return TextStages(cleaned, normalized, tokenizer_input)

    def encode(self, text: str, language: str | None = None) -> np.ndarray:
        """Return the token ids of a text, (text_len,) int32, by a language hint or, without one, by its script.

        Raises RejectedSample: empty_text if nothing is left to speak, text_failed if the text cannot be normalised.
        """
        return self._ids(self.prepare(text, language), text)

    def doubt(self, text: str, language: str | None) -> DoubtfulGrammar | None:
        """Why the grammar of a text without a language is doubtful; None if it is not."""
        return None if language else doubtful_grammar(text)

    def tokenize(self, text: str, language: str | None = None) -> Tokenized:
        """Return a text's ids with all stages and the unknown pieces; raises as `encode` does."""
        stages = self.prepare(text, language)
        ids = self._ids(stages, text)
        pieces = tuple(self._model.encode(stages.tokenizer_input, out_type=str))
        unknown_id = self._model.unk_id()
        unknown = tuple(piece for piece, token in zip(pieces, ids, strict=True) if token == unknown_id)
        return Tokenized(stages, ids, pieces, unknown)

    def _ids(self, stages: TextStages, text: str) -> np.ndarray:
        ids = np.asarray(self._model.encode(stages.tokenizer_input, out_type=int), dtype=np.int32)
        if ids.size == 0:
            raise RejectedSample(Reason.EMPTY_TEXT, f"the tokenizer has no token for the text {text[:60]!r}")
        return ids


def _open_model(path: Path) -> Any:
    import sentencepiece

    if not path.is_file():
        raise ConfigError(f"tokenizer not found: {path}. Give the model set's SentencePiece model (bpe.model)")
    try:
        return sentencepiece.SentencePieceProcessor(model_file=str(path))
    except (RuntimeError, OSError) as error:
        raise ConfigError(f"tokenizer {path} is not a SentencePiece model: {error}") from error
