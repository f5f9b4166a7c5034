"""Extends a tokenizer with the pieces that a manifest's language needs: the implementation of `tokenizer extend`.

The base's ids do not change. It adds the characters that the base has no id for, then merges of them, learnt from the
manifest's texts as prepared in a build. A merge is added only if it contains a character that is in no piece of the
base. BPE merges neighbours whose concatenation is a piece, best score first, and the new pieces have the lowest scores:
so the base's merges always come first, and any text without such a character is segmented as before. Deterministic.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hfprep.errors import ConfigError
from hfprep.inputs.text.tokenizer import TextTokenizer
from hfprep.io import atomic
from hfprep.tools.demo.sentences import SENTENCES
from hfprep.tools.tokenizer.merges import learn_merges
from hfprep.tools.tokenizer.model_file import open_bytes, with_pieces, without_added_spaces
from hfprep.tools.tokenizer.texts import ManifestTexts
from hfprep.tools.tokenizer.vocabulary import Vocabulary

TIKTOKEN_SUFFIX = ".tiktoken"
BASE_LANGUAGES = ("en", "zh")  # of the published model; some of their sentences are always compared before and after


@dataclass(frozen=True, kw_only=True)
class ExtendOptions:
    """What to extend, and with what. `unchanged` are manifests in the base's languages to compare before and after."""

    base: Path
    manifests: tuple[Path, ...]
    output: Path
    language: str | None = None
    map: str | None = None
    new_pieces: int = 4000
    character_coverage: float = 1.0
    unchanged: tuple[Path, ...] = ()

    def __post_init__(self) -> None:
        if self.base.suffix == TIKTOKEN_SUFFIX:
            raise ConfigError(
                f"--base is {str(self.base)!r}: the vocabulary of IndexTTS-2.5 cannot be extended. Its readers derive "
                "the ids of special tokens from the number of lines, so another line would shift all of them. No "
                "character is unknown to it: characters without a token are encoded as bytes"
            )
        if self.new_pieces < 1:
            raise ConfigError(f"--new-pieces is {self.new_pieces}; it must be a positive number")
        if not 0 < self.character_coverage <= 1:
            raise ConfigError(f"--character-coverage is {self.character_coverage}; it must be above 0, and not above 1")


@dataclass(frozen=True)
class ChangedText:
    """A text that the extended tokenizer segments differently from the base: its pieces before and after."""

    name: str
    before: tuple[str, ...]
    after: tuple[str, ...]


@dataclass(frozen=True)
class Extended:
    """The result. `left_out` are characters still without an id; numbers of ids are over all texts."""

    base_size: int
    characters: tuple[str, ...]
    merges: tuple[str, ...]
    left_out: tuple[str, ...]
    texts: int
    skipped: int
    ids_before: int
    ids_after: int
    held: int
    changed: tuple[ChangedText, ...]

    @property
    def size(self) -> int:
        """The number of pieces of the extended tokenizer."""
        return self.base_size + len(self.characters) + len(self.merges)


def extend(options: ExtendOptions) -> Extended:
    """Write the extended model to `options.output`, replacing an existing file.

    Raises ConfigError, without writing, if the base is not a BPE model, a manifest cannot be read, or there is nothing
    to add.
    """
    tokenizer = TextTokenizer(options.base)
    base = Vocabulary(options.base, "--base")
    texts = ManifestTexts(options.manifests, tokenizer, options.language, options.map)
    words = Counter(word for _, text in texts for word in base.words(text))
    frequencies = Counter[str]()
    segmented = Counter[tuple[str, ...]]()
    for word, times in words.items():
        segmented[base.symbols(word)] += times
        for character in word:
            frequencies[character] += times
    characters, left_out = base.missing(frequencies, coverage=options.character_coverage, most=options.new_pieces)
    known = base.alone.union(characters)
    merges = learn_merges(segmented, options.new_pieces - len(characters), lambda piece: base.may_add(piece, known))
    if not characters and not merges:
        raise ConfigError(
            f"there is nothing to add: --base {str(options.base)!r} has an id for every character of these texts"
        )
    pieces = [(piece, base.lowest_score - 1 - number) for number, piece in enumerate([*characters, *merges])]
    model = with_pieces(base.model, pieces, base.size + len(pieces))
    held, changed = _compare(_held_texts(options, tokenizer), base.processor, open_bytes(model))
    atomic.write_bytes(options.output, model)
    return Extended(
        base_size=base.size,
        characters=tuple(characters),
        merges=tuple(merges),
        left_out=tuple(left_out),
        texts=texts.read - texts.rejected.total(),
        skipped=texts.rejected.total(),
        ids_before=_count_ids(words, base.model),
        ids_after=_count_ids(words, model),
        held=held,
        changed=tuple(changed),
    )


def _count_ids(words: Mapping[str, int], model: bytes) -> int:
    processor = open_bytes(without_added_spaces(model))
    return sum(len(processor.encode(word, out_type=int)) * times for word, times in words.items())


def _held_texts(options: ExtendOptions, tokenizer: TextTokenizer) -> Iterator[tuple[str, str]]:
    """Names and prepared texts of some sentences in the base's languages, and of the manifests in `unchanged`."""
    for language in BASE_LANGUAGES:
        for sentence in SENTENCES[language]:
            yield f"{language}: {sentence}", tokenizer.prepare(sentence, language).tokenizer_input
    for row, text in ManifestTexts(options.unchanged, tokenizer, field_map=options.map):
        yield row.id, text


def _compare(texts: Iterable[tuple[str, str]], before: Any, after: Any) -> tuple[int, list[ChangedText]]:
    """The number of texts, and those that the two models segment differently."""
    held, changed = 0, []
    for name, text in texts:
        held += 1
        if before.encode(text, out_type=int) != after.encode(text, out_type=int):
            pieces = [tuple(model.encode(text, out_type=str)) for model in (before, after)]
            changed.append(ChangedText(name, *pieces))
    return held, changed
