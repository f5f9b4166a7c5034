"""Checks an exported set (Arrow, WebDataset): shards, records, arrays, counts.

Returns `Findings` and, for repairs, the broken shard files. Read-only.
"""

import contextlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hfprep.errors import StoreError
from hfprep.formats.arrow import FORMAT_NAME as ARROW
from hfprep.formats.arrow import STATE_FILE, ArrowSet, split_files
from hfprep.formats.index import INDEX, PLACES, Shard, read_index, shards_in
from hfprep.formats.samples import SPLITS, SampleSet, Split
from hfprep.formats.webdataset import WebDatasetSet
from hfprep.io.file_hashes import sha256_file
from hfprep.store.layout import is_validation
from hfprep.tools.verify.arrays import check_array
from hfprep.tools.verify.faults import FaultKind, Findings
from hfprep.tools.verify.listing import record_problem

UNREADABLE = (StoreError, OSError, ValueError, KeyError, IndexError, TypeError, EOFError, MemoryError)


@dataclass
class ExportedCheck:
    """Checks an exported set."""

    source: SampleSet
    workers: int
    findings: Findings = field(default_factory=Findings)
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(SPLITS, 0))
    split_of: dict[str, tuple[str, str]] = field(default_factory=dict)  # split and place by id
    listed: set[str] = field(default_factory=set)  # files of shards
    broken_files: set[str] = field(default_factory=set)
    readable: list[Split] = field(default_factory=list)
    index: dict[str, Any] | None = None
    stats: dict[str, Any] = field(default_factory=dict)  # of the build that the set was made from

    def run(self) -> Findings:
        """Check every shard and every sample."""
        self.stats = self._stats()
        self.index = self._index()
        for name in SPLITS:
            for file, split in self._shards(name):
                self.readable.append(split)
                self._check_split(name, file, split)
            self._check_places(name)
        if self.stats:
            expected = {"train": self.stats.get("train"), "validation": self.stats.get("val")}
            for name, count in self.counts.items():
                if expected[name] != count and not self.broken_files:
                    message = f"has {count} samples, but the build that it was made from had {expected[name]}"
                    self.findings.add(FaultKind.STATS_DISAGREE, name, message)
        self._check_unlisted()
        return self.findings

    def _stats(self) -> dict[str, Any]:
        try:
            return self.source.origin.stats or {}
        except UNREADABLE as error:
            self.findings.add(FaultKind.FILE_INVALID, "provenance", f"cannot be read: {error}")
            return {}

    def _index(self) -> dict[str, Any] | None:
        """The index of the shards; Arrow sets written by an earlier hfprep or by `datasets` have none."""
        if isinstance(self.source, WebDatasetSet):
            return self.source.index
        index = read_index(self.source.root, ARROW)
        if index is None and (self.source.root / INDEX).exists():
            self._broken(INDEX, FaultKind.FILE_INVALID, "is not an index of hfprep; export or fetch it again")
        elif index is None:
            self.findings.note(f"there is no {INDEX}, so the checksums of the shards cannot be verified")
        return index

    def _shards(self, name: str) -> Iterator[tuple[str, Split]]:
        """The readable parts of a split, each with its file; the others become faults."""
        if isinstance(self.source, WebDatasetSet):
            yield from self._tar_shards(self.source, name)
        elif isinstance(self.source, ArrowSet):
            yield from self._arrow_shards(self.source, name)

    def _check_sums(self, shards: Sequence[Shard]) -> list[str | None]:
        """Compare shards with the index; returns the SHA-256 of each, None if it cannot be read."""
        with ThreadPoolExecutor(self.workers) as pool:
            sums = list(pool.map(lambda shard: _sha256(self.source.root / shard["name"]), shards))
        for shard, found in zip(shards, sums, strict=True):
            if found is None:
                self._broken(
                    shard["name"], FaultKind.FILE_MISSING, "the shard does not exist; export or fetch it again"
                )
            elif found != shard.get("sha256"):
                message = f"its SHA-256 is {found}, but {INDEX} says {shard.get('sha256')}; export or fetch it again"
                self._broken(shard["name"], FaultKind.CHECKSUM, message)
        return sums

    def _tar_shards(self, source: WebDatasetSet, name: str) -> Iterator[tuple[str, Split]]:
        shards = shards_in(source.index, name)
        self.listed |= {shard["name"] for shard in shards}
        for shard, found in zip(shards, self._check_sums(shards), strict=True):
            if found is None:
                continue
            try:
                yield shard["name"], source.shard(shard)
            except UNREADABLE as error:
                self._broken(shard["name"], FaultKind.ARTIFACT_UNREADABLE, str(error))

    def _arrow_shards(self, source: ArrowSet, name: str) -> Iterator[tuple[str, Split]]:
        """The shards whose checksums match; offsets in others may be arbitrary."""
        try:
            names = [f"{name}/{file}" for file in split_files(source.root / name)]
        except UNREADABLE as error:
            self._broken(name, FaultKind.ARTIFACT_UNREADABLE, str(error))
            return
        self.listed |= set(names)
        wrong: set[str] = set()
        if self.index is not None:
            shards = shards_in(self.index, name)
            sums = self._check_sums(shards)
            wrong = {shard["name"] for shard, found in zip(shards, sums, strict=True) if found != shard.get("sha256")}
            if names != [shard["name"] for shard in shards]:
                message = f"lists different shards than {INDEX}; export the set again"
                self.findings.add(FaultKind.FILE_INVALID, f"{name}/{STATE_FILE}", message)
        for file in names:
            if file in wrong:
                continue
            try:
                split = source.split(name, file.removeprefix(f"{name}/"))
                for batch in split.rows.batches():
                    batch.validate(full=True)
                yield file, split
            except UNREADABLE as error:
                self._broken(file, FaultKind.ARTIFACT_UNREADABLE, str(error))

    def _broken(
        self, file: str, kind: FaultKind, message: str, sample_id: str | None = None, column: str | None = None
    ) -> None:
        self.broken_files.add(file)
        self.findings.add(kind, file, message, sample_id=sample_id, column=column)

    def _check_split(self, name: str, file: str, split: Split) -> None:
        schema = self.source.schema
        val_ratio = self.stats.get("settings", {}).get("val_ratio")
        for index in range(len(split)):
            self.counts[name] += 1
            where = f"{file}#{index}"
            try:
                sample = split.sample(index)
            except UNREADABLE as error:
                sample_id = None
                with contextlib.suppress(*UNREADABLE):
                    sample_id = split.entry(index).id
                self._broken(file, FaultKind.ARTIFACT_UNREADABLE, f"sample {index}: {error}", sample_id)
                continue
            record = sample.entry.record
            problem = record_problem(record, schema)
            if problem:
                self._broken(file, FaultKind.RECORD_INVALID, f"sample {index}: {problem}")
                continue
            self._place(name, where, record["id"], val_ratio)
            for column, array in sample.arrays.items():
                for kind, message in check_array(array, schema, column, record, half=True):
                    self._broken(file, kind, f"{column}: {message}", record["id"], column)

    def _place(self, name: str, where: str, sample_id: str, val_ratio: float | None) -> None:
        split, earlier = self.split_of.setdefault(sample_id, (name, where))
        if earlier is not where:
            kind = FaultKind.IN_BOTH_SPLITS if split != name else FaultKind.DUPLICATE_ID
            self.findings.add(kind, where, f"the id is also at {earlier}", sample_id=sample_id)
        if val_ratio is not None and is_validation(sample_id, val_ratio) != (name == SPLITS[1]):
            message = f"with a val ratio of {val_ratio}, the id belongs to the other split"
            self.findings.add(FaultKind.WRONG_SPLIT, where, message, sample_id=sample_id)

    def _check_places(self, name: str) -> None:
        """Compare the places in the index with the content of the shards."""
        if self.index is None or "places" not in self.index or self.broken_files:
            return
        found = sorted(sample_id for sample_id, (split, _) in self.split_of.items() if split == name)
        try:
            split = self.source.split(name)
            if sorted(entry.id for entry in split.entries()) == found:
                return
            problem = f"refers to other samples than the shards of {name} contain"
        except UNREADABLE as error:
            problem = f"cannot be used: {error}"
        self.findings.add(FaultKind.FILE_INVALID, PLACES, f"{problem}; make or fetch the set again")

    def _check_unlisted(self) -> None:
        root = self.source.root
        pattern = "*.arrow" if isinstance(self.source, ArrowSet) else "*.tar"
        for path in sorted(root.rglob(pattern)):
            name = path.relative_to(root).as_posix()
            if name not in self.listed and not name.startswith("."):
                self.findings.add(FaultKind.UNLISTED_FILE, name, "a shard that is not listed")


def _sha256(path: Path) -> str | None:
    try:
        return sha256_file(path)
    except OSError:
        return None
