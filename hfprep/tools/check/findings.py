"""What a check found, summed up: rejections, hours, lengths, rates, unknown tokens, disk.

Takes rows and inspections one by one and keeps counts, never the rows. Knows nothing of how they are shown.
"""

from collections import Counter
from dataclasses import dataclass, field

from hfprep.errors import Reason
from hfprep.inputs.text.scripts import DoubtfulGrammar
from hfprep.pipeline.intake import SampleLimits
from hfprep.schema import Rejection, Utterance
from hfprep.store.layout import npy_size
from hfprep.tools.check.inspecting import Inspection

EXAMPLES = 3
DISK_BLOCK = 4096
ROW_BYTES = 1200  # a manifest record, its line in the progress file and its row in the state
NONE_GIVEN = "(none)"


@dataclass
class Lengths:
    """Smallest, largest, sum and count of a length."""

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
class Share:
    """Samples and seconds of one language or speaker."""

    samples: int = 0
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class TextExample:
    """A text as it stands, as it is read, and as pieces."""

    id: str
    text: str
    normalized: str
    pieces: tuple[str, ...]


@dataclass
class Preflight:
    """The findings of a check. lines_read = accepted + rejected + capped."""

    model_dim: int
    condition_len: int
    positions: SampleLimits
    lines_read: int = 0
    accepted: int = 0
    capped: int = 0
    rejected: Counter[Reason] = field(default_factory=Counter)
    rejections: dict[Reason, list[Rejection]] = field(default_factory=dict)
    languages: dict[str, Share] = field(default_factory=dict)
    speakers: dict[str, Share] = field(default_factory=dict)
    seconds: Lengths = field(default_factory=Lengths)
    frames: Lengths = field(default_factory=Lengths)
    tokens: Lengths = field(default_factory=Lengths)
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
    over_text: list[tuple[str, int]] = field(default_factory=list)
    over_codes: list[tuple[str, int]] = field(default_factory=list)
    over_text_count: int = 0
    over_codes_count: int = 0
    wrong_durations: list[tuple[str, float, float]] = field(default_factory=list)
    wrong_duration_count: int = 0
    disk_bytes: int = 0

    def reject(self, rejection: Rejection) -> None:
        """Count a line that a build would reject."""
        self.rejected[rejection.reason] += 1
        examples = self.rejections.setdefault(rejection.reason, [])
        if len(examples) < EXAMPLES:
            examples.append(rejection)

    def accept(self, utterance: Utterance, found: Inspection) -> None:
        """Count a line that a build would take."""
        self.accepted += 1
        for table, name in ((self.languages, utterance.language), (self.speakers, utterance.speaker)):
            share = table.setdefault(name or NONE_GIVEN, Share())
            share.samples += 1
            share.seconds += found.seconds
        self.seconds.add(found.seconds)
        self.frames.add(found.num_frames)
        self.tokens.add(found.num_tokens)
        self.sampling_rates[found.sampling_rate] += 1
        self.channels[found.channels] += 1
        self.formats[found.format] += 1
        self._note_text(utterance, found)
        self._note_unknown(utterance, found)
        self._note_positions(utterance, found)
        self._note_duration(utterance, found)
        self.disk_bytes += self._disk_bytes(found)

    def _note_text(self, utterance: Utterance, found: Inspection) -> None:
        language = utterance.language or NONE_GIVEN
        if found.normalized is not None:
            example = TextExample(utterance.id, utterance.text, found.normalized, found.pieces)
            examples = self.texts.setdefault(language, [])
            if len(examples) < EXAMPLES:
                examples.append(example)
            if found.doubtful is not None:
                self.doubtful_examples.setdefault(found.doubtful, example)
        if found.doubtful is not None:
            self.doubtful[found.doubtful] += 1
        if found.digits_left:
            self.digits_left[language] += 1
            self.digit_examples.setdefault(language, utterance.id)

    def _note_unknown(self, utterance: Utterance, found: Inspection) -> None:
        self.unknown_tokens += len(found.unknown)
        self.unknown_rows += bool(found.unknown)
        for piece in found.unknown:
            for character in piece:
                self.unknown_characters[character] += 1
                self.unknown_examples.setdefault(character, (utterance.id, utterance.text))

    def _note_positions(self, utterance: Utterance, found: Inspection) -> None:
        if self.positions.max_text_tokens is not None and found.num_tokens > self.positions.max_text_tokens:
            self.over_text_count += 1
            if len(self.over_text) < EXAMPLES:
                self.over_text.append((utterance.id, found.num_tokens))
        if self.positions.max_codes is not None and found.num_frames > self.positions.max_codes:
            self.over_codes_count += 1
            if len(self.over_codes) < EXAMPLES:
                self.over_codes.append((utterance.id, found.num_frames))

    def _note_duration(self, utterance: Utterance, found: Inspection) -> None:
        given = utterance.duration
        if given is not None and abs(given - found.seconds) > max(0.1, 0.05 * found.seconds):
            self.wrong_duration_count += 1
            if len(self.wrong_durations) < EXAMPLES:
                self.wrong_durations.append((utterance.id, given, found.seconds))

    def _disk_bytes(self, found: Inspection) -> int:
        sizes = (
            npy_size("text_ids", (max(1, found.num_tokens),)),
            npy_size("codes", (found.num_frames,)),
            npy_size("condition", (self.condition_len, self.model_dim)),
            npy_size("emo_vec", (self.model_dim,)),
        )
        return ROW_BYTES + sum(-(-size // DISK_BLOCK) * DISK_BLOCK for size in sizes)

    @property
    def hours(self) -> float:
        return self.seconds.total / 3600

    @property
    def unknown_rate(self) -> float:
        """Share of all tokens that are unknown."""
        return self.unknown_tokens / self.tokens.total if self.tokens.total else 0.0
