"""Prompt and target pairs: each utterance gets others of the same speaker as prompts.

Writes train_pairs.jsonl and val_pairs.jsonl into an npy output or a folder of .npz files, each from its split. The
choice depends only on the ids, the options and the seed. Keeps a few bytes per record in memory, not the records.
"""

import math
import random
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from hfprep.errors import ConfigError, StoreError
from hfprep.formats.formats import no_manifests, open_set
from hfprep.formats.manifest_paths import ABSOLUTE, RELATIVE, PathWriter, check_paths
from hfprep.formats.npy import MANIFESTS, is_npy_output
from hfprep.formats.npz import UTTERANCES, export_npz, is_npz_export
from hfprep.formats.pair_records import npz_pair_record, pair_record, pair_schema
from hfprep.formats.positioned import LineFile
from hfprep.formats.samples import length_in, parse_entry
from hfprep.io.atomic import check_writable, write_lines
from hfprep.io.json_file import DAMAGED
from hfprep.schema import Schema
from hfprep.store.layout import REJECTED, json_line
from hfprep.store.statistics import read_stats

PAIR_MANIFESTS = {"train": "train_pairs.jsonl", "validation": "val_pairs.jsonl"}
ELSEWHERE = "pairs can be made in another folder: hfprep {} {} DIR, then hfprep pairs DIR"
FORMS = ("auto", "arrays", "npz")
NPZ_FOLDER = "npz"
# The fewest and most text ids and codes of an utterance in pairs, by the name of the length.
Limits = Mapping[str, tuple[int, float]]
TAKEN = {*MANIFESTS.values(), *UTTERANCES.values(), REJECTED}


@dataclass(frozen=True, kw_only=True)
class PairOptions:
    """Which pairs are made, and their file names. `max_pairs` is per split; 0 means all.

    Utterances under a minimum or over a maximum are in no pair; maxima default to the model's limits in the output.
    With `cross_lingual`, every other prompt of a target, starting with the first, is in another language than the
    target if the speaker has several. With `paths` absolute, audio is searched from `audio_root`, or else as in the
    build.
    """

    pairs_per_target: int = 2
    min_text_len: int = 1
    min_code_len: int = 1
    max_text_len: int | None = None
    max_code_len: int | None = None
    max_pairs: int | None = None
    seed: int = 0
    speaker_from: str | None = None
    paths: str = RELATIVE
    audio_root: str | None = None
    cross_lingual: bool = False
    train_output_name: str = PAIR_MANIFESTS["train"]
    val_output_name: str = PAIR_MANIFESTS["validation"]

    def __post_init__(self) -> None:
        if self.max_pairs == 0:
            object.__setattr__(self, "max_pairs", None)
        for name in ("pairs_per_target", "max_pairs", "max_text_len", "max_code_len"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"--{name.replace('_', '-')} is {value}; it must be a positive number")
        speaker_reader(self.speaker_from)
        check_paths(self.paths)
        for option, name in (
            ("--train-output-name", self.train_output_name),
            ("--val-output-name", self.val_output_name),
        ):
            if PurePosixPath(name).name != name or name.startswith(".") or not name.endswith(".jsonl") or name in TAKEN:
                raise ConfigError(
                    f"{option} is {name!r}; it must be the name of a new file in the output, such as pairs.jsonl"
                )
        if self.train_output_name == self.val_output_name:
            raise ConfigError(f"--val-output-name is {self.val_output_name!r}; it must differ from --train-output-name")

    @property
    def names(self) -> dict[str, str]:
        return {"train": self.train_output_name, "validation": self.val_output_name}


@dataclass(frozen=True)
class PairCounts:
    """The numbers of pairs, targets and speakers of a split, and of speakers with a single utterance.

    `overlong` utterances, with more text ids or codes than the model has positions for, are in no pair.
    """

    pairs: int
    targets: int
    speakers: int
    alone: int
    overlong: int = 0

    def line(self) -> str:
        """The counts in words."""
        alone = f"; {self.alone} speakers have a single utterance" if self.alone else ""
        overlong = f"; {self.overlong} overlong utterances left out" if self.overlong else ""
        return f"{self.pairs} pairs, {self.targets} targets, {self.speakers} speakers{alone}{overlong}"


def speaker_reader(rule: str | None) -> Callable[[dict[str, Any]], str | None]:
    """A function that returns a record's speaker, by `rule` if the record has none. Raises ConfigError.

    Rules: `folder` (of the audio); `id:EXPRESSION`; `audio:EXPRESSION` (a regular expression's first group, or match).
    """
    if rule is None:
        return lambda record: record.get("speaker")
    kind, _, expression = rule.partition(":")
    if rule != "folder" and (kind not in ("id", "audio") or not expression):
        raise ConfigError(f"--speaker-from is {rule!r}; it must be folder, id:EXPRESSION or audio:EXPRESSION")
    try:
        pattern = re.compile(expression)
    except re.error as error:
        raise ConfigError(f"--speaker-from is {rule!r}, and its expression is wrong: {error}") from error

    def read(record: dict[str, Any]) -> str | None:
        if record.get("speaker"):
            return str(record["speaker"])
        if rule == "folder":
            return PurePosixPath(record["audio_path"]).parent.name or None
        match = pattern.search(record["id"] if kind == "id" else record["audio_path"])
        return (match[1] if pattern.groups else match[0]) or None if match else None

    return read


def write_pairs(output: Path, options: PairOptions | None = None) -> dict[str, PairCounts]:
    """Write a file of pairs per split into an npy output or a folder of .npz files; returns the counts per split.

    For .npz files, prompt and target have the same language unless `cross_lingual`. Raises StoreError, before writing,
    if there are no manifests, an utterance has no speaker, or a split has no pairs (validation may have none if it was
    disabled in the build).
    """
    options = options or PairOptions()
    npz = is_npz_export(output)
    if not npz and not is_npy_output(output):
        raise StoreError(no_manifests(output))
    if npz and options.speaker_from is not None and not options.speaker_from.startswith("id:"):
        raise ConfigError(
            f"--speaker-from is {options.speaker_from!r}, but the records of .npz files have no audio path; it must "
            "be id:EXPRESSION, or put `speaker` into the source manifest, then build and export again"
        )
    stats = read_stats(output) or {}
    limits = _limits_of(options, pair_schema(output))
    manifests = {name: output / manifest for name, manifest in (UTTERANCES if npz else MANIFESTS).items()}
    apart = npz and not options.cross_lingual
    splits = {
        name: _Speakers(manifest, options.speaker_from, limits, apart=apart) for name, manifest in manifests.items()
    }
    chosen = {name: speakers.choose(options) for name, speakers in splits.items()}
    _check_pairs(manifests, splits, chosen, stats)
    folder = output.absolute() if options.paths == ABSOLUTE else None
    make = partial(npz_pair_record, folder=folder) if npz else pair_maker(output, options)
    counts = {}
    for name, speakers in splits.items():
        write_lines(output / options.names[name], speakers.lines(chosen[name], make))
        counts[name] = speakers.counts(chosen[name])
    return counts


def folder_for_pairs(output: Path, form: str) -> Path:
    """The folder for the pairs: the output, or for the form npz its `npz` folder, which is written first.

    Raises ConfigError if the form is unknown or does not match the folder.
    """
    if form not in FORMS:
        raise ConfigError(f"--form is {form!r}; it must be {', '.join(FORMS)}")
    if form == "arrays" and is_npz_export(output):
        raise ConfigError(f"--form is 'arrays', but {output} contains .npz files; give the output of the build")
    if is_npz_export(output):
        check_writable(output, ELSEWHERE.format("export-npz", "OUT"))
        return output
    if form != "npz":
        check_writable(output, ELSEWHERE.format("export-manifests", output))
        return output
    check_writable(output, ELSEWHERE.format("export-npz", output))
    export_npz(open_set(output), output / NPZ_FOLDER)
    return output / NPZ_FOLDER


PairMaker = Callable[[dict[str, Any], dict[str, Any]], dict[str, Any]]


def pair_maker(output: Path, options: PairOptions | None) -> PairMaker:
    """A function from the records of a prompt and a target to the record of the pair, with the paths of `options`."""
    schema = pair_schema(output)
    if options is None or options.paths != ABSOLUTE:
        return partial(pair_record, schema)
    write = PathWriter(output, output, ABSOLUTE, None if options.audio_root is None else Path(options.audio_root))
    return lambda prompt, target: write(pair_record(schema, prompt, target))


def _check_pairs(
    manifests: dict[str, Path],
    splits: dict[str, "_Speakers"],
    chosen: dict[str, dict[int, list[int]]],
    stats: dict[str, Any],
) -> None:
    """Raise StoreError if a split that should have pairs has none."""
    for name, speakers in splits.items():
        wanted = name == "train" or stats.get("settings", {}).get("val_ratio") != 0
        if wanted and not chosen[name]:
            raise StoreError(
                f"{manifests[name]} gives no pairs: of its {len(speakers.lines_of)} samples, no two are of the same "
                "speaker, long enough and not overlong. Build again with another --val-ratio, or with --val-count N "
                "(nothing is computed again)"
            )


def _limits_of(options: PairOptions, schema: Schema) -> Limits:
    known: dict[str, float] = dict(schema.limits)
    return {
        "text_len": (options.min_text_len, options.max_text_len or known.get("text_len", math.inf)),
        "code_len": (options.min_code_len, options.max_code_len or known.get("code_len", math.inf)),
    }


class _Speakers:
    """Line numbers of a manifest by speaker, in source order; with `apart`, by speaker and language.

    `languages` has the language of each line.
    """

    def __init__(self, manifest: Path, speaker_from: str | None, limits: Limits, *, apart: bool) -> None:
        self.lines_of = LineFile(manifest)
        self.members: dict[tuple[str, str], list[int]] = {}
        self.languages: list[str] = []
        self.overlong = 0
        missing, speaker_of = [], speaker_reader(speaker_from)
        for index, line in enumerate(self.lines_of.lines()):
            try:
                record = parse_entry(line).record
                sample_id, speaker = record["id"], speaker_of(record)
                lengths = {name: length_in(record, name) for name in limits if name in record}
            except DAMAGED as error:
                message = f"{manifest}, line {index + 1}: {error}; run the build again to repair it"
                raise StoreError(message) from None
            language = str(record.get("language") or record.get("lang") or "").lower()
            self.languages.append(sys.intern(language))
            if not speaker:
                missing.append(sample_id)
            elif any(length > limits[name][1] for name, length in lengths.items()):
                self.overlong += 1
            elif all(length >= limits[name][0] for name, length in lengths.items()):
                self.members.setdefault((str(speaker), language if apart else ""), []).append(index)
        if missing:
            raise StoreError(
                f"{len(missing)} of {len(self.lines_of)} utterances in {manifest} have no speaker (such as "
                f"{missing[0]!r}); put `speaker` into the source manifest and build again (nothing is recomputed), or "
                "say how to read it: --speaker-from folder, --speaker-from 'id:^([^_]+)_' or --speaker-from "
                "'audio:EXPRESSION'"
            )

    def choose(self, options: PairOptions) -> dict[int, list[int]]:
        """The prompts of each target, as line numbers; targets in source order."""
        most = {
            group: len(members) * min(options.pairs_per_target, len(members) - 1)
            for group, members in self.members.items()
        }
        shares = _even_shares(most, options.max_pairs)
        chosen: dict[int, list[int]] = {}
        for group, members in self.members.items():
            seed = ":".join(filter(None, (str(options.seed), *group)))
            generator = random.Random(seed)
            if options.cross_lingual and len({self.languages[index] for index in members}) > 1:
                chosen |= cross_lingual_pairs(members, self.languages, shares[group], generator)
            else:
                chosen |= speaker_pairs(members, shares[group], generator)
        return dict(sorted(chosen.items()))

    def counts(self, chosen: dict[int, list[int]]) -> PairCounts:
        alone = sum(1 for members in self.members.values() if len(members) < 2)
        speakers = len({speaker for speaker, _ in self.members})
        return PairCounts(sum(map(len, chosen.values())), len(chosen), speakers, alone, self.overlong)

    def lines(self, chosen: dict[int, list[int]], make: PairMaker) -> Iterator[bytes]:
        speaker_of = {index: speaker for (speaker, _), members in self.members.items() for index in members}
        for target, prompts in chosen.items():
            record = parse_entry(self.lines_of.line(target)).record | {"speaker": speaker_of[target]}
            for prompt in prompts:
                yield json_line(make(parse_entry(self.lines_of.line(prompt)).record, record))


def _even_shares(most: dict[tuple[str, str], int], total: int | None) -> dict[tuple[str, str], int]:
    """The number of pairs per speaker: as even as possible, at most `most`, `total` in all."""
    if total is None or total >= sum(most.values()):
        return most
    shares, left = {}, total
    for done, (speaker, available) in enumerate(sorted(most.items(), key=lambda item: (item[1], item[0]))):
        shares[speaker] = min(available, left // (len(most) - done))
        left -= shares[speaker]
    return shares


def speaker_pairs(members: Sequence[int], count: int, generator: random.Random) -> dict[int, list[int]]:
    """`count` distinct pairs of a speaker, prompts by target: all targets get a first prompt, then a second."""
    order = generator.sample(members, len(members))
    pairs: dict[int, list[int]] = {}
    offsets = generator.sample(range(1, len(order)), len(order) - 1) if len(order) > 1 else []
    for number in range(count):
        place, lap = number % len(order), number // len(order)
        prompt = order[(place + offsets[lap]) % len(order)]
        pairs.setdefault(order[place], []).append(prompt)
    return pairs


def cross_lingual_pairs(
    members: Sequence[int], languages: Sequence[str], count: int, generator: random.Random
) -> dict[int, list[int]]:
    """The same for a speaker of several languages: a target's first prompt is in another one, its second in the same.

    When one kind runs out, the other is used. `languages` is indexed by position.
    """
    order = generator.sample(members, len(members))
    own: dict[str, list[int]] = {}
    for member in order:
        own.setdefault(languages[member], []).append(member)
    others = {language: [member for member in order if languages[member] != language] for language in own}
    ranks = {member: rank for group in own.values() for rank, member in enumerate(group)}
    pairs: dict[int, list[int]] = {}
    for number in range(count):
        target, lap = order[number % len(order)], number // len(order)
        same, other, rank = own[languages[target]], others[languages[target]], ranks[target]
        crossed = _crossed(lap, len(same) - 1, len(other))
        if _crossed(lap + 1, len(same) - 1, len(other)) > crossed:
            prompt = other[(rank + crossed) % len(other)]
        else:
            prompt = same[(rank + 1 + lap - crossed) % len(same)]
        pairs.setdefault(target, []).append(prompt)
    return pairs


def _crossed(laps: int, same: int, other: int) -> int:
    """The number of a target's first `laps` prompts that are in another language."""
    return min(max((laps + 1) // 2, laps - same), other)
