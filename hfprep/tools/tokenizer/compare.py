"""Compares tokenizers on a manifest's texts: the implementation of `tokenizer compare`.

Each text is normalised once, as in a build, and tokenized by every model. Keeps only counts.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hfprep.errors import ConfigError, Reason
from hfprep.inputs.text.tokenizer import TextTokenizer
from hfprep.tools.shares import NONE_GIVEN
from hfprep.tools.tokenizer.model_file import SPACE_PIECE, decoded, open_bytes
from hfprep.tools.tokenizer.texts import ManifestTexts


@dataclass
class TextCounts:
    """Counts of a tokenizer on the texts of a language; characters are counted without spaces.

    `unknown` counts the characters without an id, `in_bytes` those encoded as bytes.
    """

    texts: int = 0
    characters: int = 0
    ids: int = 0
    unknown: int = 0
    in_bytes: int = 0
    longest: int = 0
    longest_id: str = ""
    over_limit: int = 0
    worst: Counter[str] = field(default_factory=Counter)

    @property
    def unknown_rate(self) -> float:
        """The fraction of characters without an id."""
        return self.unknown / self.characters if self.characters else 0.0

    @property
    def ids_per_character(self) -> float:
        return self.ids / self.characters if self.characters else 0.0


@dataclass(frozen=True)
class Comparison:
    """The counts of each tokenizer, in the given order, by language."""

    tokenizers: tuple[Path, ...]
    limit: int | None
    languages: dict[str, list[TextCounts]]
    read: int
    rejected: Counter[Reason]


def compare(
    tokenizers: Sequence[Path],
    manifests: Sequence[Path],
    *,
    language: str | None = None,
    field_map: str | None = None,
    limit: int | None = None,
) -> Comparison:
    """Tokenize the texts of some manifests with each tokenizer; `limit`: the model's text positions.

    Raises ConfigError if a tokenizer or a manifest cannot be read.
    """
    if not tokenizers:
        raise ConfigError("no tokenizer is given; give one or more SentencePiece models")
    opened = [TextTokenizer(path) for path in tokenizers]  # raises ConfigError for an invalid file
    models = [open_bytes(path.read_bytes()) for path in tokenizers]
    texts = ManifestTexts(manifests, opened[0], language, field_map)
    languages: dict[str, list[TextCounts]] = {}
    for row, text in texts:
        counts = languages.setdefault(row.language or NONE_GIVEN, [TextCounts() for _ in models])
        for model, count in zip(models, counts, strict=True):
            _add(count, row.id, text, model, limit)
    return Comparison(tuple(tokenizers), limit, languages, texts.read, texts.rejected)


def _add(counts: TextCounts, sample_id: str, text: str, model: Any, limit: int | None) -> None:
    ids, pieces = model.encode(text, out_type=int), model.encode(text, out_type=str)
    counts.texts += 1
    counts.ids += len(ids)
    counts.over_limit += limit is not None and len(ids) > limit
    if len(ids) > counts.longest:
        counts.longest, counts.longest_id = len(ids), sample_id
    written = model.normalize(text)
    counts.characters += len(written) - written.count(SPACE_PIECE)
    unknown = "".join(piece for piece, number in zip(pieces, ids, strict=True) if model.is_unknown(number))
    in_bytes = decoded(piece for piece, number in zip(pieces, ids, strict=True) if model.is_byte(number))
    counts.unknown += len(unknown.replace(SPACE_PIECE, ""))
    counts.in_bytes += len(in_bytes)
    counts.worst.update((unknown + in_bytes).replace(SPACE_PIECE, ""))
