"""The texts of a report's samples: normalised, tokenized, and characters that the tokenizer does not know.

Takes the drawn rows, and the tokenizer of the build if it still exists.
"""

import contextlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hfprep.errors import HfprepError, RejectedSample
from hfprep.inputs.text.scripts import DoubtfulGrammar, has_digits
from hfprep.inputs.text.tokenizer import Tokenized
from hfprep.recipes.base import TextEncoder
from hfprep.recipes.options import ModelOptions
from hfprep.recipes.registry import recipe
from hfprep.schema import Schema
from hfprep.tools.shares import NONE_GIVEN
from hfprep.tools.tokenizer.model_file import SPACE_PIECE

TEXT_WIDTH = 160
TEXTS_EACH = 3  # examples per language
MOST_IN_ROWS = 500  # samples with normalised text and pieces in the page

Tokenize = Callable[[str, str | None], Tokenized]


@dataclass
class Texts:
    """Results of text normalisation and tokenization for the drawn samples.

    `shown`: examples for each language, as id, text, normalised, pieces. `doubtful`: samples without a language, by the
    grammar that may be wrong. `digits_left`: samples with digits left, by language. `unknown`: characters that the
    tokenizer does not know; `unknown_tokens` is None if the tokenizer was not found.
    """

    shown: dict[str, list[tuple[str, str, str, str]]] = field(default_factory=dict)
    doubtful: Counter[DoubtfulGrammar] = field(default_factory=Counter)
    digits_left: Counter[str] = field(default_factory=Counter)
    unknown: Counter[str] = field(default_factory=Counter)
    unknown_tokens: int | None = None
    looked_at: int = 0

    def add(
        self, sample_id: str, language: str | None, text: str, tokenized: Tokenized, doubtful: DoubtfulGrammar | None
    ) -> None:
        """Add a sample's text."""
        self.looked_at += 1
        self.unknown_tokens = (self.unknown_tokens or 0) + len(tokenized.unknown)
        for piece in tokenized.unknown:
            self.unknown.update(character for character in piece if character != SPACE_PIECE)
        name, normalized = language or NONE_GIVEN, tokenized.stages.normalized
        shown = self.shown.setdefault(name, [])
        if len(shown) < TEXTS_EACH:
            shown.append((sample_id, text[:TEXT_WIDTH], normalized[:TEXT_WIDTH], pieces_of(tokenized)))
        if doubtful is not None:
            self.doubtful[doubtful] += 1
        if has_digits(normalized):
            self.digits_left[name] += 1


def pieces_of(tokenized: Tokenized) -> str:
    """A text's pieces in one line."""
    return " ".join(tokenized.pieces)[: 2 * TEXT_WIDTH]


def look_at_texts(
    rows: Sequence[dict[str, Any]], texts: Sequence[tuple[str, str | None]], encoder: TextEncoder | None
) -> Texts:
    """Tokenize the drawn samples' texts again; adds `normalised` and `pieces` to some of the rows."""
    found = Texts()
    every = max(1, -(-len(rows) // MOST_IN_ROWS))
    tokenize: Tokenize | None = getattr(encoder, "tokenize", None)
    if encoder is None or tokenize is None:
        return found
    for number, (row, (text, language)) in enumerate(zip(rows, texts, strict=True)):
        try:
            tokenized = tokenize(text, language)
        except RejectedSample:  # the tokenizer's file has changed
            continue
        found.add(row["id"], language, text, tokenized, encoder.doubt(text, language))
        if number % every == 0:
            row["normalised"] = tokenized.stages.normalized[:TEXT_WIDTH]
            row["pieces"] = pieces_of(tokenized)
    return found


def tokenizer_of(schema: Schema, stats: Mapping[str, Any]) -> TextEncoder | None:
    """The tokenizer of a build, or None if it is not found."""
    path = stats.get("tokenizer")
    if not isinstance(path, str) or not Path(path).is_file():
        return None
    codec = (stats.get("settings") or {}).get("codec_model")  # needed for the outline of the recipe codec
    with contextlib.suppress(HfprepError):
        return recipe(schema.recipe).outline(ModelOptions(tokenizer=Path(path), codec_model=codec)).text_encoder
    return None
