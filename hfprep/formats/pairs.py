"""Prompt and target pairs: for each utterance, others of the same speaker as its prompts.

Takes an npy output, writes train_pairs.jsonl and val_pairs.jsonl into it, each from its own split. Which pairs come
depends on the ids, the options and the seed alone. Keeps some bytes a record in memory, never the records.
"""

import json
import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from hfprep.errors import ConfigError, StoreError
from hfprep.formats.formats import no_manifests
from hfprep.formats.manifest_paths import ABSOLUTE, RELATIVE, PathWriter, check_paths
from hfprep.formats.npy import MANIFESTS, LineFile, is_npy_output
from hfprep.formats.samples import parse_entry
from hfprep.io.atomic import write_lines
from hfprep.store.first_version import first_schema
from hfprep.store.layout import REJECTED, STATS, json_line

PAIR_MANIFESTS = {"train": "train_pairs.jsonl", "validation": "val_pairs.jsonl"}
TAKEN = {*MANIFESTS.values(), REJECTED}
# Which half of a pair an array comes from, and the field that names its file (the trainer's own choice: the voice and
# the emotion are the prompt's, what is said is the target's).
PAIR_ARRAYS = {
    "text_ids": ("target", "target_text_ids_path"),
    "codes": ("target", "target_codes_path"),
    "condition": ("prompt", "prompt_condition_path"),
    "emo_vec": ("prompt", "prompt_emo_vec_path"),
}


@dataclass(frozen=True, kw_only=True)
class PairOptions:
    """Which pairs are made, and what they are called. `max_pairs` holds for each split; 0 stands for all.

    Utterances under a minimum or over a maximum are in no pair; a maximum that is not given is the model's own, as the
    output says it. With `paths` absolute, audio is looked for from `audio_root`, else as the build found it.
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
            raise ConfigError(
                f"--val-output-name is {self.val_output_name!r}; it must be another than --train-output-name"
            )

    @property
    def names(self) -> dict[str, str]:
        """The files' names by split."""
        return {"train": self.train_output_name, "validation": self.val_output_name}

    @property
    def audio_folder(self) -> Path | None:
        """The folder that audio paths start from."""
        return None if self.audio_root is None else Path(self.audio_root)


@dataclass(frozen=True)
class PairCounts:
    """How many pairs a split got, of how many targets and speakers, and how many utterances found no partner.

    `overlong` utterances have more text ids or codes than the model has positions for, and are in no pair.
    """

    pairs: int
    targets: int
    speakers: int
    alone: int
    overlong: int = 0


def speaker_reader(rule: str | None) -> Callable[[dict[str, Any]], str | None]:
    """How a record without a speaker gets one: from the folder of its audio, or by an expression; ConfigError.

    Rules: `folder`; `id:EXPRESSION`; `audio:EXPRESSION` (the first group of a regular expression, else all of it).
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
    """Write a file of pairs for each split into an npy output; gives the counts a split.

    Raises StoreError where there are no manifests, where an utterance has no speaker, or where a split comes out
    without a pair (but for validation, where the build was told to have none): nothing is written then.
    """
    options = options or PairOptions()
    if not is_npy_output(output):
        raise StoreError(no_manifests(output))
    stats = _stats(output)
    limits = _Limits.of(options, stats)
    splits = {name: _Speakers.read(output / MANIFESTS[name], options, limits) for name in PAIR_MANIFESTS}
    chosen = {name: speakers.choose(options) for name, speakers in splits.items()}
    _check_pairs(output, splits, chosen, stats)
    write = PathWriter(output, output, ABSOLUTE, options.audio_folder) if options.paths == ABSOLUTE else None
    counts = {}
    for name, speakers in splits.items():
        write_lines(output / options.names[name], speakers.lines(chosen[name], write))
        made = sum(map(len, chosen[name].values()))
        alone = sum(1 for members in speakers.members.values() if len(members) < 2)
        counts[name] = PairCounts(made, len(chosen[name]), len(speakers.members), alone, speakers.overlong)
    return counts


def _check_pairs(
    output: Path, splits: dict[str, "_Speakers"], chosen: dict[str, dict[int, list[int]]], stats: dict[str, Any]
) -> None:
    """StoreError where a split that should have pairs has none."""
    for name, speakers in splits.items():
        wanted = name == "train" or stats.get("settings", {}).get("val_ratio") != 0
        if wanted and not chosen[name]:
            raise StoreError(
                f"{output / MANIFESTS[name]} gives no pairs: of its {len(speakers.lines_of)} samples no two are of one "
                "speaker, long enough and not overlong. Build again with another --val-ratio, or with --val-count N "
                "(nothing is computed again)"
            )


def _stats(output: Path) -> dict[str, Any]:
    """What the build says of its output; empty where it says nothing."""
    try:
        stats = json.loads((output / STATS).read_bytes())
    except (OSError, ValueError):
        return {}
    return stats if isinstance(stats, dict) else {}


@dataclass(frozen=True)
class _Limits:
    """Text ids and codes beyond which an utterance is overlong."""

    text_len: int
    code_len: int

    @classmethod
    def of(cls, options: PairOptions, stats: dict[str, Any]) -> "_Limits":
        said = (stats.get("schema") or {}).get("limits") or first_schema(0).limits
        return cls(options.max_text_len or said["text_len"], options.max_code_len or said["code_len"])

    def exceeded(self, record: dict[str, Any]) -> bool:
        return bool(record["text_len"] > self.text_len or record["code_len"] > self.code_len)


def pair_record(prompt: dict[str, Any], target: dict[str, Any]) -> dict[str, Any]:
    """The object that stands for a pair, from the manifest records of its two utterances."""
    return {
        "id": f"{target['id']}__{prompt['id']}",
        "speaker": target["speaker"],
        "prompt_id": prompt["id"],
        "prompt_audio_path": prompt["audio_path"],
        "prompt_condition_path": prompt["condition_path"],
        "prompt_condition_len": prompt["condition_len"],
        "prompt_emo_vec_path": prompt["emo_vec_path"],
        "prompt_duration": prompt["duration"],
        "prompt_language": prompt["language"],
        "target_id": target["id"],
        "target_audio_path": target["audio_path"],
        "target_text": target["text"],
        "target_text_ids_path": target["text_ids_path"],
        "target_text_len": target["text_len"],
        "target_codes_path": target["codes_path"],
        "target_code_len": target["code_len"],
        "target_emo_vec_path": target["emo_vec_path"],
        "target_language": target["language"],
    }


class _Speakers:
    """Line numbers of a manifest by speaker, in source order."""

    def __init__(self, lines: LineFile, members: dict[str, list[int]], overlong: int) -> None:
        self.lines_of = lines
        self.members = members
        self.overlong = overlong

    @classmethod
    def read(cls, manifest: Path, options: PairOptions, limits: _Limits) -> "_Speakers":
        lines, members, missing = LineFile(manifest), dict[str, list[int]](), list[str]()
        speaker_of, overlong = speaker_reader(options.speaker_from), 0
        for index in range(len(lines)):
            try:
                record = parse_entry(lines.line(index)).record
            except ValueError as error:
                raise StoreError(f"{manifest}, line {index + 1}: {error}; run the build again to repair it") from None
            speaker = speaker_of(record)
            if not speaker:
                missing.append(record["id"])
            elif limits.exceeded(record):
                overlong += 1
            elif record["text_len"] >= options.min_text_len and record["code_len"] >= options.min_code_len:
                members.setdefault(str(speaker), []).append(index)
        if missing:
            raise StoreError(
                f"{len(missing)} of {len(lines)} utterances in {manifest} have no speaker (such as {missing[0]!r}); "
                "put `speaker` into the source manifest and build again (nothing is recomputed), or say how to read "
                "it: --speaker-from folder, --speaker-from 'id:^([^_]+)_' or --speaker-from 'audio:EXPRESSION'"
            )
        return cls(lines, members, overlong)

    def choose(self, options: PairOptions) -> dict[int, list[int]]:
        """Prompts of each target, as line numbers, targets in source order."""
        most = {
            speaker: len(members) * min(options.pairs_per_target, len(members) - 1)
            for speaker, members in self.members.items()
        }
        shares = _even_shares(most, options.max_pairs)
        chosen: dict[int, list[int]] = {}
        for speaker, members in self.members.items():
            for target, prompts in _speaker_pairs(members, shares[speaker], f"{options.seed}:{speaker}").items():
                chosen[target] = prompts
        return dict(sorted(chosen.items()))

    def lines(self, chosen: dict[int, list[int]], write: PathWriter | None) -> Iterator[bytes]:
        """The pair manifest's lines, their paths as `write` has them."""
        speaker_of = {index: speaker for speaker, members in self.members.items() for index in members}
        for target, prompts in chosen.items():
            record = parse_entry(self.lines_of.line(target)).record | {"speaker": speaker_of[target]}
            for prompt in prompts:
                pair = pair_record(parse_entry(self.lines_of.line(prompt)).record, record)
                yield json_line(pair if write is None else write(pair))


def _even_shares(most: dict[str, int], total: int | None) -> dict[str, int]:
    """How many pairs each speaker gives: as even as can be, none more than it has, `total` together."""
    if total is None or total >= sum(most.values()):
        return most
    shares, left = {}, total
    for done, (speaker, available) in enumerate(sorted(most.items(), key=lambda item: (item[1], item[0]))):
        shares[speaker] = min(available, left // (len(most) - done))
        left -= shares[speaker]
    return shares


def _speaker_pairs(members: Sequence[int], count: int, seed: str) -> dict[int, list[int]]:
    """`count` different pairs of one speaker: every target gets a first prompt before any gets a second."""
    generator = random.Random(seed)
    order = generator.sample(members, len(members))
    pairs: dict[int, list[int]] = {}
    offsets = generator.sample(range(1, len(order)), len(order) - 1) if len(order) > 1 else []
    for number in range(count):
        place, lap = number % len(order), number // len(order)
        prompt = order[(place + offsets[lap]) % len(order)]
        pairs.setdefault(order[place], []).append(prompt)
    return pairs
