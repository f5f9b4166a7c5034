"""Tracks an output's pair files, which manifests they were made from, and whether they are still valid.

Writing pairs records their names, options and the SHA-256 of the manifests in `.hfprep/pairs.json`. Code that changes
an output calls `renew_pairs` at the end.
"""

import contextlib
import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hfprep.errors import HfprepError
from hfprep.formats.npy import MANIFESTS, is_npy_output
from hfprep.formats.npz import is_npz_export
from hfprep.formats.pairs import PAIR_MANIFESTS, PairCounts, PairMaker, PairOptions, pair_maker, write_pairs
from hfprep.formats.positioned import LineFile
from hfprep.formats.samples import parse_entry
from hfprep.io.atomic import write_json
from hfprep.io.file_hashes import sha256_file
from hfprep.io.json_file import DAMAGED, read_json
from hfprep.store.layout import PRIVATE

RECORD = "pairs.json"


@dataclass(frozen=True)
class PairSet:
    """The options of a set of pair files, and the SHA-256 of the manifests that they were made from, by split."""

    options: PairOptions
    manifests: dict[str, str]


@dataclass(frozen=True)
class PairProblem:
    """A pair that does not match its records: file, line, id, and what is wrong."""

    file: str
    line: int
    id: str | None
    message: str


def make_pairs(output: Path, options: PairOptions) -> dict[str, PairCounts]:
    """Write pairs and record their options (not for .npz files); raises as `write_pairs` does."""
    if is_npz_export(output):
        return write_pairs(output, options)
    before = manifest_hashes(output) if is_npy_output(output) else {}
    counts = write_pairs(output, options)
    others = [made for made in known_pairs(output) if made.options.names != options.names]
    _remember(output, [*others, PairSet(options, before)])
    return counts


def known_pairs(output: Path) -> list[PairSet]:
    """The recorded pair sets; empty if there is no record or it cannot be read."""
    try:
        return read_json(output / PRIVATE / RECORD, _parse_sets, "make the pairs again")
    except (OSError, HfprepError):
        return []


def _parse_sets(record: Any) -> list[PairSet]:
    """The recorded pair sets. Raises an error for anything else."""
    sets = [PairSet(PairOptions(**made["options"]), dict(made["manifests"])) for made in record["sets"]]
    if not all(isinstance(name, str) for made in sets for name in made.options.names.values()):
        raise TypeError("the name of a file is not text")
    return sets


def pair_files(output: Path) -> dict[str, str]:
    """Existing pair files as {file name: split}: recorded ones, and those with the default names."""
    names = {name: split for made in known_pairs(output) for split, name in made.options.names.items()}
    names |= {name: split for split, name in PAIR_MANIFESTS.items()}
    return {name: split for name, split in names.items() if (output / name).is_file()}


def renew_pairs(output: Path) -> list[str]:
    """Make outdated pairs again, or remove them; returns a line for each set.

    Files without a record are removed if any of their pairs is not valid.
    """
    lines, kept = [], []
    present = manifest_hashes(output) if is_npy_output(output) else {}
    known = known_pairs(output)
    for made in known:
        if made.manifests == present:
            kept.append(made)
            continue
        names = ", ".join(made.options.names.values())
        try:
            counts = write_pairs(output, made.options)
        except HfprepError as error:
            _remove(output, made.options.names.values())
            lines.append(f"removed {names}: the samples have changed, and pairs can no longer be made: {error}")
        else:
            kept.append(PairSet(made.options, present))
            pairs = sum(count.pairs for count in counts.values())
            lines.append(f"made {names} again, because the samples have changed: {pairs} pairs")
    if kept != known:
        _remember(output, kept)
    remembered = {name for made in known for name in made.options.names.values()}
    unknown = [name for name in pair_files(output) if name not in remembered]
    if any(next(pair_problems(output, name), None) for name in unknown):
        _remove(output, unknown)
        lines.append(f"removed {', '.join(unknown)}: the samples have changed; make the pairs again")
    return lines


def pair_problems(output: Path, name: str) -> Iterator[PairProblem]:
    """Compare all fields of each pair in a file with the records of its two utterances."""
    split = pair_files(output)[name]
    manifest = output / MANIFESTS[split]
    if not manifest.is_file():
        yield PairProblem(name, 1, None, f"its manifest {manifest.name} does not exist")
        return
    made = next((made for made in known_pairs(output) if name in made.options.names.values()), None)
    records = _Records(manifest, pair_maker(output, None if made is None else made.options))
    for number, line in enumerate(LineFile(output / name).lines(), start=1):
        try:
            pair = json.loads(line)
            pair_id, message = pair["id"], records.problem(pair)
        except DAMAGED as error:
            pair_id, message = None, f"is not a pair ({error!r})"
        if message is not None:
            yield PairProblem(name, number, pair_id if isinstance(pair_id, str) else None, message)


def manifest_hashes(output: Path) -> dict[str, str]:
    """The SHA-256 of both manifests, by split."""
    return {split: sha256_file(output / name) for split, name in MANIFESTS.items()}


class _Records:
    """The records of a manifest by id, read from the file on demand; lines without an id are in no valid pair."""

    def __init__(self, manifest: Path, make: PairMaker) -> None:
        self._name = manifest.name
        self._make = make
        self._lines = LineFile(manifest)
        self._places: dict[str, int] = {}
        for index, line in enumerate(self._lines.lines()):
            with contextlib.suppress(*DAMAGED):
                sample_id = parse_entry(line).record["id"]
                if isinstance(sample_id, str):
                    self._places[sample_id] = index

    def problem(self, pair: dict[str, Any]) -> str | None:
        """What is wrong with a pair; None if it equals the pair that its records give."""
        found = {}
        for role in ("prompt", "target"):
            place = self._places.get(pair[f"{role}_id"])
            if place is None:
                return f"{role}_id {pair[f'{role}_id']!r} is not in {self._name}"
            found[role] = parse_entry(self._lines.line(place)).record
        expected = self._make(found["prompt"], found["target"] | {"speaker": pair["speaker"]})
        other = [name for name in expected if pair.get(name) != expected[name]]
        if not other:
            return None
        return f"{other[0]} is {pair.get(other[0])!r}, but {self._name} says {expected[other[0]]!r}"


def _remove(output: Path, names: Any) -> None:
    for name in names:
        (output / name).unlink(missing_ok=True)


def _remember(output: Path, sets: list[PairSet]) -> None:
    content = [{"options": dataclasses.asdict(made.options), "manifests": made.manifests} for made in sets]
    write_json(output / PRIVATE / RECORD, {"sets": content})
