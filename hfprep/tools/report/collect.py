"""Collects a report's data: lengths of all samples, and vectors, codes and rows of a random subset.

Takes an output in any format; returns `Collected`. Counts are of all samples unless stated otherwise.
"""

import json
import random
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from hfprep.errors import ConfigError, StoreError
from hfprep.formats.formats import open_set
from hfprep.formats.manifest_paths import audio_finder
from hfprep.formats.samples import SPLITS, Sample, Split, lengths_of
from hfprep.io.json_file import DAMAGED
from hfprep.io.object_storage import check_local
from hfprep.schema import Column, Schema
from hfprep.store.layout import PRIVATE, REJECTED, STATE_FILE
from hfprep.store.state import read_value
from hfprep.store.timeline import read_timeline
from hfprep.store.values import parse_paths
from hfprep.tools.report.texts import TEXT_WIDTH, Texts, look_at_texts, tokenizer_of
from hfprep.tools.shares import NONE_GIVEN, Share, add_to

MOST_POINTS = 3000
MOST_CODES = 20_000  # samples whose codes are counted
EXTREMES = 40  # longest, shortest and most unusual samples, which are always among the points
MOST_REJECTED = 300
REJECTED_EACH = 25
IO_THREADS = 8
# Common names of files and folders, which do not identify a data set.
GENERIC_NAMES = {"manifest", "metadata", "data", "train", "dataset", "audio", "manifests"}

Locate = Callable[[str], str | None]  # from a record's audio to the URL of its file, None if it is not found


@dataclass(frozen=True, slots=True)
class Lengths:
    """Seconds (float32) and lengths by name (int32) of every sample, and its split and position.

    `pace` is codes per token, float64; None unless the schema has both.
    """

    seconds: np.ndarray
    by_name: dict[str, np.ndarray]
    split: np.ndarray
    position: np.ndarray
    pace: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.seconds)


@dataclass(frozen=True, slots=True)
class Points:
    """The samples that are drawn as points.

    rows: what is shown of each; texts: full texts with their languages; vectors: for each vector column, the mean over
    all but the last dimension, float32 (N, D).
    """

    rows: list[dict[str, Any]]
    texts: list[tuple[str, str | None]]
    vectors: dict[str, np.ndarray]


@dataclass
class Collected:
    """Everything that a report shows. `code_counts`: by column, int64 (codebooks, size)."""

    root: Path
    format: str
    schema: Schema
    lengths: Lengths
    groups: dict[str, dict[str, Share]]
    points: Points
    code_counts: dict[str, np.ndarray]
    codes_counted: int
    stats: dict[str, Any]
    rejected: dict[str, int]
    rejected_rows: list[dict[str, Any]]
    timeline: list[dict[str, Any]]
    texts: Texts = field(default_factory=Texts)
    audio_looked_at: int = 0
    signals: dict[int, dict[str, float]] = field(default_factory=dict)  # silence and clipping by point number

    @property
    def name(self) -> str:
        """The data set's name: that of its manifest, of the manifest's folders, or else of the output."""
        manifest = (read_value(self.root / STATE_FILE, "paths", parse_paths) or {}).get("manifest")
        places = [] if not manifest else [Path(manifest).stem, *(folder.name for folder in Path(manifest).parents[:2])]
        usable = (name for name in places if name and name.lower() not in GENERIC_NAMES)
        return next(usable, self.root.resolve().name)


def collect(root: Path, *, with_audio: bool = False) -> Collected:
    """Read an output. Raises StoreError if it is not an output or damaged, ConfigError if it is empty."""
    check_local(root)
    if not root.is_dir():
        raise ConfigError(f"{str(root)!r} is not a folder; give the output directory of a build, or an export")
    source = open_set(root)
    splits = {name: source.split(name) for name in SPLITS}
    lengths, groups = _lengths(source.schema, splits)
    if not len(lengths):
        raise ConfigError(f"{str(root)!r} contains no samples; there is nothing to report")
    chosen = _choose(lengths)
    locate = _locator(root) if with_audio else None
    points = _points(source.schema, splits, lengths, chosen, locate)
    stats = source.origin.stats or {}
    counts, counted = _count_codes(source.schema, splits, lengths)
    rejected, rejected_rows = _rejected(root, stats)
    texts = look_at_texts(points.rows, points.texts, tokenizer_of(source.schema, stats))
    return Collected(
        root, source.format, source.schema, lengths, groups, points, counts, counted, stats, rejected, rejected_rows,
        read_timeline(root / PRIVATE), texts,
    )  # fmt: skip


def first_of(schema: Schema, kind: str) -> Column | None:
    """The first column of a kind with a variable length."""
    return next((column for column in schema.columns if column.kind == kind and column.lengths), None)


def codes_per_token(schema: Schema, lengths: Mapping[str, np.ndarray]) -> np.ndarray | None:
    """Codes per token, float64, of samples with these lengths; None unless the schema has both."""
    tokens, codes = first_of(schema, "tokens"), first_of(schema, "codes")
    if tokens is None or codes is None:
        return None
    return np.asarray(lengths[codes.lengths[-1]] / np.maximum(lengths[tokens.lengths[-1]], 1))


def _seconds_of(schema: Schema, record: Mapping[str, Any]) -> float:
    """A sample's duration from its record, or else from its number of codes.

    Raises StoreError if a field that the report shows is damaged.
    """
    try:
        lengths_of(schema, record)
        for name in ("id", "text", "audio_path", "speaker", "language"):
            if not isinstance(record[name], str) and (name not in ("speaker", "language") or record[name] is not None):
                raise TypeError(f"{name} is {str(record[name])[:80]}")
        if record.get("duration"):
            return float(record["duration"])
        column = first_of(schema, "codes")
        return record[column.lengths[-1]] / schema.code_rate if column is not None and schema.code_rate else 0.0
    except DAMAGED as error:
        raise StoreError(
            f"the record of the sample {str(record.get('id'))[:80]!r} is damaged ({error}); run the build again"
        ) from error


def _lengths(schema: Schema, splits: dict[str, Split]) -> tuple[Lengths, dict[str, dict[str, Share]]]:
    names = [name for name in schema.lengths if name not in schema.fixed]
    columns: dict[str, list[Any]] = {name: [] for name in ("seconds", "split", "position", *names)}
    groups: dict[str, dict[str, Share]] = {"language": {}, "speaker": {}, "split": {}}
    for number, (name, split) in enumerate(splits.items()):
        for position, entry in enumerate(split.entries()):
            record = entry.record
            seconds = _seconds_of(schema, record)
            values = (seconds, number, position, *(record[length] for length in names))
            for column, value in zip(columns.values(), values, strict=True):
                column.append(value)
            for kind, label in (("language", record["language"]), ("speaker", record["speaker"]), ("split", name)):
                add_to(groups[kind], label, seconds)
    by_name = {name: np.array(columns[name], np.int32) for name in names}
    seconds_of_all = np.array(columns["seconds"], np.float32)
    split_of_all, positions = (np.array(columns[name], np.int32) for name in ("split", "position"))
    return Lengths(seconds_of_all, by_name, split_of_all, positions, codes_per_token(schema, by_name)), groups


def _choose(lengths: Lengths) -> list[int]:
    """The samples to draw: all, or a random subset with the extremes of each length."""
    if len(lengths) <= MOST_POINTS:
        return list(range(len(lengths)))
    chosen: set[int] = set()
    measures = [lengths.seconds, *lengths.by_name.values(), *([] if lengths.pace is None else [lengths.pace])]
    for values in measures:
        order = np.argsort(values, kind="stable").tolist()
        chosen.update(order[:EXTREMES], order[-EXTREMES:])
    drawn = random.Random(0).sample(range(len(lengths)), MOST_POINTS)
    rest = [index for index in drawn if index not in chosen]
    return sorted([*chosen, *rest[: max(0, MOST_POINTS - len(chosen))]])


def _sample(splits: dict[str, Split], lengths: Lengths, index: int) -> Sample:
    return splits[SPLITS[lengths.split[index]]].sample(int(lengths.position[index]))


def _points(
    schema: Schema, splits: dict[str, Split], lengths: Lengths, chosen: list[int], locate: Locate | None
) -> Points:
    vectors = schema.of_kind("vector")

    def load(index: int) -> tuple[dict[str, Any], tuple[str, str | None], list[np.ndarray]]:
        sample = _sample(splits, lengths, index)
        record = sample.entry.record
        row = {
            "id": record["id"],
            "split": SPLITS[lengths.split[index]],
            "speaker": record["speaker"] or NONE_GIVEN,
            "language": record["language"] or NONE_GIVEN,
            "seconds": round(float(lengths.seconds[index]), 2),
            **{length: record[length] for length in lengths.by_name},
            "text": record["text"][:TEXT_WIDTH],
            "audio_path": record["audio_path"],
        }
        if locate is not None:
            row["audio"] = locate(record["audio_path"])
        arrays = (sample.arrays[column.name].astype(np.float32) for column in vectors)
        means = [array.reshape(-1, array.shape[-1]).mean(axis=0) for array in arrays]
        return row, (record["text"], record["language"]), means

    with ThreadPoolExecutor(IO_THREADS) as pool:
        loaded = list(pool.map(load, chosen))
    rows, texts, means = zip(*loaded, strict=True)
    stacked = {column.name: np.stack(found) for column, found in zip(vectors, zip(*means, strict=True), strict=True)}
    return Points(list(rows), list(texts), stacked)


def _count_codes(schema: Schema, splits: dict[str, Split], lengths: Lengths) -> tuple[dict[str, np.ndarray], int]:
    """Count each code in each codebook, in all samples or in a random subset."""
    every = range(len(lengths))
    indexes = every if len(lengths) <= MOST_CODES else random.Random(0).sample(every, MOST_CODES)
    columns = [column for column in schema.of_kind("codes") if column.size is not None]
    counts: dict[str, np.ndarray] = {}
    with ThreadPoolExecutor(IO_THREADS) as pool:
        for start in range(0, len(indexes) if columns else 0, 1024):
            for sample in pool.map(partial(_sample, splits, lengths), indexes[start : start + 1024]):
                for column in columns:
                    assert column.size is not None
                    codes = sample.arrays[column.name]
                    books = codes.reshape(-1, codes.shape[-1])
                    found = np.stack([np.bincount(book, minlength=column.size)[: column.size] for book in books])
                    counts[column.name] = found + counts.get(column.name, 0)
    return counts, len(indexes)


def _rejected(root: Path, stats: dict[str, Any]) -> tuple[dict[str, int], list[dict[str, Any]]]:
    """The number of rejections by reason, and examples of each."""
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
                message = f"{root / REJECTED}, line {number}: {error}; run the build again, which rewrites it"
                raise StoreError(message) from None
            counts[reason] += 1
            if counts[reason] <= REJECTED_EACH and len(rows) < MOST_REJECTED:
                rows.append({**row, "message": str(row.get("message", ""))[:400]})
    return dict(counts.most_common()), rows


def _locator(root: Path) -> Locate:
    find = audio_finder(root)

    def locate(audio: str) -> str | None:
        path = Path(find(audio))
        return path.absolute().as_uri() if path.is_file() else None

    return locate
