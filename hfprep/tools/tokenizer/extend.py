"""A tokenizer extended by the pieces that a manifest's language needs: the recipe behind `tokenizer extend`.

Every id of the base stays what it is. First come the characters that the base has no id for, then merges of them,
learnt from the manifest's texts as a build prepares them. A merge is added only if it holds a character that is in no
piece of the base. BPE merges neighbours whose concatenation is a piece, best score first, and the new pieces have the
lowest scores: so a text without such a character is segmented as before, whatever is in it, and the base's own merges
always come first. The same texts give the same bytes.
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
BASE_LANGUAGES = ("en", "zh")  # of the published model; some sentences of them are always held against the result


@dataclass(frozen=True, kw_only=True)
class ExtendOptions:
    """What to extend by what. `unchanged` are manifests in the base's own languages, to be held against the result."""

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
                f"--base is {str(self.base)!r}: the vocabulary of IndexTTS-2.5 cannot be extended. Its readers number "
                "the special tokens by the lines of the file, so one line more would move all of them. No character is "
                "unknown to it: what it has no token for, it writes in bytes"
            )
        if self.new_pieces < 1:
            raise ConfigError(f"--new-pieces is {self.new_pieces}; it must be a positive number")
        if not 0 < self.character_coverage <= 1:
            raise ConfigError(f"--character-coverage is {self.character_coverage}; it must be above 0, and not above 1")


@dataclass(frozen=True)
class HeldText:
    """A text of the base's own languages: what it is called, and as SentencePiece gets it."""

    name: str
    prepared: str


@dataclass(frozen=True)
class ChangedText:
    """A held text that the extended tokenizer writes otherwise than the base: its pieces before and after."""

    name: str
    before: tuple[str, ...]
    after: tuple[str, ...]


@dataclass(frozen=True)
class Extended:
    """What came of it. `left_out` are characters that have no id still; ids are those of all texts of the manifests."""

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
        """How many pieces the extended tokenizer has."""
        return self.base_size + len(self.characters) + len(self.merges)


def extend(options: ExtendOptions) -> Extended:
    """Write the extended model to `options.output`, beside or in place of what is there.

    Raises ConfigError if the base is no BPE model, a manifest cannot be read, or there is nothing to add: nothing is
    written then.
    """
    tokenizer = TextTokenizer(options.base)
    base = Vocabulary(options.base, "--base")
    texts = ManifestTexts(options.manifests, tokenizer, options.language, options.map)
    words = Counter(word for text in texts for word in base.words(text.stages.tokenizer_input))
    characters, left_out = _characters(base, words, options)
    known = base.alone.union(characters)
    segmented = Counter[tuple[str, ...]]()
    for word, times in words.items():
        segmented[base.symbols(word)] += times
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


def _characters(base: Vocabulary, words: Mapping[str, int], options: ExtendOptions) -> tuple[list[str], list[str]]:
    frequencies = Counter[str]()
    for word, times in words.items():
        for character in word:
            frequencies[character] += times
    return base.missing(frequencies, coverage=options.character_coverage, most=options.new_pieces)


def _count_ids(words: Mapping[str, int], model: bytes) -> int:
    processor = open_bytes(without_added_spaces(model))
    return sum(len(processor.encode(word, out_type=int)) * times for word, times in words.items())


def _held_texts(options: ExtendOptions, tokenizer: TextTokenizer) -> Iterator[HeldText]:
    """Some sentences of the base's languages, then those of the manifests in `unchanged`."""
    for language in BASE_LANGUAGES:
        for sentence in SENTENCES[language]:
            yield HeldText(f"{language}: {sentence}", tokenizer.prepare(sentence, language).tokenizer_input)
    for text in ManifestTexts(options.unchanged, tokenizer, field_map=options.map):
        yield HeldText(text.id, text.stages.tokenizer_input)


def _compare(texts: Iterable[HeldText], before: Any, after: Any) -> tuple[int, list[ChangedText]]:
    """How many texts there are, and those that the two models write otherwise."""
    held, changed = 0, []
    for text in texts:
        held += 1
        if before.encode(text.prepared, out_type=int) != after.encode(text.prepared, out_type=int):
            pieces = [tuple(model.encode(text.prepared, out_type=str)) for model in (before, after)]
            changed.append(ChangedText(text.name, *pieces))
    return held, changed
