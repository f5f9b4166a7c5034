"""Token ids of a text, by the model set's own SentencePiece model.

Gives `TextTokenizer`: text and language hint in, int32 ids out, with every stage in between for those who check. Takes
the path of a SentencePiece model. Does not know manifests, models or what a sequence may be long.
"""

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
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
    """A text on its way to ids: as cleaned, as normalised, and as SentencePiece sees it."""

    cleaned: str
    normalized: str
    tokenizer_input: str


@dataclass(frozen=True, slots=True)
class Tokenized:
    """A text's stages, its ids (text_len,) int32, its pieces, and the pieces that the model does not know."""

    stages: TextStages
    ids: np.ndarray
    pieces: tuple[str, ...]
    unknown: tuple[str, ...]


class TextTokenizer:
    """Cleans, normalises and tokenizes texts.

    Safe to call from several threads, and picklable (a copy opens the model anew).
    """

    def __init__(self, model_path: Path, *, normalizer: TextNormalizer | None = None) -> None:
        """Open a SentencePiece model; raises ConfigError where the file is missing or no such model."""
        self.model_path = Path(model_path)
        self.normalizer = normalizer if normalizer is not None else TextNormalizer()
        self._model = _open_model(self.model_path)

    def __reduce__(self) -> tuple[Callable[..., "TextTokenizer"], tuple[Path, TextNormalizer]]:
        return _rebuild, (self.model_path, self.normalizer)

    @property
    def vocab_size(self) -> int:
        """How many pieces the model has; ids are below it."""
        return int(self._model.get_piece_size())

    @cached_property
    def model_sha256(self) -> str:
        """The SHA-256 of the model file, in hexadecimal."""
        return hashlib.sha256(self.model_path.read_bytes()).hexdigest()

    def fingerprint(self) -> str:
        """Return what the ids depend on besides the text and its hint: the normaliser's rules and the model's bytes."""
        return f"{self.normalizer.fingerprint()}, tokenizer {self.model_sha256}"

    def prepare(self, text: str, language: str | None = None) -> TextStages:
        """Return a text's stages before tokenization; raises RejectedSample as `encode` does."""
        cleaned = clean(text)
        if not cleaned:
            raise RejectedSample(Reason.EMPTY_TEXT, f"nothing is left of the text {text[:60]!r} once it is cleaned")
        if len(cleaned) == 1 and not "\ud800" <= cleaned <= "\udfff":
            # The published code hands a single character straight to SentencePiece.
            return TextStages(cleaned, cleaned, cleaned)
        normalized = self.normalizer.normalize(cleaned, language)
        tokenizer_input = space_cjk(normalized)
        if not tokenizer_input:
            raise RejectedSample(Reason.EMPTY_TEXT, f"nothing is left of the text {text[:60]!r} once it is normalised")
        return TextStages(cleaned, normalized, tokenizer_input)

    def encode(self, text: str, language: str | None = None) -> np.ndarray:
        """Return the token ids of a text, (text_len,) int32, by a language hint or, without one, by its script.

        Raises RejectedSample: empty_text where nothing is left to say, text_failed where the text cannot be read.
        """
        return self._ids(self.prepare(text, language), text)

    def doubt(self, text: str, language: str | None) -> DoubtfulGrammar | None:
        """What is doubtful about the grammar that a text without a language gets, None where nothing is."""
        return None if language else doubtful_grammar(text)

    def tokenize(self, text: str, language: str | None = None) -> Tokenized:
        """Return a text's ids with every stage on the way and the pieces that are unknown; raises as `encode` does."""
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


def _rebuild(model_path: Path, normalizer: TextNormalizer) -> TextTokenizer:
    return TextTokenizer(model_path, normalizer=normalizer)
