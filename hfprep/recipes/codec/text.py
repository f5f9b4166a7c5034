"""Token ids of the unmodified text, from a SentencePiece model or the tokenizer.json of a Hugging Face tokenizer.

Only the tokenizer itself normalises, and no special tokens are added: that is up to the trainer.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from hfprep.errors import ConfigError, Reason, RejectedSample
from hfprep.inputs.text.spoken import refuse_half_characters
from hfprep.inputs.text.tokenizer import TextStages, Tokenized

TOKENIZER_NAMES = ("tokenizer.json", "tokenizer.model", "bpe.model", "spm.model")


def tokenizer_file(value: Path) -> Path:
    """A tokenizer's file: `value` itself, or tokenizer.json or else a SentencePiece model in the folder `value`."""
    if not value.is_dir():
        return value
    for name in TOKENIZER_NAMES:
        if (value / name).is_file():
            return value / name
    raise ConfigError(
        f"--tokenizer {str(value)!r} is a folder without a tokenizer; it must contain one of "
        f"{', '.join(TOKENIZER_NAMES)}"
    )


class PlainText:
    """Text to ids. Thread-safe, and picklable (a copy reopens the file)."""

    def __init__(self, path: Path) -> None:
        """Open a tokenizer; raises ConfigError if the file is missing or is not a tokenizer."""
        if not path.is_file():
            raise ConfigError(f"tokenizer not found: {path}; give a SentencePiece model or a tokenizer.json")
        self.path = path
        self._sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        self._model = (_tokenizers if path.suffix == ".json" else _sentencepiece)(path)
        self.vocab_size = self._model.size

    def __reduce__(self) -> tuple[type[PlainText], tuple[Path]]:
        return PlainText, (self.path,)

    def fingerprint(self) -> str:
        """Everything that the ids depend on, apart from the text."""
        return f"plain text, tokenizer {self._sha256}"

    def doubt(self, text: str, language: str | None) -> None:
        """Always None: no grammar is used."""
        del text, language

    def encode(self, text: str, language: str | None = None) -> np.ndarray:
        """The token ids of a text, int32 (text_len,); the language does not matter.

        Raises RejectedSample: empty_text if there is no token, text_failed if the text cannot be encoded.
        """
        del language
        refuse_half_characters(text)
        ids = np.asarray(self._model.ids(text), np.int32)
        if not ids.size:
            raise RejectedSample(Reason.EMPTY_TEXT, f"the tokenizer has no token for the text {text[:60]!r}")
        return ids

    def tokenize(self, text: str, language: str | None = None) -> Tokenized:
        """A text's ids, its pieces, and the unknown ones among them; raises as `encode` does."""
        ids = self.encode(text, language)
        pieces = tuple(self._model.pieces(text))
        unknown = tuple(piece for piece, token in zip(pieces, ids, strict=True) if token == self._model.unknown)
        return Tokenized(TextStages(text, text, text), ids, pieces, unknown)


@dataclass(frozen=True, slots=True)
class _Model:
    """Functions from text to ids and to pieces, the id of the unknown token if there is one, the vocabulary size."""

    ids: Callable[[str], Any]
    pieces: Callable[[str], Any]
    unknown: int | None
    size: int


def _sentencepiece(path: Path) -> _Model:
    import sentencepiece

    try:
        model = sentencepiece.SentencePieceProcessor(model_file=str(path))
    except (RuntimeError, OSError) as error:
        raise ConfigError(f"--tokenizer {str(path)!r} is not a SentencePiece model: {error}") from error
    return _Model(model.encode, partial(model.encode, out_type=str), model.unk_id(), int(model.get_piece_size()))


def _tokenizers(path: Path) -> _Model:
    import tokenizers

    try:
        model = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:
        raise ConfigError(f"--tokenizer {str(path)!r} is not a tokenizer.json: {error}") from error
    model.no_truncation()
    model.no_padding()
    vocabulary = model.get_vocab(with_added_tokens=True)

    def encoded(text: str) -> Any:
        return model.encode(text, add_special_tokens=False)

    unknown = vocabulary.get(str(getattr(model.model, "unk_token", None)))
    return _Model(
        lambda text: encoded(text).ids, lambda text: encoded(text).tokens, unknown, max(vocabulary.values()) + 1
    )
