"""Prompt and target pairs: for each utterance, others of the same speaker as its prompts.

Takes an npy output, writes train_pairs.jsonl and val_pairs.jsonl into it, each from its own split. Which pairs come
depends on the ids, the options and the seed alone. Keeps some bytes a record in memory, never the records.
"""

import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from hfprep.errors import ConfigError, StoreError
from hfprep.formats.formats import no_manifests
from hfprep.formats.npy import MANIFESTS, LineFile, is_npy_output
from hfprep.formats.samples import parse_entry
from hfprep.io.atomic import write_lines
from hfprep.store.layout import json_line

PAIR_MANIFESTS = {"train": "train_pairs.jsonl", "validation": "val_pairs.jsonl"}
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
    """Which pairs are made. `max_pairs` holds for each split; utterances under a minimum are no part of any pair."""

    pairs_per_target: int = 2
    min_text_len: int = 1
    min_code_len: int = 1
    max_pairs: int | None = None
    seed: int = 0
    speaker_from: str | None = None

    def __post_init__(self) -> None:
        for name in ("pairs_per_target", "max_pairs"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"--{name.replace('_', '-')} is {value}; it must be a positive number")
        speaker_reader(self.speaker_from)


@dataclass(frozen=True)
class PairCounts:
    """How many pairs a split got, of how many targets and speakers, and how many utterances found no partner."""

    pairs: int
    targets: int
    speakers: int
    alone: int


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
    """Write train_pairs.jsonl and val_pairs.jsonl into an npy output; gives the counts a split.

    Raises StoreError where there are no manifests, or where an utterance has no speaker: nothing is written then.
    """
    options = options or PairOptions()
    if not is_npy_output(output):
        raise StoreError(no_manifests(output))
    splits = {name: _Speakers.read(output / MANIFESTS[name], options) for name in PAIR_MANIFESTS}
    counts = {}
    for name, speakers in splits.items():
        chosen = speakers.choose(options)
        write_lines(output / PAIR_MANIFESTS[name], speakers.lines(chosen))
        made = sum(map(len, chosen.values()))
        alone = sum(1 for members in speakers.members.values() if len(members) < 2)
        counts[name] = PairCounts(made, len(chosen), len(speakers.members), alone)
    return counts


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

    def __init__(self, lines: LineFile, members: dict[str, list[int]]) -> None:
        self.lines_of = lines
        self.members = members

    @classmethod
    def read(cls, manifest: Path, options: PairOptions) -> "_Speakers":
        lines, members, missing = LineFile(manifest), dict[str, list[int]](), list[str]()
        speaker_of = speaker_reader(options.speaker_from)
        for index in range(len(lines)):
            record = parse_entry(lines.line(index)).record
            speaker = speaker_of(record)
            if not speaker:
                missing.append(record["id"])
            elif record["text_len"] >= options.min_text_len and record["code_len"] >= options.min_code_len:
                members.setdefault(str(speaker), []).append(index)
        if missing:
            raise StoreError(
                f"{len(missing)} of {len(lines)} utterances in {manifest} have no speaker (such as {missing[0]!r}); "
                "put `speaker` into the source manifest and build again (nothing is recomputed), or say how to read "
                "it: --speaker-from folder, --speaker-from 'id:^([^_]+)_' or --speaker-from 'audio:EXPRESSION'"
            )
        return cls(lines, members)

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

    def lines(self, chosen: dict[int, list[int]]) -> Iterator[bytes]:
        """The pair manifest's lines."""
        speaker_of = {index: speaker for speaker, members in self.members.items() for index in members}
        for target, prompts in chosen.items():
            record = parse_entry(self.lines_of.line(target)).record | {"speaker": speaker_of[target]}
            for prompt in prompts:
                yield json_line(pair_record(parse_entry(self.lines_of.line(prompt)).record, record))


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
