"""Prompt and target pairs: each utterance gets others of the same speaker as prompts.

Writes train_pairs.jsonl and val_pairs.jsonl into an npy output or a folder of .npz files, each from its split. The
choice depends only on the ids, the options and the seed. Keeps a few bytes per record in memory, not the records.
"""

import random
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from hfprep.errors import ConfigError, StoreError
from hfprep.formats.formats import no_manifests, open_set
from hfprep.formats.manifest_paths import ABSOLUTE, RELATIVE, PathWriter, check_paths
from hfprep.formats.npy import MANIFESTS, LineFile, is_npy_output
from hfprep.formats.npz import UTTERANCES, export_npz, is_npz_export
from hfprep.formats.pair_choice import cross_lingual_pairs, speaker_pairs
from hfprep.formats.pair_records import npz_pair_record, pair_record, pair_schema
from hfprep.formats.samples import length_in, parse_entry, parse_schema
from hfprep.io.atomic import check_writable, write_lines
from hfprep.io.json_file import DAMAGED
from hfprep.store.first_version import first_schema
from hfprep.store.layout import REJECTED, json_line
from hfprep.store.statistics import read_stats

PAIR_MANIFESTS = {"train": "train_pairs.jsonl", "validation": "val_pairs.jsonl"}
ELSEWHERE = "pairs can be made in another folder: hfprep {} {} DIR, then hfprep pairs DIR"
FORMS = ("auto", "arrays", "npz")
NPZ_FOLDER = "npz"
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
        """The file names by split."""
        return {"train": self.train_output_name, "validation": self.val_output_name}

    @property
    def audio_folder(self) -> Path | None:
        """The folder that audio paths are relative to."""
        return None if self.audio_root is None else Path(self.audio_root)


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
    limits = _Limits.of(options, stats)
    manifests = {name: output / manifest for name, manifest in (UTTERANCES if npz else MANIFESTS).items()}
    apart = npz and not options.cross_lingual
    splits = {name: _Speakers.read(manifest, options, limits, apart=apart) for name, manifest in manifests.items()}
    chosen = {name: speakers.choose(options) for name, speakers in splits.items()}
    _check_pairs(manifests, splits, chosen, stats)
    make = _npz_maker(output, options) if npz else _maker(output, options)
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


def path_writer(output: Path, options: PairOptions) -> PathWriter | None:
    """What makes the paths in pairs absolute, if that is requested."""
    return PathWriter(output, output, ABSOLUTE, options.audio_folder) if options.paths == ABSOLUTE else None


PairMaker = Callable[[dict[str, Any], dict[str, Any]], dict[str, Any]]


def _maker(output: Path, options: PairOptions) -> PairMaker:
    """A function from the records of a prompt and a target to the record of the pair."""
    schema = pair_schema(output)
    write = path_writer(output, options)

    def make(prompt: dict[str, Any], target: dict[str, Any]) -> dict[str, Any]:
        pair = pair_record(schema, prompt, target)
        return pair if write is None else write(pair)

    return make


def _npz_maker(output: Path, options: PairOptions) -> PairMaker:
    """The same for .npz files."""
    folder = output.absolute() if options.paths == ABSOLUTE else None
    return lambda prompt, target: npz_pair_record(prompt, target, folder)


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


@dataclass(frozen=True)
class _Limits:
    """The most text ids and codes of an utterance in pairs; None if the samples do not have the length."""

    text_len: int | None
    code_len: int | None

    @classmethod
    def of(cls, options: PairOptions, stats: dict[str, Any]) -> "_Limits":
        said = (parse_schema(stats.get("schema")) or first_schema(0)).limits
        return cls(options.max_text_len or said.get("text_len"), options.max_code_len or said.get("code_len"))

    def exceeded(self, record: dict[str, Any]) -> bool:
        """Whether an utterance exceeds a limit."""
        limits = {"text_len": self.text_len, "code_len": self.code_len}
        return any(length_in(record, name, 0) > most for name, most in limits.items() if most is not None)


def _long_enough(record: dict[str, Any], options: PairOptions) -> bool:
    minima = {"text_len": options.min_text_len, "code_len": options.min_code_len}
    return all(length_in(record, name, least) >= least for name, least in minima.items())


class _Speakers:
    """Line numbers of a manifest by speaker, in source order; with `apart`, by speaker and language.

    `languages` has the language of each line.
    """

    def __init__(self, lines: LineFile) -> None:
        self.lines_of = lines
        self.members: dict[tuple[str, str], list[int]] = {}
        self.languages: list[str] = []
        self.overlong = 0

    @classmethod
    def read(cls, manifest: Path, options: PairOptions, limits: _Limits, *, apart: bool) -> "_Speakers":
        lines, missing = LineFile(manifest), list[str]()
        speakers, speaker_of = cls(lines), speaker_reader(options.speaker_from)
        for index in range(len(lines)):
            try:
                record = parse_entry(lines.line(index)).record
                sample_id, speaker = record["id"], speaker_of(record)
                overlong, long_enough = limits.exceeded(record), _long_enough(record, options)
            except DAMAGED as error:
                message = f"{manifest}, line {index + 1}: {error}; run the build again to repair it"
                raise StoreError(message) from None
            language = str(record.get("language") or record.get("lang") or "").lower()
            speakers.languages.append(sys.intern(language))
            if not speaker:
                missing.append(sample_id)
            elif overlong:
                speakers.overlong += 1
            elif long_enough:
                speakers.members.setdefault((str(speaker), language if apart else ""), []).append(index)
        if missing:
            raise StoreError(
                f"{len(missing)} of {len(lines)} utterances in {manifest} have no speaker (such as {missing[0]!r}); "
                "put `speaker` into the source manifest and build again (nothing is recomputed), or say how to read "
                "it: --speaker-from folder, --speaker-from 'id:^([^_]+)_' or --speaker-from 'audio:EXPRESSION'"
            )
        return speakers

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
        """The counts for these choices."""
        alone = sum(1 for members in self.members.values() if len(members) < 2)
        speakers = len({speaker for speaker, _ in self.members})
        return PairCounts(sum(map(len, chosen.values())), len(chosen), speakers, alone, self.overlong)

    def lines(self, chosen: dict[int, list[int]], make: PairMaker) -> Iterator[bytes]:
        """The lines of the pair file."""
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
