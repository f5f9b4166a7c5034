"""Joins the finished parts of a build (`build --shard`) into the output that a single build would have made.

Takes the parts' output directories; artifacts are hard-linked, or copied if that is not possible, and published as in a
build, so that a merge can be killed and run again. Loads no model and reads no audio.
"""

import contextlib
import dataclasses
import errno
import heapq
import itertools
import logging
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from operator import itemgetter
from pathlib import Path
from typing import Any

from hfprep.errors import ConfigError, StoreError
from hfprep.formats.build_formats import forget_exports
from hfprep.formats.extra_fields import write_extra_fields
from hfprep.formats.pair_files import renew_pairs
from hfprep.io import atomic
from hfprep.io.chunks import chunks_of
from hfprep.io.lock import OutputLock
from hfprep.io.object_storage import check_local
from hfprep.pipeline.codebook import listed_ids
from hfprep.pipeline.logs import log_to_file
from hfprep.pipeline.parts import SUMMED, FinishedPart, read_part
from hfprep.store.layout import REJECTED, STATS, NpyOutput, PlannedRow, Publisher, Staged
from hfprep.store.listing import Listed, Listing, entry_of
from hfprep.store.state import SampleState, State
from hfprep.store.statistics import codebook_use, write_stats

log = logging.getLogger(__name__)

CHUNK_ROWS = 1024
LINK_THREADS = 8
SECONDS_PER_HOUR = 3600.0
CANNOT_LINK = {errno.EXDEV, errno.EPERM, errno.EACCES, errno.EMLINK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}


@dataclass(frozen=True)
class MergeSummary:
    """What a merge did: listed samples by split, `linked` and `copied` artifacts, samples that existed already."""

    output_dir: Path
    parts: int
    train: int
    val: int
    rejected: int
    hours: float
    linked: int
    copied: int
    reused: int


def merge(folders: Sequence[Path], output_dir: Path, *, copy: bool = False) -> MergeSummary:
    """Join finished parts into `output_dir`, or continue there; with `copy`, files are copied instead of linked.

    Raises ConfigError if a part is missing, given twice, unfinished, or has another plan, other models or other
    settings, and StoreError if files of a part are missing or incomplete.
    """
    parts = [read_part(Path(folder)) for folder in folders]
    check_parts(parts, output_dir)
    check_local(output_dir, written=True)
    parts.sort(key=lambda part: part.facts.part.index)
    output = NpyOutput(output_dir, parts[0].output.schema)
    with ExitStack() as stack:
        stack.enter_context(OutputLock(output.private / "lock"))
        stack.enter_context(log_to_file(output.private / "build.log", as_json=False))
        output.reset_work()
        stack.callback(output.remove_work)
        state = State(output.state_file, output.schema, output.work / "scan.sqlite")
        stack.callback(state.close)
        sources = [State(part.output.state_file, part.output.schema) for part in parts]
        for source in sources:
            stack.callback(source.close)
        return _Merge(parts, sources, output, state, copy).run()


def check_parts(parts: Sequence[FinishedPart], output_dir: Path) -> None:
    """Raise ConfigError unless these are all parts of one plan, each once, and none of them is the output."""
    if not parts:
        raise ConfigError("no parts are given; name the output directories of all `build --shard` runs")
    first = parts[0]
    for part in parts:
        folder = part.output.root
        if folder.resolve() == output_dir.resolve():
            raise ConfigError(f"--output-dir {str(output_dir)!r} is one of the parts; give another folder")
        differences = first.facts.differences(part.facts)
        if differences:
            raise ConfigError(
                f"{str(first.output.root)!r} and {str(folder)!r} are not parts of one build; they differ in\n  "
                + "\n  ".join(differences)
            )
    count = first.facts.part.count
    by_index: dict[int, list[str]] = {index: [] for index in range(count)}
    for part in parts:
        by_index[part.facts.part.index].append(str(part.output.root))
    missing = [f"{index}/{count}" for index, found in by_index.items() if not found]
    if missing:
        raise ConfigError(f"{len(missing)} of {count} parts are missing: {', '.join(missing[:20])}; add their folders")
    for index, found in by_index.items():
        if len(found) > 1:
            raise ConfigError(f"part {index}/{count} is given more than once: {', '.join(found)}; keep only one")


@dataclass(frozen=True, slots=True)
class _Row:
    """A planned row, the number of its part, and its state in that part."""

    planned: PlannedRow
    part: int
    sample: SampleState


@dataclass
class _Merge:
    """The steps of one merge."""

    parts: Sequence[FinishedPart]
    sources: Sequence[State]
    output: NpyOutput
    state: State
    copy: bool
    numbers: Iterator[int] = field(default_factory=itertools.count)
    linked: int = 0
    copied: int = 0
    reused: int = 0

    def run(self) -> MergeSummary:
        """Publish missing samples, then list everything in source order and write stats.json."""
        facts = self.parts[0].facts
        forget_exports(self.state)
        for key in ("settings", "paths"):
            self.state.put(key, self.sources[0].get(key))
        self.list_finished()  # manifests of a killed merge may end in an incomplete line
        val_ratio = facts.settings["val_ratio"]
        with (
            contextlib.closing(Publisher(self.output, self.state, val_ratio)) as publisher,
            ThreadPoolExecutor(LINK_THREADS) as pool,
        ):
            for chunk in self.chunks():
                staged = self.stage(chunk, pool)
                if len(publisher.publish(staged, [])) < len(staged):
                    raise StoreError(f"the file system of {self.output.root} does not accept all ids as file names")
        listed = self.list_finished()
        atomic.write_lines(self.output.root / REJECTED, self.rejected_lines())
        extra = ((row.utterance.id, row.utterance.extra) for row, _ in self.rows())
        write_extra_fields(self.output.root, extra)
        stats = self.stats(listed)
        write_stats(self.output.root / STATS, stats)
        for line in renew_pairs(self.output.root):
            log.warning("pairs: %s", line)
        return MergeSummary(
            self.output.root, len(self.parts), listed.train, listed.val, sum(stats["rejected"].values()),
            listed.seconds / SECONDS_PER_HOUR, self.linked, self.copied, self.reused,
        )  # fmt: skip

    def rows(self) -> Iterator[tuple[PlannedRow, int]]:
        """The planned rows of all parts in source order, each with the number of its part."""
        streams = (zip(part.rows(), itertools.repeat(number)) for number, part in enumerate(self.parts))
        return heapq.merge(*streams, key=lambda item: item[0].utterance.line)

    def chunks(self) -> Iterator[list[_Row]]:
        """The complete samples of all parts, in source order, in chunks."""
        for chunk in chunks_of(self.rows(), CHUNK_ROWS):
            found = []
            for number, source in enumerate(self.sources):
                mine = [row for row, part in chunk if part == number]
                samples = source.samples(row.utterance.id for row in mine)
                for row, sample in zip(mine, samples, strict=True):
                    if sample is not None and not sample.missing(row.fingerprints):
                        found.append(_Row(row, number, sample))
            found.sort(key=lambda row: row.planned.utterance.line)
            yield found

    def stage(self, chunk: Sequence[_Row], pool: ThreadPoolExecutor) -> list[Staged]:
        """Stage the chunk's missing samples; raises StoreError if a part lacks an artifact."""
        known = self.state.samples(row.planned.utterance.id for row in chunk)
        wanted = []
        for row, sample in zip(chunk, known, strict=True):
            if (
                sample is None
                or sample.missing(row.planned.fingerprints)
                or self.output.incomplete(row.planned.utterance.id, sample)
            ):
                wanted.append(row)
        self.reused += len(chunk) - len(wanted)
        brought = list(pool.map(self.stage_sample, wanted))
        self.linked += sum(linked for _, linked in brought)
        self.copied += sum(len(staged.files) - linked for staged, linked in brought)
        return [staged for staged, _ in brought]

    def stage_sample(self, row: _Row) -> tuple[Staged, int]:
        """Link or copy one sample's artifacts; returns the number of links too. Runs in a thread."""
        sample_id, part = row.planned.utterance.id, self.parts[row.part].output
        lacking = part.incomplete(sample_id, row.sample)
        if lacking:
            raise StoreError(
                f"{part.root} lists sample {sample_id!r}, but its artifacts are missing or incomplete "
                f"({', '.join(sorted(lacking))}); run that part's build again, then merge again"
            )
        files, linked, schema = {}, 0, self.output.schema
        for name in schema.by_name:
            temporary = self.output.work / f"{next(self.numbers)}-{name}"
            with atomic.explained(temporary):
                linked += self.bring(part.artifact(name, sample_id), temporary)
            files[name] = str(temporary)
        lengths = row.sample.lengths
        shapes = {column.name: schema.shape(column, lengths) for column in schema.columns}
        planned = dataclasses.replace(row.planned, need=schema.all_groups)
        return Staged(planned, files, shapes, row.sample.seconds), linked

    def bring(self, source: Path, target: Path) -> bool:
        """Make a hard link to a finished file (True), or a synced copy. Raises StoreError if it is a symbolic link."""
        if source.is_symlink():  # a part from others could include any file in this way
            raise StoreError(f"{source} is a symbolic link; run that part's build again, then merge again")
        if not self.copy:
            try:
                os.link(source, target)
                return True
            except OSError as error:
                if error.errno not in CANNOT_LINK:
                    raise
        with open(source, "rb") as reading, open(target, "wb") as writing:
            shutil.copyfileobj(reading, writing, 1 << 20)
            writing.flush()
            atomic.sync_file(writing.fileno(), target)
        return False

    def list_finished(self) -> Listed:
        """Rewrite manifests and progress file to list exactly what is complete."""
        facts = self.parts[0].facts
        with Listing(self.output, self.state, facts.settings["val_ratio"]) as listing:
            for chunk in self.chunks():
                known = self.state.samples(row.planned.utterance.id for row in chunk)
                for row, sample in zip(chunk, known, strict=True):
                    if sample is not None and not sample.missing(row.planned.fingerprints):
                        listing.add(entry_of(self.output.schema, row.planned.utterance, sample))
            return listing.listed

    def rejected_lines(self) -> Iterator[bytes]:
        """The lines of all parts' rejected.jsonl, by manifest line."""
        lines = (part.rejected_lines() for part in self.parts)
        return map(itemgetter(1), heapq.merge(*lines, key=itemgetter(0)))

    def stats(self, listed: Listed) -> dict[str, Any]:
        """The content of stats.json: counts are added up, codebook use is computed from the codes."""
        found = [part.stats() for part in self.parts]
        for part, other in zip(self.parts, found, strict=True):
            if other["versions"] != found[0]["versions"]:
                log.warning("%s was made with other versions: %s", part.output.root, other["versions"])
        rejected = Counter[str]()
        for stats in found:
            rejected.update(stats["rejected"])
        total = listed.train + listed.val
        return found[0] | {
            "total": total,
            "accepted": total,
            "train": listed.train,
            "val": listed.val,
            **{name: sum(stats[name] for stats in found) for name in SUMMED},
            "hours": round(listed.seconds / SECONDS_PER_HOUR, 6),
            "overlong": listed.overlong_by_group(self.output.schema),
            "codebook": codebook_use(self.output, listed_ids(self.output)),
            "rejected": dict(sorted(rejected.items())),
        }
