"""What a SentencePiece BPE model has pieces for, and what may be added to it without changing anything else."""

import re
import unicodedata
from collections import Counter
from collections.abc import Collection
from functools import cached_property
from itertools import groupby
from pathlib import Path

from hfprep.errors import ConfigError
from hfprep.inputs.text.tokenizer import TextTokenizer
from hfprep.tools.tokenizer.model_file import BPE, SPACE_PIECE, model_type, open_bytes, without_added_spaces

LONGEST_PIECE = 16  # characters, SentencePiece's own default
JOINERS = "\u200c\u200d"  # inside words of Persian and of the scripts of India
_WORD = re.compile(f"{SPACE_PIECE}?[^{SPACE_PIECE}]+|{SPACE_PIECE}")


class Vocabulary:
    """A BPE model's pieces. `alone` are the characters with an id, `inside` all that stand in any piece."""

    def __init__(self, path: Path, option: str) -> None:
        """Open a model; raises ConfigError, naming the option, where it is none or of another type than BPE."""
        TextTokenizer(path)  # says what is wrong with a file that is no model
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
        """How many pieces there are; ids are below it."""
        return int(self.processor.get_piece_size())

    @cached_property
    def lowest_score(self) -> float:
        """Below this, a merge comes after all merges of the model."""
        return min(
            (self.processor.get_score(number) for number in range(self.size) if self._is_text(number)), default=0.0
        )

    def words(self, text: str) -> list[str]:
        """A prepared text cut before its spaces, normalised as the model does it."""
        return _WORD.findall(self.processor.normalize(text))

    def ids(self, piece: str) -> list[int]:
        """The ids of a piece of text as it stands, a space written as in pieces."""
        return list(self._as_it_stands.encode(piece, out_type=int))

    def symbols(self, word: str) -> tuple[str, ...]:
        """A word as the model segments it, with a symbol for each character that it has no id for."""
        model, symbols = self._as_it_stands, list[str]()
        pieces = zip(model.encode(word, out_type=str), model.encode(word, out_type=int), strict=True)
        for kind, run in groupby(pieces, key=lambda item: self._kind(item[1])):
            texts = [piece for piece, _ in run]
            if kind == "byte":
                symbols += bytes(int(text[3:5], 16) for text in texts).decode("utf-8", "replace")
            elif kind == "unknown":
                symbols += "".join(texts)
            else:
                symbols += texts
        return tuple(symbols)

    def missing(self, frequencies: Counter[str], *, coverage: float, most: int) -> tuple[list[str], list[str]]:
        """Characters to add, the most frequent first, and those that stay without an id.

        As many of the rarest stay out as `coverage` of all characters leaves room for, and what is beyond `most`.
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
        """Whether a merge, of these characters, leaves every text alone that has none of the new ones."""
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
    """Whether a character is one that people write: no control character, half of a pair, or unassigned code."""
    return character != SPACE_PIECE and (unicodedata.category(character)[0] != "C" or character in JOINERS)
