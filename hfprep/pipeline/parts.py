"""Finished parts of a build (`--shard`), with the information that is needed to join them.

Besides its features, a part keeps in its private folder its rows with their line numbers and a record of its plan,
models and settings. This module writes, withdraws and reads them; knows nothing about joining.
"""

import contextlib
import dataclasses
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from hfprep.errors import ConfigError, RejectedSample, StoreError
from hfprep.inputs.manifest.columns import UNREADABLE
from hfprep.inputs.manifest.opening import rows_sha256
from hfprep.inputs.manifest.rows import check_id
from hfprep.io import atomic
from hfprep.io.json_file import DAMAGED
from hfprep.io.object_storage import check_local
from hfprep.pipeline.config import BuildConfig, Part
from hfprep.pipeline.inputs import Inputs
from hfprep.pipeline.plan import planned_row
from hfprep.schema import Schema
from hfprep.store.fingerprints import with_numerics
from hfprep.store.layout import REJECTED, STATS, NpyOutput, OutputFolder, PlannedRow
from hfprep.store.statistics import parse_stats

PART_FORMAT = 2
RECORD, ROWS = "part.json", "part-rows.arrow"
SUMMED = ("lines_read", "capped", "pending", "out_of_memory_events")  # in stats.json
SETTINGS = (
    "language", "map", "max_samples", "val_ratio", "val_count", "drop_overlong", "hash_audio",
    "min_seconds", "max_seconds", "max_chars_per_second",
)  # fmt: skip


@dataclass(frozen=True)
class PartFacts:
    """Which part of which plan this is, and everything that must be the same in all parts.

    `schema` is the result of `Schema.record`.
    """

    part: Part
    manifest: str
    manifest_sha256: str
    models: dict[str, str]
    numerics: dict[str, Any]
    settings: dict[str, Any]
    schema: dict[str, Any]

    def differences(self, other: "PartFacts") -> list[str]:
        """One line for each difference in what must be the same: its name and both values."""
        lines = []
        if self.part.count != other.part.count:
            lines.append(f"number of parts: {self.part.count} and {other.part.count}")
        if self.manifest_sha256 != other.manifest_sha256:
            lines.append(f"manifest: {self.manifest} ({self.manifest_sha256}) and {other.manifest} "
                         f"({other.manifest_sha256})")  # fmt: skip
        for what in ("models", "numerics", "settings", "schema"):
            mine, theirs = getattr(self, what), getattr(other, what)
            for name in sorted(mine.keys() | theirs.keys()):
                if mine.get(name) != theirs.get(name):
                    lines.append(f"{name}: {mine.get(name)} and {theirs.get(name)}")
        return lines


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Raise StoreError if a file of a part cannot be read, or is damaged."""
    try:
        yield
    except (OSError, RejectedSample, *UNREADABLE, *DAMAGED) as error:
        what = f"{path} cannot be read: {type(error).__name__}: {error}"
        raise StoreError(f"{what}; run the part's `build --shard` again") from error


@dataclass(frozen=True)
class FinishedPart:
    """The output directory of a complete part."""

    output: NpyOutput
    facts: PartFacts

    def rows(self) -> Iterator[PlannedRow]:
        """The part's rows in source order, including rejected ones. Raises StoreError if they are damaged."""
        path = self.output.private / ROWS
        with _reading(path), pa.memory_map(str(path)) as source, pa.ipc.open_stream(source) as batches:
            for batch in batches:
                batch.validate(full=True)
                for row in map(planned_row, batch.to_pylist()):
                    check_id(row.utterance.id)  # it names files, and the part may not be trusted
                    yield row

    def rejected_lines(self) -> Iterator[tuple[int, bytes]]:
        """The manifest's line number and the JSON line of each rejection. Raises StoreError if they are damaged."""
        path = self.output.root / REJECTED
        with _reading(path), open(path, "rb") as stream:
            for line in stream:
                yield int(json.loads(line)["line"]), line

    def stats(self) -> dict[str, Any]:
        """The content of the part's stats.json. Raises StoreError if it is damaged."""
        path = self.output.root / STATS
        with _reading(path):
            found = parse_stats(json.loads(path.read_bytes()))
            if not {"versions", "rejected", *SUMMED} <= found.keys():
                raise ValueError("an entry is missing")
            if not all(isinstance(found[name], float | int) for name in SUMMED):
                raise TypeError("a count is not a number")
        return found


def part_facts(config: BuildConfig, inputs: Inputs) -> PartFacts:
    """The facts of the part that `config` names."""
    assert config.part is not None
    settings = with_numerics(inputs.schema, inputs.settings(config))
    numerics = {f"{group} {name}": value for group, values in settings.items()
                for name, value in values.items() if name not in inputs.sha256}  # fmt: skip
    return PartFacts(
        part=config.part,
        manifest=str(config.manifest),
        manifest_sha256=rows_sha256(config.manifest, config.field_map),
        models=inputs.sha256,
        numerics=numerics,
        settings={name: getattr(config, name) for name in SETTINGS},
        schema=inputs.schema.record(),
    )


def write_part(output: NpyOutput, rows: Path, facts: PartFacts) -> None:
    """Mark an output directory as a finished part; `rows`, the plan's file, is copied beside the record."""
    with open(rows, "rb") as source, atomic.replacing(output.private / ROWS) as target:
        shutil.copyfileobj(source, target, 1 << 20)
    record = {"format": PART_FORMAT} | dataclasses.asdict(facts) | {"part": str(facts.part)}
    atomic.write_json(output.private / RECORD, record)


def withdraw_part(output: NpyOutput) -> None:
    """Remove the record, before a run changes the output."""
    with atomic.explained(output.private):
        (output.private / RECORD).unlink(missing_ok=True)


def read_part(folder: Path) -> FinishedPart:
    """The finished part in `folder`; raises ConfigError if there is none or it is not finished."""
    check_local(folder)
    private = OutputFolder(folder).private
    path = private / RECORD
    with _reading(path), contextlib.suppress(FileNotFoundError):
        record = json.loads(path.read_bytes())
        if record.pop("format") != PART_FORMAT:
            raise StoreError(
                f"{path} was written by another version of hfprep; run the part's `build --shard` again, which keeps "
                "what is finished"
            )
        facts = PartFacts(**record | {"part": Part.parse(record["part"])})
        return FinishedPart(NpyOutput(folder, Schema.parse(facts.schema)), facts)
    lacks = "contains no finished part; run its `build --shard` again until it is complete"
    what = lacks if private.is_dir() else "is not the output directory of a build with --shard"
    raise ConfigError(f"{str(folder)!r} {what}")
