"""A finished output as numbers to draw: lengths of all samples, and vectors, codes and rows of a random part of them.

Takes an output of any format; gives `Collected`. Counts are of all samples, whatever is only of a part says so. Knows
nothing of charts.
"""

import contextlib
import json
import random
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from hfprep.errors import ConfigError, RejectedSample, StoreError
from hfprep.formats.formats import open_set
from hfprep.formats.npy import read_state_value
from hfprep.formats.samples import SPLITS, Split
from hfprep.inputs.manifest.rows import AudioFinder
from hfprep.inputs.text.scripts import DoubtfulGrammar, doubtful_grammar, has_digits
from hfprep.inputs.text.tokenizer import TextTokenizer, Tokenized
from hfprep.store.layout import PRIVATE, REJECTED
from hfprep.store.timeline import read_timeline

MOST_POINTS = 4000
MOST_CODES = 20_000  # samples whose codes are counted
EXTREMES = 40  # longest, shortest and oddest samples that are always among the points
MOST_REJECTED = 300
REJECTED_EACH = 25
TEXT_WIDTH = 160
TEXTS_EACH = 3  # of a language, shown as they are read
IO_THREADS = 8


@dataclass(frozen=True, slots=True)
class Lengths:
    """Of every sample: float32 seconds, int32 text ids and codes, and where it is: split and position."""

    seconds: np.ndarray
    text_len: np.ndarray
    code_len: np.ndarray
    split: np.ndarray
    position: np.ndarray

    def __len__(self) -> int:
        return len(self.seconds)

    @property
    def codes_per_token(self) -> np.ndarray:
        return self.code_len / np.maximum(self.text_len, 1)


@dataclass
class Group:
    """Samples and hours of one language, speaker or split."""

    samples: int = 0
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Points:
    """The part of the samples that is drawn one by one.

    rows: what to show of each; texts: whole, with their languages; emo_vec, latents (their mean): (N, model_dim).
    """

    rows: list[dict[str, Any]]
    texts: list[tuple[str, str | None]]
    emo_vec: np.ndarray
    latents: np.ndarray


@dataclass
class Texts:
    """What the text rules made of the drawn samples.

    `shown`: of each language some samples as id, text, normalised, pieces. `doubtful`: samples without a language whose
    grammar was chosen by a script that does not fit it. `digits_left`: by language, samples with digits left.
    """

    shown: dict[str, list[tuple[str, str, str, str]]] = field(default_factory=dict)
    doubtful: Counter[DoubtfulGrammar] = field(default_factory=Counter)
    digits_left: Counter[str] = field(default_factory=Counter)

    def add(self, sample_id: str, language: str | None, text: str, tokenized: Tokenized) -> None:
        """Count a sample's text."""
        name, normalized = language or "(none)", tokenized.stages.normalized
        shown = self.shown.setdefault(name, [])
        if len(shown) < TEXTS_EACH:
            cells = (text, normalized, " ".join(tokenized.pieces))
            shown.append((sample_id, *(cell[:TEXT_WIDTH] for cell in cells)))  # type: ignore[arg-type]
        doubtful = None if language else doubtful_grammar(text)
        if doubtful is not None:
            self.doubtful[doubtful] += 1
        if has_digits(normalized):
            self.digits_left[name] += 1


@dataclass
class Collected:
    """Everything that a report shows."""

    root: Path
    format: str
    lengths: Lengths
    groups: dict[str, dict[str, Group]]
    points: Points
    code_counts: np.ndarray
    codes_counted: int
    stats: dict[str, Any]
    rejected: dict[str, int]
    rejected_rows: list[dict[str, Any]]
    timeline: list[dict[str, Any]]
    unknown: Counter[str] = field(default_factory=Counter)
    unknown_tokens: int | None = None  # None: the tokenizer is not at hand
    texts_looked_at: int = 0
    texts: Texts = field(default_factory=Texts)


def collect(root: Path, *, with_audio: bool = False, seed: int = 0) -> Collected:
    """Read an output. Raises StoreError where it is none or damaged, ConfigError where it holds no sample."""
    if not root.is_dir():
        raise ConfigError(f"there is no folder {str(root)!r}; give the output directory of a build, or an export")
    source = open_set(root)
    splits = {name: source.split(name) for name in SPLITS}
    lengths, groups = _lengths(splits)
    if not len(lengths):
        raise ConfigError(f"{str(root)!r} holds no samples; there is nothing to report")
    chosen = _choose(lengths, random.Random(seed))
    locate = _audio_finder(root) if with_audio else None
    points = _points(splits, lengths, chosen, locate)
    stats = source.origin.stats or {}
    size = int(stats.get("codebook", {}).get("size", 8192))
    counts, counted = _count_codes(splits, lengths, size, random.Random(seed))
    rejected, rejected_rows = _rejected(root, stats)
    found = Collected(
        root, source.format, lengths, groups, points, counts, counted, stats, rejected, rejected_rows,
        read_timeline(root / PRIVATE),
    )  # fmt: skip
    _look_at_texts(found)
    return found


def _lengths(splits: dict[str, Split]) -> tuple[Lengths, dict[str, dict[str, Group]]]:
    columns: dict[str, list[Any]] = {name: [] for name in ("seconds", "text_len", "code_len", "split", "position")}
    groups: dict[str, dict[str, Group]] = {"language": {}, "speaker": {}, "split": {}}
    for number, (name, split) in enumerate(splits.items()):
        for position, entry in enumerate(split.entries()):
            record = entry.record
            seconds = record.get("duration") or record["code_len"] / 50
            values = (seconds, record["text_len"], record["code_len"], number, position)
            for column, value in zip(columns.values(), values, strict=True):
                column.append(value)
            for kind, label in (("language", record["language"]), ("speaker", record["speaker"]), ("split", name)):
                group = groups[kind].setdefault(label or "(none)", Group())
                group.samples += 1
                group.seconds += seconds
    kinds = {"seconds": np.float32}
    arrays = {name: np.array(values, kinds.get(name, np.int32)) for name, values in columns.items()}
    return Lengths(**arrays), groups


def _choose(lengths: Lengths, generator: random.Random) -> list[int]:
    """The samples to draw: all, or a random part with the extremes of each length."""
    if len(lengths) <= MOST_POINTS:
        return list(range(len(lengths)))
    chosen: set[int] = set()
    for values in (lengths.seconds, lengths.text_len, lengths.codes_per_token):
        order = np.argsort(values, kind="stable")
        chosen.update(map(int, np.concatenate([order[:EXTREMES], order[-EXTREMES:]])))
    rest = generator.sample(range(len(lengths)), MOST_POINTS)
    for index in rest:
        if len(chosen) >= MOST_POINTS:
            break
        chosen.add(index)
    return sorted(chosen)


def _points(splits: dict[str, Split], lengths: Lengths, chosen: list[int], locate: "_Locate | None") -> Points:
    names = list(splits)

    def load(index: int) -> tuple[dict[str, Any], tuple[str, str | None], np.ndarray, np.ndarray]:
        name = names[lengths.split[index]]
        sample = splits[name].sample(int(lengths.position[index]))
        record = sample.entry.record
        row = {
            "id": record["id"],
            "split": name,
            "speaker": record["speaker"] or "(none)",
            "language": record["language"] or "(none)",
            "seconds": round(float(lengths.seconds[index]), 2),
            "text_len": record["text_len"],
            "code_len": record["code_len"],
            "text": record["text"][:TEXT_WIDTH],
            "audio_path": record["audio_path"],
        }
        if locate is not None:
            row["audio"] = locate(record["audio_path"])
        emo_vec, condition = sample.arrays["emo_vec"], sample.arrays["condition"]
        said = record["text"], record["language"]
        return row, said, emo_vec.astype(np.float32), condition.astype(np.float32).mean(axis=0)

    with ThreadPoolExecutor(IO_THREADS) as pool:
        loaded = list(pool.map(load, chosen))
    rows, texts, emo_vecs, latents = zip(*loaded, strict=True)
    return Points(list(rows), list(texts), np.stack(emo_vecs), np.stack(latents))


def _count_codes(
    splits: dict[str, Split], lengths: Lengths, size: int, generator: random.Random
) -> tuple[np.ndarray, int]:
    """How often each code occurs in all samples, or in a random part of them: int64 (codebook rows,)."""
    indexes = range(len(lengths)) if len(lengths) <= MOST_CODES else generator.sample(range(len(lengths)), MOST_CODES)
    names, counts = list(splits), np.zeros(size, np.int64)

    def load(index: int) -> np.ndarray:
        codes: np.ndarray = splits[names[lengths.split[index]]].sample(int(lengths.position[index])).arrays["codes"]
        return codes

    with ThreadPoolExecutor(IO_THREADS) as pool:
        for start in range(0, len(indexes), 1024):
            for codes in pool.map(load, indexes[start : start + 1024]):
                counts += np.bincount(codes, minlength=size)[:size]
    return counts, len(indexes)


def _rejected(root: Path, stats: dict[str, Any]) -> tuple[dict[str, int], list[dict[str, Any]]]:
    """Rejections by reason, and some rows of each."""
    counts: Counter[str] = Counter()
    rows: list[dict[str, Any]] = []
    if not (root / REJECTED).is_file():
        return dict(stats.get("rejected", {})), rows
    with open(root / REJECTED, "rb") as stream:
        for number, line in enumerate(stream, start=1):
            try:
                row = json.loads(line)
                reason = str(row["reason"])
            except (ValueError, KeyError, TypeError) as error:
                raise StoreError(f"{root / REJECTED}, line {number}: {error}; run the build again to mend it") from None
            counts[reason] += 1
            if counts[reason] <= REJECTED_EACH and len(rows) < MOST_REJECTED:
                rows.append({**row, "message": str(row.get("message", ""))[:400]})
    return dict(counts.most_common()), rows


def _look_at_texts(found: Collected) -> None:
    """What rules and tokenizer make of the drawn samples' texts, where the tokenizer of the build is still there."""
    path = found.stats.get("tokenizer")
    if not isinstance(path, str) or not Path(path).is_file():
        return
    with contextlib.suppress(ConfigError, RejectedSample):  # it is another tokenizer's file by now
        tokenizer = TextTokenizer(Path(path))
        found.unknown_tokens = 0
        for row, (text, language) in zip(found.points.rows, found.points.texts, strict=True):
            tokenized = tokenizer.tokenize(text, language)
            found.texts.add(row["id"], language, text, tokenized)
            found.unknown_tokens += len(tokenized.unknown)
            for piece in tokenized.unknown:
                found.unknown.update(character for character in piece if character != "\u2581")
            found.texts_looked_at += 1


class _Locate:
    """Where a record's audio is, as a file address; None where it is not found."""

    def __init__(self, finder: AudioFinder, folder: Path | None) -> None:
        self.finder = finder
        self.folder = folder

    def __call__(self, audio: str) -> str | None:
        beside = self.folder / audio if self.folder is not None else Path(audio)
        path = beside if beside.is_file() else Path(self.finder.find(audio))
        return path.absolute().as_uri() if path.is_file() else None


def _audio_finder(root: Path) -> _Locate:
    paths = read_state_value(root, "paths") or {}
    folder = paths.get("folder")
    manifest = Path(paths.get("manifest") or root / "manifest.jsonl")
    return _Locate(AudioFinder(manifest, paths.get("audio_root")), Path(folder) if folder else None)
