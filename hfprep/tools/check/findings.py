"""Summarises a check: rejections, hours, lengths, rates, unknown tokens, disk space.

Takes rows and inspections one by one and keeps only counts and a few examples.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from hfprep.errors import Reason
from hfprep.inputs.text.scripts import DoubtfulGrammar
from hfprep.io.npy_format import npy_size
from hfprep.schema import Rejection, Schema, Utterance
from hfprep.tools.check.inspecting import Inspection
from hfprep.tools.check.outliers import Pace
from hfprep.tools.shares import NONE_GIVEN, Share, add_to

EXAMPLES = 3
DISK_BLOCK = 4096
ROW_BYTES = 1200  # a manifest record, its line in the progress file and its row in the state
DENSE = 0.5  # text ids per character; above that long sentences may not fit into the model's positions


@dataclass
class Lengths:
    """Minimum, maximum, sum and count of a length."""

    least: float = float("inf")
    most: float = 0.0
    total: float = 0.0
    count: int = 0

    def add(self, value: float) -> None:
        self.least, self.most = min(self.least, value), max(self.most, value)
        self.total += value
        self.count += 1

    @property
    def mean(self) -> float:
        return self.total / self.count if self.count else 0.0


@dataclass
class TextCost:
    """Text ids and characters of a language, and its number of samples that exceed the model's text positions."""

    num_tokens: int = 0
    num_characters: int = 0
    overlong: int = 0

    @property
    def rate(self) -> float:
        """Ids per character."""
        return self.num_tokens / self.num_characters if self.num_characters else 0.0


@dataclass(frozen=True, slots=True)
class TextExample:
    """A text: original, normalised, and as pieces."""

    id: str
    text: str
    normalized: str
    pieces: tuple[str, ...]


Example = TypeVar("Example")


@dataclass
class Noted(Generic[Example]):
    """A number of samples, and the first of them as examples."""

    count: int = 0
    examples: list[Example] = field(default_factory=list)

    def add(self, example: Example) -> None:
        self.count += 1
        if len(self.examples) < EXAMPLES:
            self.examples.append(example)


@dataclass
class Preflight:
    """The findings of a check: lines_read = accepted + rejected + capped.

    `lengths` and `overlong` (ids, and lengths over the model's limit) are by name. `wrong_durations` are ids, and
    seconds by the manifest and by the audio; `flat` are the ids of silent or constant clips.
    """

    schema: Schema
    lines_read: int = 0
    accepted: int = 0
    capped: int = 0
    rejected: Counter[Reason] = field(default_factory=Counter)
    rejections: dict[Reason, list[Rejection]] = field(default_factory=dict)
    languages: dict[str, Share] = field(default_factory=dict)
    speakers: dict[str, Share] = field(default_factory=dict)
    seconds: Lengths = field(default_factory=Lengths)
    num_frames: int = 0
    lengths: dict[str, Lengths] = field(default_factory=dict)
    sampling_rates: Counter[int] = field(default_factory=Counter)
    channels: Counter[int] = field(default_factory=Counter)
    formats: Counter[str] = field(default_factory=Counter)
    unknown_tokens: int = 0
    unknown_rows: int = 0
    unknown_characters: Counter[str] = field(default_factory=Counter)
    unknown_examples: dict[str, tuple[str, str]] = field(default_factory=dict)
    texts: dict[str, list[TextExample]] = field(default_factory=dict)
    doubtful: Counter[DoubtfulGrammar] = field(default_factory=Counter)
    doubtful_examples: dict[DoubtfulGrammar, TextExample] = field(default_factory=dict)
    digits_left: Counter[str] = field(default_factory=Counter)
    digit_examples: dict[str, str] = field(default_factory=dict)
    overlong: dict[str, Noted[tuple[str, int]]] = field(default_factory=dict)
    costs: dict[str, TextCost] = field(default_factory=dict)
    wrong_durations: Noted[tuple[str, float, float]] = field(default_factory=Noted)
    flat: Noted[str] = field(default_factory=Noted)
    pace: Pace = field(default_factory=Pace)
    disk_bytes: int = 0

    def reject(self, rejection: Rejection) -> None:
        """Count a line that a build would reject."""
        self.rejected[rejection.reason] += 1
        examples = self.rejections.setdefault(rejection.reason, [])
        if len(examples) < EXAMPLES:
            examples.append(rejection)

    def accept(self, utterance: Utterance, found: Inspection) -> None:
        """Count a line that a build would accept."""
        self.accepted += 1
        add_to(self.languages, utterance.language, found.seconds)
        add_to(self.speakers, utterance.speaker, found.seconds)
        self.seconds.add(found.seconds)
        self.num_frames += found.num_frames
        self.sampling_rates[found.sampling_rate] += 1
        self.channels[found.channels] += 1
        self.formats[found.format] += 1
        self._note_text(utterance, found)
        self.pace.add(utterance, found.seconds)
        if found.is_flat:
            self.flat.add(utterance.id)
        given = utterance.duration
        if given is not None and abs(given - found.seconds) > max(0.1, 0.05 * found.seconds):
            self.wrong_durations.add((utterance.id, given, found.seconds))
        self._note_lengths(utterance, found.lengths)
        self.disk_bytes += self._disk_bytes(found.lengths)

    def _note_lengths(self, utterance: Utterance, lengths: Mapping[str, int]) -> None:
        for name, length in lengths.items():
            self.lengths.setdefault(name, Lengths()).add(length)
            limit = self.schema.limits.get(name)
            if limit is not None and length > limit:
                self.overlong.setdefault(name, Noted()).add((utterance.id, length))
        for name in self.text_lengths & lengths.keys():
            cost = self.costs.setdefault(utterance.language or NONE_GIVEN, TextCost())
            cost.num_tokens += lengths[name]
            cost.num_characters += len(utterance.text)
            cost.overlong += lengths[name] > self.schema.limits.get(name, lengths[name])

    @property
    def dense(self) -> dict[str, TextCost]:
        """The languages with more than `DENSE` ids per character, the densest first."""
        over = {language: cost for language, cost in self.costs.items() if cost.rate > DENSE}
        return dict(sorted(over.items(), key=lambda item: -item[1].rate))

    def _note_text(self, utterance: Utterance, found: Inspection) -> None:
        language = utterance.language or NONE_GIVEN
        if found.normalized is not None:
            example = TextExample(utterance.id, utterance.text, found.normalized, found.pieces)
            examples = self.texts.setdefault(language, [])
            if len(examples) < EXAMPLES and example.text not in {other.text for other in examples}:
                examples.append(example)
            if found.doubtful is not None:
                self.doubtful_examples.setdefault(found.doubtful, example)
        if found.doubtful is not None:
            self.doubtful[found.doubtful] += 1
        if found.digits_left:
            self.digits_left[language] += 1
            self.digit_examples.setdefault(language, utterance.id)
        self.unknown_tokens += len(found.unknown)
        self.unknown_rows += bool(found.unknown)
        for piece in found.unknown:
            for character in piece:
                self.unknown_characters[character] += 1
                self.unknown_examples.setdefault(character, (utterance.id, utterance.text))

    def _disk_bytes(self, lengths: Mapping[str, int]) -> int:
        """Disk space of a sample's arrays in the npy layout; an unknown length counts as 1."""
        known = dict.fromkeys(self.schema.lengths, 1) | dict(self.schema.fixed) | dict(lengths)
        sizes = (npy_size(column.dtype, self.schema.shape(column, known)) for column in self.schema.columns)
        return ROW_BYTES + sum(-(-size // DISK_BLOCK) * DISK_BLOCK for size in sizes)

    @property
    def num_tokens(self) -> float:
        """Tokens of all texts; 0 if texts were not checked."""
        return sum(lengths.total for name, lengths in self.lengths.items() if name in self.text_lengths)

    @property
    def text_lengths(self) -> set[str]:
        """The names of the lengths of text ids."""
        return {name for column in self.schema.of_kind("tokens") for name in column.lengths}

    @property
    def unknown_rate(self) -> float:
        """The fraction of tokens that are unknown."""
        return self.unknown_tokens / self.num_tokens if self.num_tokens else 0.0
