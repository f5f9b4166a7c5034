"""The pieces of a SentencePiece BPE model, and which can be added without changing other segmentations."""

import re
import unicodedata
from collections import Counter
from collections.abc import Collection
from functools import cached_property
from itertools import groupby
from pathlib import Path

from hfprep.errors import ConfigError
from hfprep.inputs.text.tokenizer import TextTokenizer
from hfprep.tools.tokenizer.model_file import BPE, SPACE_PIECE, decoded, model_type, open_bytes, without_added_spaces

LONGEST_PIECE = 16  # characters, SentencePiece's default
JOINERS = "\u200c\u200d"  # used inside words in Persian and Indic scripts
_WORD = re.compile(f"{SPACE_PIECE}?[^{SPACE_PIECE}]+|{SPACE_PIECE}")


class Vocabulary:
    """A BPE model's pieces. `alone` are the characters with an id, `inside` all characters of any piece."""

    def __init__(self, path: Path, option: str) -> None:
        """Open a model; raises ConfigError, with the option's name, if it is not a BPE model."""
        TextTokenizer(path)  # raises ConfigError for an invalid file
        self.path = path
        self.model = path.read_bytes()
        if model_type(self.model) != BPE:
            raise ConfigError(f"{option} is {str(path)!r}; it must be a BPE model: others cannot be extended")
        self.processor = open_bytes(self.model)
        self._as_it_stands = open_bytes(without_added_spaces(self.model))
        self.pieces = [str(self.processor.id_to_piece(number)) for number in range(self.size)]
        written = [piece for number, piece in enumerate(self.pieces) if self._is_text(number)]
        self.alone = frozenset(piece for piece in written if len(piece) == 1)
        self.inside = frozenset("".join(written))

    @property
    def size(self) -> int:
        """The number of pieces."""
        return int(self.processor.get_piece_size())

    @cached_property
    def lowest_score(self) -> float:
        """The lowest score of a piece; merges with a lower score come after all merges of the model."""
        return min(
            (self.processor.get_score(number) for number in range(self.size) if self._is_text(number)), default=0.0
        )

    def words(self, text: str) -> list[str]:
        """A prepared text, normalised by the model and split before spaces."""
        return _WORD.findall(self.processor.normalize(text))

    def ids(self, piece: str) -> list[int]:
        """The ids of a piece, in which spaces are written as in pieces."""
        return list(self._as_it_stands.encode(piece, out_type=int))

    def symbols(self, word: str) -> tuple[str, ...]:
        """A word's segmentation by the model, with one symbol per character without an id."""
        model, symbols = self._as_it_stands, list[str]()
        pieces = zip(model.encode(word, out_type=str), model.encode(word, out_type=int), strict=True)
        for kind, run in groupby(pieces, key=lambda item: self._kind(item[1])):
            texts = [piece for piece, _ in run]
            if kind == "byte":
                symbols += decoded(texts)
            elif kind == "unknown":
                symbols += "".join(texts)
            else:
                symbols += texts
        return tuple(symbols)

    def missing(self, frequencies: Counter[str], *, coverage: float, most: int) -> tuple[list[str], list[str]]:
        """Characters to add, the most frequent first, and those that remain without an id.

        Leaves out the rarest characters as far as `coverage` allows, and any after the first `most`.
        """
        new = [character for character in frequencies if character not in self.alone and _is_written(character)]
        new.sort(key=lambda character: (-frequencies[character], character))
        room = (1 - coverage) * frequencies.total()
        while new and (room := room - frequencies[new[-1]]) >= 0:
            new.pop()
        kept = new[:most]
        left_out = sorted(
            character for character in frequencies if character not in self.alone and character not in set(kept)
        )
        return kept, left_out

    def may_add(self, piece: str, characters: Collection[str]) -> bool:
        """Whether adding a merge of these characters does not change texts without new characters."""
        body = piece.removeprefix(SPACE_PIECE)
        return (
            len(piece) <= LONGEST_PIECE
            and all(character in characters and _is_letter(character) for character in body)
            and any(character not in self.inside for character in body)
        )

    def _is_text(self, number: int) -> bool:
        model = self.processor
        return not (model.is_control(number) or model.is_unknown(number) or model.is_byte(number))

    def _kind(self, number: int) -> str:
        if self.processor.is_byte(number):
            return "byte"
        return "unknown" if self.processor.is_unknown(number) else "piece"


def _is_letter(character: str) -> bool:
    return unicodedata.category(character)[0] in "LM" or character in JOINERS


def _is_written(character: str) -> bool:
    """Whether a character occurs in writing: not a control character, surrogate or unassigned code point."""
    return character != SPACE_PIECE and (unicodedata.category(character)[0] != "C" or character in JOINERS)
